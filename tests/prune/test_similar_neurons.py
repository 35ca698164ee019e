# SPDX-License-Identifier: Apache-2.0
"""Twins are merged exactly and first, multiples with `scaled`; the knee; no data is read."""

import copy
import dataclasses
import itertools

import torch
from torch import Tensor, nn

from rarefy.graph.coupling import couple
from rarefy.prune.similar_neurons import SimilarNeurons, differences, incoming, knee, mergers
from rarefy.step import Context
from rarefy.task import Task


def saliencies(V: Tensor, A: Tensor) -> dict[tuple[int, int], float]:
    """By the formula, pair by pair."""
    return {
        (i, j): float(A[j].square().mean() * (V[i] - V[j]).square().sum())
        for i, j in itertools.permutations(range(len(V)), 2)
    }


def test_the_order_is_that_of_the_formula_with_rebuilt_rows() -> None:
    torch.manual_seed(0)
    V, A = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    current, alive = A.clone(), set(range(7))
    for m in mergers(V, A):
        every = {p: s for p, s in saliencies(V, current).items() if set(p) <= alive}
        assert abs(every[m.into, m.gone] - min(every.values())) < 1e-9
        assert abs(m.saliency - every[m.into, m.gone]) < 1e-9
        current[m.into] += current[m.gone]
        alive.remove(m.gone)
    assert len(alive) == 1


def test_twins_cost_nothing_and_multiples_only_unscaled() -> None:
    torch.manual_seed(0)
    V, A = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    V[4] = V[1]
    first = mergers(V, A)[0]
    assert ({first.into, first.gone}, first.saliency) == ({1, 4}, 0.0)
    V[4] = 3 * V[1]
    assert mergers(V, A)[0].saliency > 0
    first = mergers(V, A, scaled=True)[0]
    assert ({first.into, first.gone}, first.saliency) == ({1, 4}, 0.0)
    assert abs(first.factor - (3 if first.gone == 4 else 1 / 3)) < 1e-9
    V[4] = -V[1]  # a ReLU gives nothing of a negative multiple
    assert mergers(V, A, scaled=True)[0].saliency > 0
    _, c = differences(V, scaled=True)
    assert float(c.min()) == 0


def test_the_knee_is_where_a_flat_curve_turns_up() -> None:
    bulk = torch.linspace(0.9, 1.1, 40).tolist()
    curve = [0.01, 0.1, 0.3, *bulk, *torch.logspace(0.3, 3, 17).tolist()]
    assert 12 <= knee(curve) <= 45
    assert knee([1.0, 2.0]) == 0


class Twins(nn.Module):
    """Convolutions with batch norm whose second half of channels repeats the first, doubled if asked."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 6, 3, bias=False), nn.Linear(6 * 16, 10)
        with torch.no_grad():
            for p in (self.conv.weight, self.conv.bias, self.norm.bias, self.norm.weight):
                p.uniform_(0.2, 1)
                p[4:] = p[:4]
            self.norm.weight[4:] *= factor
            self.norm.bias[4:] *= factor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.norm(self.conv(x)).relu()).flatten(1))


class Sealed:
    """Data that nobody may look at."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("a data-free method looked at the data")


def test_twin_channels_behind_a_batch_norm_merge_without_data(digits_task: Task) -> None:
    sealed = dataclasses.replace(
        digits_task, train=Sealed(), validation=Sealed(), calibration=Sealed(), test=Sealed()
    )
    for factor, scaled in ((1.0, False), (2.0, True)):
        torch.manual_seed(0)
        model = Twins(factor).eval()
        x = digits_task.example
        before = model(x)
        context = Context(sealed, copy.deepcopy(model), torch.device("cpu"))
        step = SimilarNeurons(sparsity=0.5, scaled=scaled, exclude="conv2")
        after = step.apply(model, context)
        assert after.conv.weight.shape[0] == 4
        assert torch.allclose(after(x), before, atol=1e-4 * float(before.abs().max()))
        assert after.conv2.bias is None


def test_incoming_weights_hold_the_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    group = couple(model, torch.randn(2, 3)).groups[0]
    V = incoming(model, group)
    assert torch.allclose(V.float(), torch.cat([model[0].weight, model[0].bias[:, None]], 1))
