# SPDX-License-Identifier: Apache-2.0
"""A half-compressed network as plain data: everything comes back, nothing foreign gets in."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import FileError
from rarefy.forms.activations import quantize_sites, quantizers_of
from rarefy.forms.affine import OnGrid, Quantised
from rarefy.forms.codebook import Codebook
from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.mask import Mask, set_mask
from rarefy.forms.shadow import Form, bake, dress, forms_of
from rarefy.forms.snapshot import find_class, restore, snapshot


class Net(nn.Module):
    """A class of the user's own, with plain attributes, a buffer that is not saved, and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shape, self.label = 2, (1, 2), "net"
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight
        self.register_buffer("scratch", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.tied(self.head(x)) + self.scratch[0]


def masks(model: Net) -> nn.Module:
    set_mask(model.conv, torch.rand(4, 1, 3, 3) > 0.5)
    return model


def codebook(model: Net) -> nn.Module:
    dress(model.conv, "weight", Codebook(torch.randint(0, 3, (4, 1, 3, 3)), 2, zero=True))
    return model


def grid(model: Net) -> nn.Module:
    set_mask(model.conv, torch.rand(4, 1, 3, 3) > 0.5)
    w = model.conv.weight.detach()
    scale, zero_point = grid_for_range(w.amin((1, 2, 3)), w.amax((1, 2, 3)), Grid(4))
    dress(model.conv, "weight", OnGrid(scale, zero_point, Grid(4), 0))
    return model


def baked(model: Net) -> nn.Module:
    return bake(grid(model))


def quantised_activations(model: Net) -> nn.Module:
    quantize_sites(model, {"input#0": (-2.0, 2.0), "conv:conv2d#0": (-1.0, 3.0)}, lambda _: Grid(4))
    return model


def surgery(model: Net) -> nn.Module:
    model.norm = nn.Identity()
    model.conv = nn.Conv2d(1, 4, 1, bias=False).requires_grad_(False)
    model.shape = (7, [1, (2, 3)])
    model.train()
    return model


def wrapped(model: Net) -> nn.Module:
    return nn.Sequential(model, nn.Linear(4, 2))


CHANGES: list[Callable[[Net], nn.Module]] = [
    masks, codebook, grid, baked, quantised_activations, surgery, wrapped,
]  # fmt: skip


def through_text(model: nn.Module, original: nn.Module) -> nn.Module:
    structure, tensors = snapshot(model)
    return restore(original, json.loads(json.dumps(structure)), tensors)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_snapshot_is_exact(change: Callable[[Net], nn.Module]) -> None:
    torch.manual_seed(0)
    original = Net().eval()
    kept = copy.deepcopy(original.state_dict())
    changed = change(copy.deepcopy(original))
    back = through_text(changed, original)
    x = torch.randn(3, 1, 6, 6)
    assert [m.training for m in back.modules()] == [m.training for m in changed.modules()]
    assert torch.equal(back.eval()(x), changed.eval()(x))
    one, other = back.state_dict(), changed.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [(n, p.requires_grad) for n, p in back.named_parameters()] == [
        (n, p.requires_grad) for n, p in changed.named_parameters()
    ]
    assert [type(m).__name__ for m in back.modules()] == [
        type(m).__name__ for m in changed.modules()
    ]
    assert all(torch.equal(t, kept[name]) for name, t in original.state_dict().items())
    assert snapshot(back)[0] == snapshot(changed)[0]


def test_ties_and_plain_attributes_come_back() -> None:
    original = Net()
    changed = copy.deepcopy(original)
    changed.heads, changed.shape = 3, (9, (8, [7]))  # type: ignore[assignment]
    back = through_text(changed, original)
    assert isinstance(back, Net)
    assert back.head.weight is back.tied.weight
    assert (back.heads, back.shape, back.label) == (3, (9, (8, [7])), "net")
    assert "scratch" not in back.state_dict()


def test_quantised_activations_act_again() -> None:
    original = Net().eval()
    back = through_text(quantised_activations(copy.deepcopy(original)), original)
    found = quantizers_of(back)
    assert found is not None
    assert found.sites == ["input#0", "conv:conv2d#0"]
    x = torch.randn(2, 1, 6, 6)
    assert not torch.equal(back(x), original(x))


def test_forms_of_a_restored_network_can_be_trained_and_baked() -> None:
    original = Net()
    back = through_text(grid(copy.deepcopy(original)), original)
    assert isinstance(back, Net)
    assert [type(form) for form in forms_of(back.conv)] == [Mask, OnGrid]
    back(torch.randn(4, 1, 6, 6)).square().mean().backward()
    assert back.conv.parametrizations["weight"].original.grad is not None
    bake(back)
    assert isinstance(forms_of(back.conv)[-1], Quantised)


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "torch.nn.functional:relu"])
def test_no_foreign_class_is_made(name: str) -> None:
    structure, tensors = snapshot(Net())
    changed: dict[str, Any] = json.loads(json.dumps(structure))
    changed["children"]["conv"]["class"] = name
    with pytest.raises(FileError, match="is not part of the network"):
        restore(Net(), changed, tensors)


class Double(Form):
    """A form of a method of the user's own."""

    kind = "dense"

    def forward(self, w: Tensor) -> Tensor:
        return 2 * w

    def right_inverse(self, w: Tensor) -> Tensor:
        return w / 2


def test_a_form_of_the_user_comes_back_where_its_module_is_imported() -> None:
    original = Net().eval()
    changed = copy.deepcopy(original)
    dress(changed.conv, "weight", Double())
    back = through_text(changed, original)
    assert isinstance(back, Net)
    assert type(forms_of(back.conv)[0]) is Double
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(back(x), changed.eval()(x))


def test_a_class_of_the_network_itself_may_be_made() -> None:
    known = {"somewhere:Net": Net}
    assert find_class("somewhere:Net", known) is Net
    assert find_class("torch.nn.modules.linear:Identity", {}) is nn.Identity


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_convolutions_that_were_put_in_come_back_with_their_padding(mode: str) -> None:
    original = Net().eval()
    changed = copy.deepcopy(original)
    first = nn.Conv2d(1, 2, 3, padding=(2, 1), padding_mode=mode)
    changed.conv = nn.Sequential(first, nn.Conv2d(2, changed.conv.out_channels, 1))
    x = torch.randn(2, 1, 5, 5)
    back = through_text(changed, original)
    assert torch.equal(back.conv(x), changed.conv(x))
