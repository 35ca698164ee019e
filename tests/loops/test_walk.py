# SPDX-License-Identifier: Apache-2.0
"""Walking layers with their inputs, on networks of every shape."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError
from rarefy.forms.mask import set_mask
from rarefy.loops.modes import copy_state
from rarefy.loops.walk import Visit, walk
from rarefy.select import select
from rarefy.zoo.resnet import CifarResNet


class Chain(nn.Module):
    """A plain chain with in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)),
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Recurrent(nn.Module):
    """One layer runs three times, its input is changed in place, a twin shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step = nn.Linear(4, 5), nn.Linear(5, 5)
        self.twin, self.leave = nn.Linear(5, 5), nn.Linear(5, 2)
        self.twin.weight = self.step.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for _ in range(3):
            y = self.step(h)
            h += y.tanh()
        return self.leave(self.twin(h))


class Routed(nn.Module):
    """Which expert runs depends on the data; one never does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        expert = self.experts[0] if float(x[0, 0]) > 0 else self.experts[1]
        return self.head(expert(self.gate(x)).relu())


class Around(nn.Module):
    """A skip connection spans everything: no cut is sound."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.third(self.second(y).relu()) + y, y


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 1, 8, 8, generator=generator) for n in (4, 4, 3)]


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 4, generator=generator) for n in (4, 4, 1)]


def photographs() -> list[Tensor]:
    return [torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]


NETWORKS = [
    (Chain, images),
    (Recurrent, rows),
    (Routed, rows),
    (Around, rows),
    (lambda: CifarResNet(8), photographs),
]


def built(build: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model


def directly(model: nn.Module, visit: Visit, batches: list[Tensor]) -> list[Tensor]:
    """The inputs of a visit's modules by plain hooks in full passes."""
    seen: list[Tensor] = []
    held = visit.layer.stored
    modules = [m for m in model.modules() if getattr(m, "weight", None) is held]
    hooks = [m.register_forward_pre_hook(lambda _, a: seen.append(a[0].clone())) for m in modules]
    training = model.training
    model.eval()
    with torch.no_grad():
        for x in batches:
            model(x)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("build", "data"), NETWORKS)
def test_inputs_are_those_under_the_changed_predecessors(build, data) -> None:  # type: ignore[no-untyped-def]
    model, batches = built(build), data()
    visited = []
    for visit in walk(model, batches, select(model)):
        expected = directly(model, visit, batches)
        assert len(visit.calls) == len(expected)
        for one, x in zip(visit.calls, expected, strict=True):
            assert torch.equal(one.x, x)
        visit.put(visit.matrix * 0.5 + 0.01)
        visited.append(visit.layer.name)
    assert len(visited) == len(set(visited))


@pytest.mark.parametrize(("build", "data"), NETWORKS)
def test_nothing_is_left_behind(build, data) -> None:  # type: ignore[no-untyped-def]
    model, batches = built(build).train(), data()
    model.get_submodule(
        "head" if hasattr(model, "head") else next(n for n, _ in model.named_children())
    ).eval()
    modes = [m.training for m in model.modules()]
    before = copy_state(model)
    attributes = [set(vars(m)) for m in model.modules()]

    def clean() -> bool:
        return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    walking: Iterator[Visit] = walk(model, batches, select(model))
    for visit in walking:
        assert clean()
        assert modes == [m.training for m in model.modules()]
        visit.put(visit.matrix.clone())
    next(walk(model, batches, select(model)))  # one that is abandoned
    assert clean()
    assert attributes == [set(vars(m)) for m in model.modules()]
    assert all(torch.equal(t, before[n]) for n, t in copy_state(model).items())


def test_order_is_that_of_execution() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    model = Reversed()
    assert [v.layer.name for v in walk(model, rows(), select(model))] == ["first", "last"]


def test_experts_stand_where_they_run() -> None:
    model = built(Routed)
    batches = [torch.ones(2, 4), -torch.ones(3, 4)]
    seen = {v.layer.name: len(v.calls) for v in walk(model, batches, select(model))}
    assert list(seen) == ["gate", "experts.1", "experts.0", "head"] or list(seen) == [
        "gate", "experts.0", "experts.1", "head",
    ]  # fmt: skip
    assert seen == {"gate": 2, "experts.0": 1, "experts.1": 1, "head": 2}


def test_rows_times_matrix_is_the_output() -> None:
    model, batches = built(Chain), images()
    for visit in walk(model, batches, select(model, ("body.0.0", "body.1.0", "head"))):
        module = visit.layer.module
        with torch.no_grad():
            expected = [module(one.x) for one in visit.calls]
        for x, y in zip(visit.inputs(), expected, strict=True):
            got = (x @ visit.matrix.mT).mT.flatten(0, -2)  # (out, N)
            channels = y.transpose(0, 1).flatten(1) if y.dim() > 2 else y.mT
            torch.testing.assert_close(got + module.bias.view(-1, 1), channels)  # type: ignore[operator, union-attr]


def test_a_chain_of_blocks_costs_few_passes() -> None:
    """Without cuts the deepest layer alone would run the first block once for every layer."""
    model = built(
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(12)))
    )  # type: ignore[arg-type]
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    model[0][0].register_forward_pre_hook(count)  # type: ignore[index]
    for _ in walk(model, rows(), select(model)):
        pass
    # order, trace and visit of the three batches, and trials on the probe; 36 and more without cuts
    assert runs <= 3 + 1 + 3 + 3 + 2 * 11


def test_residual_blocks_are_cut_between_but_not_inside() -> None:
    from rarefy.loops.replay import Replay

    model, batches = built(lambda: CifarResNet(14)), photographs()  # type: ignore[arg-type]
    layers = [layer.module for layer in select(model)]
    replay = Replay(model, batches, batches[0], layers)
    names = {module: name for name, module in model.named_modules()}
    block = model.layer2[1]  # type: ignore[index]
    replay.advance(block.conv2)
    assert names[replay.kept[0].place[0]] == "layer2.0"  # type: ignore[index]
    trials = {names[place[0]]: sound for place, sound in replay.trials.items()}
    assert trials == {"layer2.1.conv1": False, "layer2.0": True}


def test_masked_layers_are_walked() -> None:
    model = built(Chain)
    keep = torch.rand(3, 4) > 0.5
    set_mask(model.head, keep)
    for visit in walk(model, images(), select(model, "head")):
        assert torch.equal(visit.matrix != 0, keep)
        visit.put(torch.ones(3, 4))
    assert torch.equal(model.head.weight, keep.float())


def test_bad_input_is_named() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    with pytest.raises(ModelError, match="'0' \\(Embedding"):
        next(walk(model, rows(), select(model, ("0", "1"))))
    with pytest.raises(TaskError, match="no calibration batch"):
        next(walk(model, [], select(model)))
