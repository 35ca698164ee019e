# SPDX-License-Identifier: Apache-2.0
"""What is kept of the training data when they go: moments of activations, and no input.

Lopes, Fenu, Starner: Data-Free Knowledge Distillation for Deep Neural Networks, 2017, arXiv 1710.07535,
section 3: means and covariances of a network's layers, recorded while the data are there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError
from rarefy.loops.features import INPUT, features
from rarefy.loops.modes import device_of, evaluating
from rarefy.store.checkpoint import load_state, save_state
from rarefy.task import Inputs, call, move, tensors_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOP = 512  # features of which the last layer's whole covariance is kept at most


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every channel of a feature, over examples and places.

    Attributes:
        mean, variance: (C,).
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Records:
    """The moments of a network's activations on its training data.

    Attributes:
        layers: by the feature's name (see `rarefy.loops.features.features`).
        top: the name of what the last layer reads, or the empty one.
        mean, covariance: of it, (D,) and (D, D); None if it is too wide or not known.
        lowest, highest: of all entries of the inputs.
    """

    layers: dict[str, Moments]
    top: str = ""
    mean: Tensor | None = None
    covariance: Tensor | None = None
    lowest: float = -3.0
    highest: float = 3.0

    def save(self, path: Path) -> None:
        """Writes the records in one move."""
        layers = {n: [m.mean, m.variance] for n, m in self.layers.items()}
        whole = [self.mean, self.covariance]
        bounds = [self.lowest, self.highest]
        save_state(path, {"layers": layers, "top": self.top, "whole": whole, "bounds": bounds})

    @classmethod
    def load(cls, path: Path) -> "Records":
        """Reads what `save` wrote.

        Raises:
            TaskError: there is no such file.
            FileError: it is damaged.
        """
        if not path.is_file():
            raise TaskError(
                f"there is no file '{path}' of activation records; make one with record(model, batches)"
            )
        state = load_state(path)
        layers = {n: Moments(*pair) for n, pair in state["layers"].items()}
        return cls(layers, state["top"], *state["whole"], *state["bounds"])


def channel_rows(x: Tensor) -> Tensor:
    """Every place of a map as a row of channels: (B, C, *space) to (rows, C); vectors stay."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1) if x.dim() > 2 else x


def moments_of(x: Tensor) -> Moments:
    """The moments of one batch of a feature, differentiable."""
    rows = channel_rows(x.float())
    return Moments(rows.mean(0), rows.var(0, correction=0))


def layer_names(model: nn.Module) -> list[str]:
    """Inputs of batch norms, or, without such, outputs of all layers with weights."""
    norms = [f"{n}{INPUT}" for n, m in model.named_modules() if isinstance(m, NORMS)]
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return norms or [n for n, m in model.named_modules() if n and isinstance(m, kinds)]


def from_norms(model: nn.Module) -> Records | None:
    """Records from the running statistics of batch norms; None if there is none."""
    found = {
        f"{n}{INPUT}": Moments(m.running_mean.clone(), m.running_var.clone())
        for n, m in model.named_modules()
        if isinstance(m, NORMS) and m.running_mean is not None and m.running_var is not None
    }
    return Records(found) if found else None


@torch.no_grad()
def record(model: nn.Module, batches: Iterable[Inputs]) -> Records:
    """Runs a network over data and keeps the moments of its activations.

    Args:
        model: in any mode.
        batches: inputs without targets.

    Raises:
        ModelError: the network has no layer whose activations could be kept.
        TaskError: there is no batch.
    """
    names = layer_names(model)
    lines = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    top = f"{lines[-1]}{INPUT}" if lines else ""
    if not names:
        raise ModelError(f"{type(model).__name__} has no layer whose activations could be recorded")
    sums: dict[str, list[Tensor]] = {}
    outer, bounds = None, [torch.inf, -torch.inf]
    with evaluating(model), features(model, [*names, *([top] if top else [])]) as seen:
        for batch in batches:
            inputs = move(batch, device_of(model))
            call(model, inputs)
            values = tensors_of(inputs)[0].float()
            bounds = [min(bounds[0], float(values.min())), max(bounds[1], float(values.max()))]
            for name, x in seen.items():
                rows = channel_rows(x.double())
                parts = [torch.tensor(float(len(rows))), rows.sum(0), rows.square().sum(0)]
                old = sums.get(name)
                sums[name] = (
                    parts if old is None else [a + b for a, b in zip(old, parts, strict=True)]
                )
                if name == top and rows.shape[1] <= TOP and x.dim() == 2:
                    outer = rows.mT @ rows + (0 if outer is None else outer)
    if not sums:
        raise TaskError("there is no batch whose activations could be recorded")
    layers, mean, covariance = {}, None, None
    for name, (count, total, squares) in sums.items():
        m = total / count
        layers[name] = Moments(m.float(), (squares / count - m.square()).clamp(min=0).float())
        if name == top and outer is not None:
            mean, covariance = m.float(), (outer / count - torch.outer(m, m)).float()
    return Records(layers, top if mean is not None else "", mean, covariance, *bounds)
