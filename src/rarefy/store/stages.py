# SPDX-License-Identifier: Apache-2.0
"""Finished stages of a compression on disk, so that an interrupted run goes on where it stopped."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rarefy.forms.snapshot import restore, snapshot
from rarefy.store.checkpoint import load_state, save_state

STATE, FACTS = "state.safetensors", "stage.json"


@dataclass
class Stage:
    """A network after one step, and what is known about it.

    Attributes:
        key: hash of everything that went in: network, task, seed, versions and the steps so far.
        folder: where its files are.
        facts: JSON-able: name, measurement, what the step recorded.
    """

    key: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def program(self) -> Path:
        """The stage's exported network."""
        return self.folder / "model.onnx"

    @property
    def finished(self) -> bool:
        """Whether the stage was saved whole."""
        return (self.folder / FACTS).is_file()

    def working_folder(self) -> Path:
        """Where an unfinished step may leave checkpoints."""
        return self.folder.with_name(self.folder.name + ".partial")

    def save(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Writes network and facts; the stage counts as finished only when everything is there."""
        structure, tensors = snapshot(model)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_state(
            self.folder / STATE, {"structure": json.dumps(structure), "tensors": dict(tensors)}
        )
        self.facts = facts
        partial = self.folder / (FACTS + ".partial")
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(partial, self.folder / FACTS)
        shutil.rmtree(self.working_folder(), ignore_errors=True)

    def load(self, original: nn.Module) -> nn.Module:
        """The stage's network, rebuilt on a copy of the original."""
        state = load_state(self.folder / STATE)
        return restore(original, json.loads(state["structure"]), state["tensors"])


def open_stage(folder: Path, previous: str, what: str) -> Stage:
    """The stage that follows the stage with key `previous` by doing `what`; its facts if it is finished."""
    key = hashlib.sha256(f"{previous}|{what}".encode()).hexdigest()[:20]
    stage = Stage(key, folder / key)
    if stage.finished:
        stage.facts = json.loads((stage.folder / FACTS).read_text(encoding="utf-8"))
    return stage


def model_key(model: nn.Module, *more: str) -> str:
    """A hash of a network's structure and tensors, and of any further words."""
    structure, tensors = snapshot(model)
    digest = hashlib.sha256(json.dumps([structure, more], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
