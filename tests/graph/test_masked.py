# SPDX-License-Identifier: Apache-2.0
"""The zeroed network: plain zeros, and where something counts channels it counts those that stay."""

import copy

import pytest
import torch
from tests.graph.cuts import Cuts, half, zeroed
from tests.graph.random_networks import RandomNet
from torch import Tensor, nn

from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.masked import masked_outputs
from rarefy.graph.stand_ins import shake

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def counts_channels(model: nn.Module) -> bool:
    """Whether a norm or a product of activations looks at how many channels there are."""
    kinds = {getattr(m, "kind", "") for m in model.modules()}
    return bool(kinds & {"layer", "hand", "group"}) or any(
        type(m).__name__ == "Attention" for m in model.modules()
    )


def test_without_norms_that_count_it_is_the_network_with_zeros() -> None:
    checked = 0
    for seed in range(20):
        model = RandomNet(seed).eval()
        if counts_channels(model):
            continue
        coupling = couple(model, IMAGE)
        removed = coupling.removed(half(coupling))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        (found,) = masked_outputs(model, coupling.book, removed, IMAGE)
        with torch.no_grad():
            expected = zeroed(model, coupling, removed)(IMAGE)
        torch.testing.assert_close(found, expected)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        checked += 1
    assert checked > 3


def with_nothing_removed(model: nn.Module, x: Tensor) -> None:
    """The network as it is if nothing goes."""
    coupling = couple(model, x)
    (found,) = masked_outputs(model, coupling.book, coupling.removed([]), x)
    torch.testing.assert_close(found, model(x).detach())


def test_if_nothing_goes_it_is_the_network() -> None:
    for seed in range(6):
        with_nothing_removed(RandomNet(seed).eval(), IMAGE)


def first(model: nn.Module, x: Tensor, gone: list[int]) -> tuple[Coupling, Cuts]:
    """A cut of the first group."""
    coupling = couple(model, x)
    return coupling, [(coupling.groups[0], torch.tensor(gone))]


GONE, STAY = [1, 2, 5], [0, 3, 4, 6, 7]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_counts_what_stays(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8, bias=bias), nn.Linear(8, 2)).eval()
    nn.init.normal_(model[1].weight)
    coupling, cuts = first(model, ROW, GONE)
    (found,) = masked_outputs(model, coupling.book, coupling.removed(cuts), ROW)
    with torch.no_grad():
        y = model[0](ROW)[:, STAY]
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = y * model[1].weight[STAY] + (model[1].bias[STAY] if bias else 0)
        torch.testing.assert_close(found, y @ model[2].weight[:, STAY].T + model[2].bias)


def test_a_root_mean_square_counts_what_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8, eps=1e-6), nn.Linear(8, 2)).eval()
    coupling, cuts = first(model, ROW, GONE)
    (found,) = masked_outputs(model, coupling.book, coupling.removed(cuts), ROW)
    with torch.no_grad():
        y = model[0](ROW)[:, STAY]
        y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(found, y @ model[2].weight[:, STAY].T + model[2].bias)


def test_one_group_of_a_group_norm_counts_what_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1)).eval()
    coupling, cuts = first(model, IMAGE, GONE)
    (found,) = masked_outputs(model, coupling.book, coupling.removed(cuts), IMAGE)
    with torch.no_grad():
        y = model[0](IMAGE)[:, STAY]
        mean, var = y.mean((1, 2, 3), keepdim=True), y.var((1, 2, 3), keepdim=True, correction=0)
        y = (y - mean) / (var + 1e-5).sqrt()
        expected = torch.einsum("nchw,oc->nohw", y, model[2].weight[:, STAY, 0, 0])
        torch.testing.assert_close(found, expected + model[2].bias[:, None, None])


def test_a_mean_by_hand_counts_what_stays() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y = y - y.mean(-1, keepdim=True)
            return self.b(y * torch.rsqrt(y.var(-1, keepdim=True) + 1e-5))

    torch.manual_seed(0)
    model = Centred().eval()
    coupling, cuts = first(model, ROW, GONE)
    (found,) = masked_outputs(model, coupling.book, coupling.removed(cuts), ROW)
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.a.weight, small.a.bias = (
            nn.Parameter(p[STAY]) for p in (model.a.weight, model.a.bias)
        )
        small.b.weight = nn.Parameter(model.b.weight[:, STAY])
        torch.testing.assert_close(found, small(ROW))


def test_values_may_stand_in_for_parameters_that_hide_what_is_behind_them() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)).eval()
    nn.init.zeros_(model[1].weight)
    nn.init.constant_(model[1].bias, 1e-6)
    values = shake(model)
    assert set(values) == {"1.weight", "1.bias"}
    assert values["1.weight"].shape == (2, 8)
    assert float(values["1.weight"].abs().max()) > 1e-2
    again = shake(model)
    assert all(torch.equal(values[k], again[k]) for k in values)
    assert float(model[1].weight.detach().abs().max()) == 0
    coupling, cuts = first(model, ROW, GONE)
    (found,) = masked_outputs(model, coupling.book, coupling.removed(cuts), ROW, values)
    with torch.no_grad():
        y = model[0](ROW)[:, STAY] @ values["1.weight"][:, STAY].T + values["1.bias"]
    torch.testing.assert_close(found, y)
