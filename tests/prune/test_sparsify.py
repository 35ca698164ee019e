# SPDX-License-Identifier: Apache-2.0
"""Training under penalties: closed forms, exact zeros, lossless cuts, and refusals before any training."""

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, RecipeError
from rarefy.graph.coupling import couple
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.prune.channel_selection import chosen_groups
from rarefy.prune.penalty_groups import coupled_units, layer_groups, skipped_blocks
from rarefy.prune.silent_units import cut_silent_units
from rarefy.prune.sparsify import Sparsify
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


class Branch(nn.Module):
    """relu(x + branch(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    """A stem, two residual blocks and a linear layer, for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Branch(8), Branch(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def residual(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(Residual(), digits_task, Training(epochs=3, rate=0.1))


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))


def sparsified(model: nn.Module, task: Task, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    ctx = context(model, task)
    step = Sparsify(**{"epochs": 2, "rate": 0.05, **fields})
    return step.apply(copy.deepcopy(model), ctx), ctx.record


def orthonormal(strength: float, update: str, penalty: str = "l1") -> tuple[Tensor, Tensor]:
    """Weights that the step finds for ½‖Xw - y‖² with X'X = 1, and those of least squares."""
    torch.manual_seed(3)
    X = torch.linalg.qr(torch.randn(24, 8))[0]
    y = torch.randn(24, 1)
    model = nn.Linear(8, 1, bias=False)
    task = Task(
        "lasso", X, train=[(X, y)] * 200, loss=lambda out, t: 0.5 * (out - t).square().sum()
    )
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"))
    step = Sparsify(
        penalty=penalty, strength=strength, update=update, epochs=1, rate=0.05, weight_decay=0.0,
        schedule="constant", cut=False,
    )  # fmt: skip
    found = step.apply(model, ctx).weight.detach().flatten()  # type: ignore[union-attr, operator]
    return found, (X.T @ y).flatten()


def test_with_an_orthonormal_design_the_lasso_is_the_soft_threshold_of_least_squares() -> None:
    found, least_squares = orthonormal(0.4, "prox")
    expected = least_squares.sign() * (least_squares.abs() - 0.4).clamp(min=0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found == 0, least_squares.abs() <= 0.4)
    assert 0 < int((found == 0).sum()) < 8


def test_the_subgradient_comes_near_but_leaves_no_exact_zero() -> None:
    found, least_squares = orthonormal(0.4, "subgradient")
    expected = least_squares.sign() * (least_squares.abs() - 0.4).clamp(min=0)
    assert torch.allclose(found, expected, atol=0.3)
    assert not (found == 0).any()
    assert (expected == 0).any()


def test_ridge_shrinks_by_its_closed_form() -> None:
    for update in ("prox", "subgradient"):
        found, least_squares = orthonormal(0.5, update, "l2")
        # momentum makes the proximal step ten times as long as the gradient's, to first order the same
        assert torch.allclose(found, least_squares / 1.5, atol=0.02)


def test_more_strength_means_more_zeros(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    zeros = []
    for strength in (1e-4, 5e-4, 2e-3):
        found, _ = sparsified(model, task, penalty="l1", strength=strength, epochs=1)
        zeros.append(sum(int((layer.weight == 0).sum()) for layer in select(found)))
    assert 0 < zeros[0] < zeros[1] < zeros[2]


def test_empty_units_are_cut_and_nothing_else_changes(
    residual: nn.Module, digits_task: Task
) -> None:
    fields = {"penalty": "group-lasso", "strength": 0.012, "rate": 0.1}
    whole, _ = sparsified(residual, digits_task, **fields, cut=False)
    small, record = sparsified(residual, digits_task, **fields)
    assert sum(record["cut"].values()) >= 4
    assert any(name.startswith("blocks") for name in record["cut"])
    x = digits_task.example
    assert torch.allclose(whole(x), small(x), atol=1e-5)
    before = sum(p.numel() for p in whole.parameters())
    assert sum(p.numel() for p in small.parameters()) < before
    groups = couple(whole, x).groups
    units = coupled_units(whole, groups, ("out", "along"))
    for part in units.parts:  # a unit is empty in all of its layers or in none
        empty = (part.tensor == 0).movedim(axis_of(part.owners), 0)
        empty = empty.reshape(len(empty), -1).all(1)
        assert int(empty.sum()) == sum(
            record["cut"].get(g.name, 0) for g in groups if owns(g, part.tensor, whole)
        )


def axis_of(owners: Tensor) -> int:
    return max(range(owners.dim()), key=lambda i: owners.shape[i])


def owns(group: Any, tensor: Tensor, model: nn.Module) -> bool:
    held = dict(model.named_parameters())
    return any(held.get(m.name) is tensor and m.role != "in" for m in group.members)


def test_scales_of_zero_go_where_their_shift_is_swallowed(
    residual: nn.Module, digits_task: Task
) -> None:
    model, x = copy.deepcopy(residual).eval(), digits_task.example
    norm = model.blocks[0].bn1  # type: ignore[index, union-attr]
    with torch.no_grad():
        norm.weight[:5] = 0  # type: ignore[index]
        norm.bias[:3], norm.bias[3:5] = -0.5, 0.5  # type: ignore[index]
    before = model(x)
    outcome = cut_silent_units(model, x)
    assert outcome.cut == {"blocks.0.conv1": 3}  # with a positive shift a channel is a constant
    assert torch.allclose(model(x), before, atol=1e-5)
    assert model.blocks[0].conv1.weight.shape[0] == 9  # type: ignore[index, union-attr]


def test_units_that_nobody_reads_are_cut(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    with torch.no_grad():
        model.fc2.weight[:, 10:20] = 0  # type: ignore[union-attr, index]
    before = model(task.example)
    assert cut_silent_units(model, task.example).cut == {"fc1": 10}
    assert torch.allclose(model(task.example), before, atol=1e-6)


def test_a_norm_that_counts_its_channels_keeps_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for p in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            p[:2] = 0
    x = torch.randn(4, 6)
    before = model(x)
    outcome = cut_silent_units(model, x)
    assert outcome.cut == {}
    assert outcome.spared == {"0": "its silent units count in a norm"}
    assert torch.equal(model(x), before)


def test_empty_blocks_leave_the_network(residual: nn.Module, digits_task: Task) -> None:
    assert [b.name for b in skipped_blocks(residual, digits_task.example)] == [
        "blocks.0",
        "blocks.1",
    ]
    fields = {
        "penalty": "group-lasso",
        "groups": "block",
        "strength": 0.02,
        "epochs": 3,
        "rate": 0.1,
    }
    whole, _ = sparsified(residual, digits_task, **fields, cut=False)
    small, record = sparsified(residual, digits_task, **fields)
    assert record["removed"]
    gone = [row["block"] for row in record["removed"]]
    assert all(isinstance(small.get_submodule(name), nn.Identity) for name in gone)
    assert all(not p.any() for name in gone for p in whole.get_submodule(name).parameters())
    x = digits_task.example
    assert torch.equal(whole(x), small(x))


def test_groups_inside_layers_cover_every_weight_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(8, 5))
    layers = select(model)
    for kind, numbers in {"filter": 4 + 5, "input": 3 + 8, "shape": 27 + 8}.items():
        found = layer_groups(layers, kind)
        assert found.number == numbers
        seen = torch.cat([p.owners.flatten() for p in found.parts])
        assert seen.tolist() == list(range(numbers))
        assert [p.tensor is layer.stored for p, layer in zip(found.parts, layers, strict=True)] == [
            True
        ] * 2


def test_a_growing_penalty_takes_the_share_that_was_asked_for(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    for start in (0.0, 0.4):
        found, record = sparsified(model, task, penalty="growing", sparsity=0.25, start=start)
        assert record["cut"] == {"conv1": 4, "conv2": 8, "fc1": 16}
        assert found.fc1.weight.shape == (48, 24 * 16)  # type: ignore[union-attr]


def test_units_fade_while_the_penalty_grows(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    groups = chosen_groups(model, couple(model, task.example), "*", ())[0]
    step = Sparsify(penalty="growing", sparsity=0.5, epochs=3, rate=0.05)
    penalty: Any = step.pull(model, groups)
    penalty.now(0.5)
    sizes = []
    for k in range(1, 11):
        penalty.shrink(0.3, k / 10)
        sizes.append(
            sum(
                float((p.tensor.detach() * (p.owners >= 0)).square().sum())
                for p in penalty.chosen.parts
            )
        )
    ratios = [b / a for a, b in itertools.pairwise(sizes)]
    expected = [(1 / (1 + 0.3 * k / 10)) ** 2 for k in range(2, 11)]
    assert ratios == pytest.approx(expected, rel=1e-4)


def test_pruned_weights_stay_pruned_under_a_penalty(digits: tuple[nn.Module, Task]) -> None:
    from rarefy.prune.prune_weights import PruneWeights

    model, task = digits
    ctx = context(model, task)
    masked = PruneWeights(sparsity=0.6).apply(copy.deepcopy(model), ctx)
    zeros = {x.name: x.weight == 0 for x in select(masked)}
    found = Sparsify(penalty="l1", strength=0.2, epochs=1).apply(masked, ctx)
    assert sum(int((x.weight == 0).sum()) for x in select(found)) > sum(
        map(torch.sum, zeros.values())
    )
    for layer in select(found):
        assert (layer.weight == 0)[zeros[layer.name]].all()


def test_without_labels_the_original_is_imitated(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    bare = dataclasses.replace(task, train=[x for x, _ in task.batches("train")], labelled=False)
    bare = dataclasses.replace(bare, validation=None, test=None)
    found, record = sparsified(model, bare, penalty="group-lasso", strength=0.004, epochs=3)
    assert record["cut"]
    x = torch.cat([x for x, _ in task.batches("validation")])
    with torch.no_grad():
        assert (found(x).argmax(1) == model(x).argmax(1)).float().mean() > 0.85


def test_what_can_not_work_is_told_before_training(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = context(model, task)
    with pytest.raises(RecipeError, match="leaves a unit without weights"):
        Sparsify(roles=())
    with pytest.raises(ModelError, match="passes a norm with a scale; take penalty: group-lasso"):
        Sparsify().apply(copy.deepcopy(model), ctx)
    with pytest.raises(ModelError, match="DigitsNet has no residual block"):
        Sparsify(penalty="group-lasso", groups="block").apply(copy.deepcopy(model), ctx)
    with pytest.raises(RecipeError, match="'nothing' matches no layer"):
        Sparsify(penalty="group-lasso", layers="nothing").apply(copy.deepcopy(model), ctx)
    assert "training" not in ctx.record
