# SPDX-License-Identifier: Apache-2.0
"""The networks of torchvision, timm and transformers, by name, with random weights and a batch for each."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

SMALL = ("atto", "femto", "pico", "nano", "xxs", "xxt", "zepto", "tiny", "_t0", "_xs", "_t", "mini", "small",
         "_s0", "_s", "b0", "_0", "18", "26", "34", "50")  # fmt: skip
"""What names of small variants contain, the smallest first."""

LARGE = 512
"""Images of timm's models that are larger, in pixels, and need not be, are taken at half their size."""

VISION = {"image_size": 32, "patch_size": 8, "num_channels": 3}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "vocab_size": 99, "max_position_embeddings": 64}  # fmt: skip
CAUSAL = {"use_cache": False, "pad_token_id": 0}
DECODER = {**TEXT, **CAUSAL, "num_key_value_heads": 2}
SEQ2SEQ = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 99,
           "max_position_embeddings": 64, "use_cache": False, "pad_token_id": 0}  # fmt: skip
SPEECH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
          "conv_dim": (16, 16), "conv_kernel": (8, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2,
          "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 32}  # fmt: skip

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "bert": TEXT,
    "roberta": {**TEXT, "pad_token_id": 0},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99},
    "albert": {**TEXT, "embedding_size": 16},
    "electra": {**TEXT, "embedding_size": 16},
    "deberta-v2": {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "mpnet": TEXT,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64,
             "use_cache": False, "pad_token_id": 0},
    "gpt_neox": {**TEXT, "use_cache": False, "pad_token_id": 0},
    "opt": {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False, "pad_token_id": 0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, **CAUSAL},
    "falcon": {**TEXT, **CAUSAL, "new_decoder_architecture": False, "multi_query": True},
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "gemma": {**DECODER, "head_dim": 8},
    "phi3": {**DECODER, "pad_token_id": 0},
    "mixtral": {**DECODER, "num_local_experts": 2, "num_experts_per_tok": 2},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99,
           "use_cache": False},
    "bart": SEQ2SEQ,
    "whisper": {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16,
                "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
    "wav2vec2": SPEECH,
    "vit": {**TEXT, **VISION},
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "image_size": 32, "patch_size": 2,
             "window_size": 4},
    "deit": {**TEXT, **VISION},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
}  # fmt: skip

HEADS = {
    **dict.fromkeys(("t5", "bart"), "AutoModelForSeq2SeqLM"),
    **dict.fromkeys(("vit", "swin", "convnextv2"), "AutoModelForImageClassification"),
    "deit": "DeiTForImageClassification",
    "whisper": "AutoModelForSpeechSeq2Seq",
    "wav2vec2": "AutoModelForCTC",
}


def torchvision_names(task: str) -> list[str]:
    """The models of classification, segmentation, detection, video or optical_flow."""
    import torchvision.models as zoo

    module = zoo if task == "classification" else getattr(zoo, task)
    return [f"torchvision:{name}" for name in zoo.list_models(module=module)]


def timm_names() -> Iterator[str]:
    """The smallest variant of every family by its name; a family is a name up to its first digit.

    Families that have no variant of at most 100 million parameters are left out.
    """
    import timm
    import torch

    families: dict[tuple[str, str], list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            families.setdefault((module, re.split(r"[\d_]", name)[0]), []).append(name)
    for names in families.values():
        ranks = {n: next((i for i, s in enumerate(SMALL) if s in n), len(SMALL)) for n in names}
        smallest = min(names, key=lambda n: (ranks[n], len(n), n))
        with torch.device("meta"):
            model = timm.create_model(smallest, pretrained=False)
        if sum(p.numel() for p in model.parameters()) <= 1e8:
            yield f"timm:{smallest}"


TASKS = ("classification", "segmentation", "detection", "video", "optical_flow")


def sets_of(name: str) -> dict[str, list[str]]:
    """Name of every set → its models; a model's own name is a set of one."""
    library, _, task = name.partition("/")
    if library == "torchvision":
        tasks = [task] if task else TASKS
        return {f"torchvision/{each}": torchvision_names(each) for each in tasks}
    if name == "timm":
        return {name: list(timm_names()) if find_spec("timm") else []}
    if name == "transformers":
        found = [f"transformers:{n}" for n in TRANSFORMERS]
        return {name: found if find_spec("transformers") else []}
    return {name.partition(":")[0]: [name]}


def build(name: str) -> tuple[Any, Any]:
    """A network with random weights, and a batch for it."""
    import torch

    library, _, model_name = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(model_name, pretrained=False)
        channels, height, width = model.pretrained_cfg["input_size"]
        if height > LARGE and not model.pretrained_cfg.get("fixed_input_size"):
            height, width = height // 2, width // 2
        return model, torch.randn(2, channels, height, width)
    if library == "transformers":
        return build_transformer(model_name)
    return build_torchvision(model_name)


def build_torchvision(name: str) -> tuple[Any, Any]:
    """A network of torchvision and a batch of the size that it takes."""
    import torch
    import torchvision.models as zoo

    kind = zoo.get_model_builder(name).__module__.split(".")[2]
    bare: dict[str, Any] = (
        {"weights_backbone": None} if kind in ("detection", "segmentation") else {}
    )
    if kind == "detection" and not name.startswith("ssd"):  # which have one size
        bare["min_size"] = 320  # else they enlarge every image to 800 pixels
        if "rcnn" in name:
            # of 1,000 regions and 100 boxes, on which heads spend most of the time
            bare |= {"rpn_post_nms_top_n_test": 100, "box_detections_per_img": 10}
    model = zoo.get_model(name, weights=None, **bare)
    if kind == "detection":
        return model, ([torch.rand(3, 160, 160) for _ in range(2)],)
    if kind == "segmentation":
        return model, torch.randn(2, 3, 96, 96)
    if kind == "optical_flow":
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if kind == "video":
        frames, side = {"s3d": (14, 224), "mvit": (16, 224)}.get(name.split("_")[0], (8, 112))
        return model, torch.randn(1, 3, frames, side, side)
    side = 299 if name == "inception_v3" else getattr(model, "image_size", 224)
    return model, torch.randn(2, 3, side, side)


def build_transformer(kind: str) -> tuple[Any, Any]:
    """A small network of a type, from a configuration."""
    import torch
    import transformers

    head = HEADS.get(kind, "AutoModelForSequenceClassification")
    config = transformers.AutoConfig.for_model(kind, **TRANSFORMERS[kind])
    model = getattr(transformers, head)
    model = model.from_config(config) if head.startswith("Auto") else model(config)
    if kind in ("vit", "deit", "swin", "convnextv2"):
        return model, {"pixel_values": torch.randn(2, 3, 32, 32)}
    if kind == "wav2vec2":
        return model, {"input_values": torch.randn(2, 400)}
    ids = torch.randint(3, 99, (2, 8))
    if kind == "whisper":
        return model, {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids}
    extra = {"decoder_input_ids": ids} if kind in ("t5", "bart") else {}
    return model, {"input_ids": ids, **extra}
