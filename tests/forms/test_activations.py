# SPDX-License-Identifier: Apache-2.0
"""Quantisers on call sites: they act in every forward pass and come off without a trace."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.activations import (
    ActivationQuantizer,
    detach_quantizers,
    quantize_sites,
    quantizers_of,
)
from rarefy.forms.grid import Grid
from rarefy.forms.operators import fake_quantize

GRID = Grid(4, signed=False, symmetric=False)


class Net(nn.Module):
    """Two branches that are added and joined; the input is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return torch.cat([self.a(x) + self.b(x) * scale, self.a(x).relu()], 1)


def rounded(x: Tensor, low: float, high: float) -> Tensor:
    holder = quantize_sites(nn.Linear(1, 1), {"s": (low, high)}, lambda _: GRID)
    form = holder.at_site()["s"]
    assert isinstance(form, ActivationQuantizer)
    return fake_quantize(x, form.scale, form.zero_point, -1, GRID.low, GRID.high)


def test_sites_are_reached_wherever_they_are() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 3)
    plain = copy.deepcopy(model)
    sites = {"input#0": (-2.0, 2.0), ":add#0": (-1.0, 1.0), ":relu#0": (0.0, 1.0)}
    quantize_sites(model, sites, lambda _: GRID)
    q = rounded(x, -2, 2)
    added = rounded(plain.a(q) + plain.b(q), -1, 1)
    joined = torch.cat([added, rounded(plain.a(q).relu(), 0, 1)], 1)
    assert torch.equal(model(x), joined)
    assert torch.equal(model(x=x), joined)  # also when the input is named


def test_a_call_may_read_what_was_there_before_the_quantiser() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin()
            return torch.cat([y + x, torch.stack([y, y]).sum(0), y * 2], 1)

    x = torch.randn(5, 3)
    model, s = Sums(), x.sin()
    model.register_parameter("w", nn.Parameter(torch.ones(1)))
    unrounded = [(":add#0", ":sin#0"), (":stack#0", ":sin#0")]
    quantize_sites(model, {":sin#0": (-1.0, 1.0)}, lambda _: GRID, unrounded)
    expected = torch.cat([s + x, 2 * s, rounded(s, -1, 1) * 2], 1)
    assert torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_the_second_call_of_a_module_is_another_site() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 3)
    plain = copy.deepcopy(model)
    quantize_sites(model, {"a:linear#1": (-1.0, 1.0)}, lambda _: GRID)
    found = model(x)
    assert torch.equal(found[:, :4], plain(x)[:, :4])
    assert torch.equal(found[:, 4:], rounded(plain.a(x), -1, 1).relu())


def test_quantisers_are_saved_moved_and_copied_with_the_network() -> None:
    model, x = Net(), torch.randn(2, 3)
    quantize_sites(model, {"input#0": (-1.0, 1.0)}, lambda _: GRID)
    assert any("activation_quantizers" in name for name in model.state_dict())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    assert not torch.equal(twin(x), Net()(x))
    found = quantizers_of(twin)
    assert found is not None
    assert found is not quantizers_of(model)
    quantizers_of(twin).quantizers[0].scale.mul_(2)  # type: ignore[union-attr, operator]
    assert not torch.equal(twin(x), model(x))


def test_detaching_leaves_no_trace() -> None:
    model, x = Net(), torch.randn(2, 3)
    before, names = model(x), list(model.state_dict())
    quantize_sites(model, {"input#0": (-0.1, 0.1)}, lambda _: GRID)
    detach_quantizers(model)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    detach_quantizers(model)


def test_new_sites_replace_the_old() -> None:
    model, x = Net(), torch.randn(2, 3)
    quantize_sites(model, {"input#0": (-0.1, 0.1)}, lambda _: GRID)
    quantize_sites(model, {":cat#0": (-3.0, 3.0)}, lambda _: GRID)
    found = quantizers_of(model)
    assert found is not None
    assert found.sites == [":cat#0"]
    assert model(x).unique().numel() <= 16


def test_a_failed_pass_leaves_the_network_usable() -> None:
    model = Net()
    quantize_sites(model, {"input#0": (-1.0, 1.0)}, lambda _: GRID)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
    holder = quantizers_of(model)
    assert holder is not None
    assert holder.active == []
    assert model(torch.randn(2, 3)).shape == (2, 8)


def test_gradients_pass_through() -> None:
    model, x = Net(), torch.randn(4, 3, requires_grad=True)
    quantize_sites(model, {"input#0": (-3.0, 3.0), ":add#0": (-3.0, 3.0)}, lambda _: GRID)
    model(x).square().sum().backward()
    assert x.grad is not None
    assert model.a.weight.grad is not None


class Parts(nn.Module):
    """A layer, and what a function makes of its result."""

    def __init__(self, how: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.a, self.how = nn.Linear(2, 2), how

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(tuple(self.how(self.a(x)))[:2], 1)


def test_a_site_that_gives_no_floats_is_named() -> None:
    model = Parts(lambda y: y.sort(1))
    quantize_sites(model, {":sort#0": (-1.0, 1.0)}, lambda _: GRID)
    with pytest.raises(ModelError, match="call ':sort#0' gave a sort"):
        model(torch.randn(1, 2))


def test_parts_of_a_tensor_are_rounded_alike() -> None:
    model, x = Parts(lambda y: y.split(1, 1)), torch.randn(5, 2)
    exact = model.a(x)
    holder = quantize_sites(model, {":split#0": (-1.0, 1.0)}, lambda _: GRID)
    assert torch.equal(model(x), holder.quantizers[0](exact))
    assert not torch.equal(model(x), exact)


def test_a_sequential_that_calls_its_quantisers_last_is_unharmed() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    x = torch.randn(3, 2)
    before = model(x)
    quantize_sites(model, {"input#0": (-8.0, 8.0)}, lambda _: GRID)
    assert model(x).shape == before.shape
    assert not torch.equal(model(x), before)
