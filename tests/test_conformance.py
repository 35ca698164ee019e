# SPDX-License-Identifier: Apache-2.0
"""Every method passes the conformance suite, and the suite catches those that would not."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.distill.finetune import Finetune
from rarefy.errors import RecipeError
from rarefy.forms.shadow import Form, dress
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.methods import METHODS
from rarefy.recipe import method
from rarefy.step import Context, Step
from rarefy.task import Task
from rarefy.testing import ConformanceError, check_step

# As little training as the method allows.
SETTINGS: dict[str, dict[str, Any]] = {
    "prune-weights": {"sparsity": 0.6, "schedule": "cubic", "rounds": 2, "epochs": 1},
    "prune-by-inputs": {"sparsity": 0.5, "examples": 128},
    "prune-connections": {"quality": 0.8, "rounds": 2, "epochs": 1, "rate": 0.02},
    "prune-channels": {
        "criterion": "taylor",
        "rounds": 2,
        "schedule": "linear",
        "epochs": 1,
        "repair": "norms",
    },
    "finetune": {"epochs": 1},
    "reestimate-norms": {},
    "distill": {"epochs": 1},
    "share-weights": {"bits": 4, "epochs": 1},
    "vector-quantization": {},
    "hash-weights": {"epochs": 1, "start": "projected"},
    "fixed-point": {"bits": 4},
    "static-int8": {},
    "auto-int8": {"loss": 0.05},
    "half-precision": {},
    "factorize": {"fit": "outputs", "repair": "least-squares"},
    "thinet": {"sparsity": 0.5, "epochs": 1},
    "lasso-channels": {"samples": 512},
    "merge-neurons": {},
    "similar-neurons": {"sparsity": 0.25},
    "diverse-neurons": {"samples": 512},
    "prune-layers": {"blocks": ["conv2"]},
    "layer-drop": {"epochs": 1, "blocks": ["conv2"]},
    "sparsify": {"strength": 0.05, "epochs": 1, "rate": 0.05},
    "eagle-eye": {"candidates": 2, "sparsity": 0.3},
    "preserve-features": {"epochs": 1},
    "distill-without-data": {"epochs": 1, "examples": 64, "batch": 32, "steps": 5},
    "distill-generator": {"epochs": 1},
    "mutual-learning": {"epochs": 1},
    "prune-transformer": {"examples": 128},
    "quantization-aware-training": {"bits": 4, "epochs": 1},
    "entropy-penalty": {"epochs": 1, "bits": 4},
    "rate-distortion": {"bits": 3.0, "examples": 128},
    "auto-rate-distortion": {"loss": 0.05, "examples": 128},
    "equalise": {},
    "data-free-int8": {},
    "soft-weight-sharing": {"epochs": 1},
    "reconstruct": {"iterations": 10},
    "smooth-quant": {},
    "split-outliers": {},
    "single-level": {"epochs": 1, "rounds": 2},
    "coreset-filters": {"ratio": 0.5, "examples": 128},
    "tetris": {"sparsity": 0.5, "block": [4, 4], "epochs": 1},
    "bayesian-compression": {"epochs": 1},
    "dynamic-int8": {},
    "weight-only": {"bits": 8},
    "gptq": {"bits": 3},
}


class TinyNet(nn.Module):
    """A convolution with batch norm, a depthwise one, a residual sum and two linear layers, (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.pool = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(256, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.pool(x + self.conv2(x).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture(scope="module")
def small_task(digits_task: Task) -> Task:
    """A few batches of the digits."""
    torch.manual_seed(0)
    few = {
        role: list(itertools.islice(digits_task.batches(role), 4))
        for role in ("train", "validation", "calibration")
    }
    return replace(digits_task, **few, test=few["validation"])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(small_task: Task) -> nn.Module:
    """A network that has begun to learn."""
    torch.manual_seed(0)
    return fit(TinyNet(), small_task, Training(epochs=5, rate=0.05))


def test_every_method_is_in_the_table() -> None:
    assert SETTINGS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_methods_conform(name: str, tiny: nn.Module, small_task: Task) -> None:
    before = {key: t.clone() for key, t in tiny.state_dict().items()}
    check_step(method(name)(**SETTINGS[name]), tiny, small_task)
    assert all(torch.equal(t, before[key]) for key, t in tiny.state_dict().items())


Change = Callable[[nn.Module, Context], nn.Module]


@dataclass(frozen=True)
class Broken(Step):
    """Breaks one promise."""

    how: str = ""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return BREAKS[self.how](model, context)


@dataclass(frozen=True)
class Everywhere(Step):
    """Ignores which layers it was told to work on."""

    layers: tuple[str, ...] | str = "*"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        return model


class Unbaked(Form):
    """Bakes another weight than it gives."""

    kind = "dense"

    def forward(self, w: Tensor) -> Tensor:
        return w

    def right_inverse(self, w: Tensor) -> Tensor:
        return w

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        super().baked(module, name, weight * 1.01)


class Wobbly(Form):
    """Gives another weight when it is exported."""

    kind = "dense"

    def forward(self, w: Tensor) -> Tensor:
        return w if torch.compiler.is_exporting() else w * 1.5

    def right_inverse(self, w: Tensor) -> Tensor:
        return w

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Stays as it is."""


class Foreign(nn.Module):
    """A module that the network did not hold before, of a class of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Fragile(nn.Module):
    """A layer through which no gradient gets back in one piece."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x).sqrt() + x


def changed(model: nn.Module, module: nn.Module) -> nn.Module:
    model.fc2 = nn.Sequential(model.fc2, module)
    return model


def noisy(model: nn.Module, context: Context) -> nn.Module:
    with torch.no_grad():
        draw = torch.Generator()
        draw.seed()
        model.fc1.weight.add_(torch.randn(model.fc1.weight.shape, generator=draw))  # type: ignore[union-attr, operator]
    return model


def greedy(model: nn.Module, context: Context) -> nn.Module:
    with torch.no_grad():
        next(context.teacher.parameters()).zero_()
    return model


def wide(model: nn.Module, context: Context) -> nn.Module:
    model.spare = nn.Linear(256, 256)
    fc1 = model.fc1
    model.fc1 = nn.Sequential(model.spare, fc1)  # type: ignore[arg-type]
    return model


def unbaked(model: nn.Module, context: Context) -> nn.Module:
    dress(model.fc1, "weight", Unbaked())  # type: ignore[arg-type]
    return model


def wobbly(model: nn.Module, context: Context) -> nn.Module:
    dress(model.fc1, "weight", Wobbly())  # type: ignore[arg-type]
    return model


def hidden(model: nn.Module, context: Context) -> nn.Module:
    model.fc2.register_forward_hook(lambda module, args, out: out * 2)  # type: ignore[union-attr, operator]
    return model


BREAKS: dict[str, Change] = {
    "shape": lambda model, _: changed(model, nn.Linear(10, 9)),
    "teacher": greedy,
    "seed": noisy,
    "gradient": lambda model, _: changed(model, Fragile()),
    "snapshot": hidden,
    "foreign": lambda model, _: changed(model, Foreign()),
    "baking": unbaked,
    "export": wobbly,
    "size": wide,
}
COMPLAINTS = {
    "shape": "outputs of shape",
    "teacher": "it changed 'conv1.weight' of the teacher",
    "seed": "two runs under one seed differ in 'fc1.weight'",
    "gradient": "is not finite afterwards",
    "snapshot": "a restored snapshot computes other values",
    "baking": "baking moved an output by",
    "foreign": "its stage can't be resumed: the stage needs the class",
    "export": "the exported file is off by",
    "size": "the stored file grew from",
}


@pytest.mark.parametrize("how", BREAKS)
def test_broken_promises_are_noticed(how: str, tiny: nn.Module, small_task: Task) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_step(Broken(how), tiny, small_task)
    message = str(caught.value)
    assert COMPLAINTS[how] in message
    assert message.startswith(f"Broken(how='{how}')")
    assert "\n" not in message


def test_layers_that_were_not_asked_for_are_noticed(tiny: nn.Module, small_task: Task) -> None:
    with pytest.raises(ConformanceError, match="with layers='conv1' it changed 'conv2'"):
        check_step(Everywhere(), tiny, small_task)


def test_missing_needs_are_told_first(tiny: nn.Module, small_task: Task) -> None:
    with pytest.raises(RecipeError, match="finetune"):
        check_step(Finetune(epochs=1), tiny, replace(small_task, train=None))
