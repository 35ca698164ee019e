# SPDX-License-Identifier: Apache-2.0
"""Which networks shrink: half of the coupled channels of every model of torchvision, timm and transformers.

    python benchmarks/coverage.py [torchvision|timm|transformers|NAME …] [--export] [--seconds 120] [--json]

Each model runs in a process of its own, which has a limit of CPU time. It passes if half of its channels go
and it then runs, keeps its output's shapes, has at least a quarter fewer parameters, was proven against the
zeroed network and trains one step; with --export classifiers must also agree with ONNX Runtime. Weights are
random.
The last columns are CPU seconds of one core for finding the groups, and for finding, proving and cutting.
timm and transformers are found if they are installed.
"""

import argparse
import json
import multiprocessing
import re
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

SMALL = ("atto", "femto", "pico", "nano", "xxs", "xxt", "zepto", "tiny", "_t0", "_xs", "_t", "mini", "small",
         "_s0", "_s", "b0", "_0", "18", "26", "34", "50")  # fmt: skip
"""What names of small variants contain, the smallest first."""

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


def torchvision_names() -> Iterator[str]:
    """Classification, segmentation, detection, video and optical flow."""
    import torchvision.models as zoo

    for module in (zoo, zoo.segmentation, zoo.detection, zoo.video, zoo.optical_flow):
        yield from (f"torchvision:{name}" for name in zoo.list_models(module=module))


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


def names_of(group: str) -> list[str]:
    """The models of a library, or the name itself."""
    if group == "torchvision":
        return list(torchvision_names())
    if group == "timm":
        return list(timm_names()) if find_spec("timm") else []
    if group == "transformers":
        return [f"transformers:{n}" for n in TRANSFORMERS] if find_spec("transformers") else []
    return [group]


def build(name: str) -> tuple[Any, Any]:
    """A network with random weights, and a batch for it."""
    import torch

    library, _, model_name = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(model_name, pretrained=False)
        return model, torch.randn(2, *model.pretrained_cfg["input_size"])
    if library == "transformers":
        return build_transformer(model_name)
    return build_torchvision(model_name)


def build_torchvision(name: str) -> tuple[Any, Any]:
    """A network of torchvision and a batch of the size that it takes."""
    import torch
    import torchvision.models as zoo

    kind = zoo.get_model_builder(name).__module__.split(".")[2]
    bare = {"weights_backbone": None} if kind in ("detection", "segmentation") else {}
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


def detector(name: str) -> bool:
    """Whether a model finds boxes: it wants lists of images, and targets in training."""
    return "rcnn" in name or name.split(":")[1].startswith(("fcos", "retinanet", "ssd"))


def floats(result: Any) -> list[Any]:
    """The floating-point tensors of a result."""
    from rarefy.task import tensors_of

    return [t for t in tensors_of(result) if t.is_floating_point()]


def train_once(model: Any, example: Any, name: str) -> None:
    """One step of SGD on the mean square of all outputs."""
    import torch

    from rarefy.task import call

    model.train()
    if detector(name):
        target = {"boxes": torch.tensor([[10.0, 10.0, 90.0, 90.0]]), "labels": torch.tensor([1])}
        if "maskrcnn" in name:
            target["masks"] = torch.ones(1, 160, 160, dtype=torch.uint8)
        if "keypointrcnn" in name:
            target["keypoints"] = torch.full((1, 17, 3), 50.0)
        result = list(model(*example, [target] * 2).values())
    else:
        result = call(model, example)
    loss = sum(t.square().mean() for t in floats(result))
    loss.backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()


def judge(name: str, export: bool) -> dict[str, Any]:
    """What becomes of one model."""
    import torch

    from rarefy.graph.coupling import couple
    from rarefy.graph.proof import cut
    from rarefy.task import call, tensors_of

    torch.set_num_threads(1)
    model, example = build(name)
    model.eval()
    with torch.no_grad():
        shapes = [tuple(t.shape) for t in tensors_of(call(model, example))]
    before = sum(p.numel() for p in model.parameters())
    started = time.process_time()
    coupling = couple(model, example)
    looked = time.process_time() - started
    counts = coupling.even({g.name: g.size // 2 for g in coupling.groups})
    cuts = [
        (coupling.group(k), torch.randperm(coupling.group(k).size)[:n]) for k, n in counts.items()
    ]
    outcome = cut(model, coupling, cuts, example)
    took = time.process_time() - started
    after = sum(p.numel() for p in model.parameters())
    row = {
        "model": name, "groups": len(coupling.groups), "cut": len(outcome.cut), "share": after / before,
        "look": looked, "seconds": took, "barriers": coupling.barriers, "spared": outcome.spared,
    }  # fmt: skip
    with torch.no_grad():
        found = [tuple(t.shape) for t in tensors_of(call(model.eval(), example))]
    if detector(name):  # how many boxes there are depends on the weights
        shapes, found = [s[1:] for s in shapes], [s[1:] for s in found]
    if found != shapes:
        return row | {"failure": f"outputs of shape {found}, not {shapes}"}
    if after / before > 0.75:
        return row | {"failure": "less than a quarter of the parameters gone"}
    if export:
        from rarefy.export.onnx import export_onnx
        from rarefy.export.parity import check_parity

        parity = check_parity(
            model.eval(), export_onnx(model, example).SerializeToString(), [example]
        )
        if not parity.passed:
            return row | {"failure": f"ONNX Runtime is off by {parity.max_relative:.2g}"}
    train_once(model, example, name)
    return row | {"failure": None}


def run(name: str, export: bool, seconds: int) -> dict[str, Any]:
    """Judges a model in a process of its own, which has so many CPU seconds."""
    forks = multiprocessing.get_context("fork")  # the libraries are loaded once, in the parent
    here, there = forks.Pipe(duplex=False)
    process = forks.Process(target=report, args=(there, name, export, seconds))
    process.start()
    there.close()
    try:
        row: dict[str, Any] = here.recv()
    except EOFError:
        row = {"model": name, "failure": ""}
    process.join()
    if row["failure"] == "":
        killed = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row["failure"] = f"not done in {seconds} s" if killed else f"exit {process.exitcode}"
    return row


def report(pipe: Any, name: str, export: bool, seconds: int) -> None:
    """Sends what becomes of a model, or the error's last line."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    warnings.filterwarnings("ignore")
    try:
        row = judge(name, export)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        row = {"model": name, "failure": f"{type(error).__name__}: {text[:160]}"}
    pipe.send(row)


def main() -> None:
    """Prints one row per model and the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", default=["torchvision", "timm", "transformers"])
    parser.add_argument(
        "--export", action="store_true", help="also compare classifiers with ONNX Runtime"
    )
    parser.add_argument("--seconds", type=int, default=120, help="CPU seconds for each model")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    totals: dict[str, list[int]] = {}
    for group in options.groups:
        for name in names_of(group):
            row = run(name, options.export, options.seconds)
            total = totals.setdefault(name.partition(":")[0], [0, 0])
            total[0] += row["failure"] is None
            total[1] += 1
            print(json.dumps(row) if options.json else line(row), flush=True)
    if not options.json:
        print(", ".join(f"{library}: {passed} of {n}" for library, (passed, n) in totals.items()))


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "share" not in row:
        return f"{row['model']:<48} FAILED {row['failure']}"
    verdict = "ok" if row["failure"] is None else f"FAILED {row['failure']}"
    notes = [f"{n} kept" for n in (row["spared"] or {})][:3] + list(row["barriers"])[:3]
    return (
        f"{row['model']:<48} {row['groups']:4d} groups {row['share']:5.2f} of the parameters "
        f"{row['look']:6.2f} s {row['seconds']:6.2f} s  {verdict} {'; '.join(notes)}"
    )


if __name__ == "__main__":
    main()
