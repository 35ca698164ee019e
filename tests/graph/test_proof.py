# SPDX-License-Identifier: Apache-2.0
"""Cuts of random networks are checked against zeroed ones; what can't be proven is left alone and named."""

import copy
import math

import pytest
import torch
from tests.graph.random_networks import RandomNet
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError
from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.proof import cut

NETWORKS = 240


def half(coupling: Coupling) -> list[tuple[object, Tensor]]:
    """Half the units of every group, as far as the network's code allows."""
    counts = coupling.even({g.name: g.size // 2 for g in coupling.groups})
    return [
        (coupling.group(name), torch.randperm(coupling.group(name).size)[:n])
        for name, n in counts.items()
    ]


def zeroed(model: nn.Module, coupling: Coupling, removed: Tensor) -> nn.Module:
    """The same network with every entry zero that a cut removes."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in found.named_parameters():
            for axis, labels in enumerate(coupling.book.parameters[name]):
                p.index_fill_(axis, removed[labels].nonzero()[:, 0], 0.0)
    return found


@pytest.mark.parametrize("first", range(0, NETWORKS, 40))
def test_random_networks_shrink_and_compute_what_the_zeroed_ones_compute(first: int) -> None:
    cut_units = 0
    for seed in range(first, first + 40):
        model = RandomNet(seed).eval()
        x = torch.randn(2, 3, 6, 6)
        coupling = couple(model, x)
        cuts = half(coupling)
        kinds = {b.kind for b in model.modules() if type(b).__name__ == "Normed"}
        exact = not any(type(m).__name__ == "Attention" for m in model.modules()) and not (
            kinds & {"layer", "hand", "group"}
        )
        before = sum(p.numel() for p in model.parameters())
        shape = model(x).shape
        reference = copy.deepcopy(model)
        outcome = cut(model, coupling, cuts, x)  # type: ignore[arg-type]
        assert outcome.difference < 1e-4
        found = model(x)
        assert found.shape == shape
        after = sum(p.numel() for p in model.parameters())
        assert after < before or not outcome.cut
        cut_units += sum(outcome.cut.values())
        if exact:  # no norm counts channels: plain zeros say the same
            taken = [(g, u) for g, u in cuts if g.name in outcome.cut]  # type: ignore[attr-defined]
            removed = coupling.removed(taken)  # type: ignore[arg-type]
            expected = zeroed(reference, coupling, removed)(x)
            assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
        model.train()(x).square().mean().backward()
        assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    assert cut_units > 400


class Broken(nn.Module):
    """Its second layer asks for a size that no cut can keep."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[-1] != int(str(8)):
            raise RuntimeError("eight, please")
        return self.c(self.b(y.relu()).relu())


def test_what_fails_is_rolled_back_and_named() -> None:
    model, x = Broken().eval(), torch.randn(3, 4)
    coupling = couple(model, x)
    before = model.a.weight
    outcome = cut(model, coupling, half(coupling), x)  # type: ignore[arg-type]
    assert outcome.cut == {"b": 3}
    assert outcome.spared == {"a": "the cut network fails: RuntimeError: eight, please"}
    assert model.a.weight is before
    assert model.b.weight.shape == (3, 8)
    assert model(x).shape == (3, 2)


class Scaled(nn.Module):
    """Divides by the root of a size that is an attribute: another size gives other values."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 8
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(-1, self.n)
        return self.b(y) / math.sqrt(self.n)


def test_a_cut_that_changes_values_is_rolled_back() -> None:
    model, x = Scaled().eval(), torch.randn(3, 4)
    coupling = couple(model, x)
    before = model(x)
    outcome = cut(model, coupling, half(coupling), x)  # type: ignore[arg-type]
    assert not outcome.cut
    assert "differs from the zeroed one" in outcome.spared["a"]
    assert model.n == 8
    assert torch.equal(model(x), before)


class Silent(nn.Module):
    """Its head starts at zero, behind which no difference could be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 8
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, self.n) * float(self.n))


def test_a_head_of_zeros_hides_nothing() -> None:
    model, x = Silent().eval(), torch.randn(3, 4)
    outcome = cut(model, coupling := couple(model, x), half(coupling), x)  # type: ignore[arg-type]
    assert not outcome.cut
    assert float(model.b.weight.detach().abs().max()) == 0


def test_all_units_of_a_group_cannot_go() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    coupling = couple(model, x)
    with pytest.raises(ModelError, match="all 8 units of '0' would go; keep at least one"):
        cut(model, coupling, [(coupling.groups[0], torch.arange(8))], x)
    assert model[0].weight.shape == (8, 4)


def test_modes_come_back() -> None:
    model, x = (
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)).train(),
        torch.randn(3, 4),
    )
    model[0].eval()
    coupling = couple(model, x)
    cut(model, coupling, half(coupling), x)  # type: ignore[arg-type]
    assert [m.training for m in model] == [False, True, True]


def test_a_layer_norm_counts_what_is_there() -> None:
    model, x = (
        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval(),
        torch.randn(3, 4),
    )
    coupling = couple(model, x)
    w, gone = copy.deepcopy(model), torch.tensor([1, 2, 5])
    cut(model, coupling, [(coupling.groups[0], gone)], x)
    stay = torch.tensor([0, 3, 4, 6, 7])
    y = F.layer_norm(w[0](x)[:, stay], (5,))
    assert torch.allclose(model(x), y @ w[2].weight[:, stay].T + w[2].bias, atol=1e-6)
