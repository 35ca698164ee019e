# SPDX-License-Identifier: Apache-2.0
"""Planted duplicates, dead units, low ranks, near-zero weights and idle blocks are found."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rarefy.loops.modes import copy_state
from rarefy.measure.quality import batches_of
from rarefy.prune.redundancy import LayerRedundancy, Redundancy, analyse, suggestions
from rarefy.select import select
from rarefy.task import Task


def found(model: nn.Module, data: Iterable[Tensor] | None) -> dict[str, LayerRedundancy]:
    return {x.name: x for x in analyse(model, select(model), data).layers}


def test_a_trained_network_has_no_planted_faults(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    data = list(batches_of(task, "calibration"))
    layers = found(model, data)
    assert list(layers) == ["conv1", "conv2", "fc1", "fc2"]
    assert not layers["conv2"].duplicates
    assert not layers["fc2"].dead_units
    assert layers["fc1"].shape == (64, 512)
    assert layers["fc2"].rank > 5


def test_planted_faults_are_found(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    plain = copy.deepcopy(model)
    data = list(batches_of(task, "calibration"))
    conv2, fc1, fc2 = model.conv2, model.fc1, model.fc2
    with torch.no_grad():
        fc1.weight[7] = 2 * fc1.weight[3]  # type: ignore[index, union-attr]
        fc1.bias[7] = 2 * fc1.bias[3]  # type: ignore[index, union-attr]
        fc1.weight[11] = 0  # type: ignore[index, union-attr]
        conv2.bias[5] = -1e4  # a relu that never fires  # type: ignore[index, union-attr]
        left, right = torch.randn(64, 3), torch.randn(3, 10)
        fc2.weight.copy_((left @ right).T)  # type: ignore[operator, union-attr]
        keep = model.conv1.weight.abs() >= model.conv1.weight.abs().flatten().median()  # type: ignore[operator, union-attr]
        model.conv1.weight.mul_(keep)  # type: ignore[operator, union-attr]
    layers = found(model, data)
    assert [(i, j) for i, j, _ in layers["fc1"].duplicates if j == 7] == [(3, 7)]
    assert 11 in layers["fc1"].dead_units
    assert set(range(5 * 16, 6 * 16)) <= set(layers["fc1"].dead_inputs)
    assert 11 in layers["fc2"].dead_inputs
    assert layers["fc2"].rank <= 3
    assert layers["conv1"].near_zero >= 0.49
    before = found(plain, data)
    assert 11 not in before["fc1"].dead_units
    assert before["conv1"].near_zero < 0.3
    by_weights = found(model, None)
    assert (3, 7) in [(i, j) for i, j, _ in by_weights["fc1"].duplicates]
    assert by_weights["fc1"].dead_units == (11,)
    told = suggestions(Redundancy(tuple(layers.values()), {}))
    for layer, words in (
        ("conv1", "near zero"), ("fc1", "1 of 64 units are dead"), ("fc1", "repeat others"),
        ("fc1", "never vary"), ("fc2", "rank 3 holds"),
    ):  # fmt: skip
        assert any(line.startswith(f"{layer}: ") and words in line for line in told), (layer, words)
    kept = copy_state(model)
    found(model, data)
    assert all(torch.equal(t, kept[n]) for n, t in copy_state(model).items())


class Residual(nn.Module):
    """A block that adds a little, or nothing, to its input, in place."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        with torch.no_grad():
            self.fc.weight.mul_(gain)
            self.fc.bias.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        x += self.fc(x)
        return x


def test_an_idle_block_is_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Residual(8, 3.0), Residual(8, 0.0), nn.Linear(8, 2))
    result = analyse(model, select(model), [torch.randn(20, 6) for _ in range(2)])
    assert set(result.blocks) == {"1", "2"}
    assert abs(result.blocks["2"]) < 1e-9
    assert result.blocks["1"] > 0.05
    told = suggestions(result)
    assert any(line.startswith("2: turns its input by 0.000 only") for line in told)
    assert not any(line.startswith("1: turns") for line in told)
    x, hidden = torch.randn(20, 6), []
    model[1].register_forward_pre_hook(lambda _, a: hidden.append(a[0].clone()))
    again = analyse(model, select(model), [x])
    h = hidden[-1].double()
    y = model[1](hidden[-1].clone()).double()
    by_hand = 1 - torch.nn.functional.cosine_similarity(h, y).mean()
    torch.testing.assert_close(torch.tensor(again.blocks["1"]).double(), by_hand)
