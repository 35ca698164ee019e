# SPDX-License-Identifier: Apache-2.0
"""Bits of every weight and site, read off small networks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import RecipeError
from rarefy.forms.mask import set_mask
from rarefy.quantize.layout import FLOAT, Layout, Widths, check_bits, folded_copy, lay_out
from rarefy.step import Context
from rarefy.task import Task


class Net(nn.Module):
    """A stem, two convolutions that are added, a linear layer; norms behind the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.left, self.left_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((self.left_norm(self.left(x)) + self.right(x)).mean((2, 3)))


def laid_out(model: nn.Module, runtime: str = "onnxruntime", **widths: int) -> Layout:
    batches = [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    task = Task("random", batches[0][:2], calibration=batches, labelled=False)
    context = Context(task, model, torch.device("cpu"), runtime=runtime)
    return lay_out(model, context, Widths(**widths))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6))
    return model.eval()


def test_ends_have_their_own_bits_and_sums_eight(net: nn.Module) -> None:
    found = laid_out(net, weights=3, activations=4, ends=7)
    assert {n: g.bits for n, g in found.weight_grids.items()} == {
        "stem": 7, "left": 3, "right": 3, "head": 7,
    }  # fmt: skip
    bits = {site: grid.bits for site, grid in found.site_grids.items()}
    assert bits["input#0"] == 7
    assert bits[":relu#0"] == 4
    assert bits["left:conv2d#0"] == bits["right:conv2d#0"] == 8  # only the sum reads them
    assert bits[":mean#0"] == 7
    assert found.weight_grids["left"].low == -4
    assert laid_out(net).weight_grids["left"].low == -127


def test_sites_stand_behind_norms_that_still_learn(net: nn.Module) -> None:
    found = laid_out(net)
    assert found.pairs == [("stem", "norm"), ("left", "left_norm")]
    assert found.training_site("left:conv2d#0") == "left_norm.norm:batch_norm#0"
    assert found.training_site("right:conv2d#0") == "right:conv2d#0"
    assert found.histograms["left:conv2d#0"].total() == 2 * 4 * 4 * 16


def test_the_network_stays_as_it_is_and_the_copy_computes_the_same(net: nn.Module) -> None:
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = laid_out(net)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(folded_copy(net, found.pairs)(x), net(x), atol=1e-5)


def test_float_has_no_grid(net: nn.Module) -> None:
    found = laid_out(net, weights=FLOAT, activations=FLOAT, ends=FLOAT)
    assert not found.weight_grids
    assert not found.site_grids
    assert not found.pairs
    ends = laid_out(net, weights=FLOAT, activations=8, ends=8)
    assert set(ends.weight_grids) == {"stem", "head"}


def test_a_runtime_s_own_integers_are_used(net: nn.Module) -> None:
    grids = laid_out(net, "tensorrt", activations=4).site_grids.values()
    assert {(g.signed, g.symmetric) for g in grids} == {(True, True)}


def test_shared_weights_keep_their_norms(net: nn.Module) -> None:
    net.right.weight = net.left.weight
    found = laid_out(net)
    assert found.pairs == [("stem", "norm")]
    assert [[x.name for x in shared] for shared in found.layers] == [
        ["stem"], ["left", "right"], ["head"],
    ]  # fmt: skip


def test_masked_layers_are_folded_in_the_copy_alone(net: nn.Module) -> None:
    set_mask(net.stem, net.stem.weight.abs() > 0.1)
    twin = copy.deepcopy(net)
    assert ("stem", "norm") in laid_out(net).pairs
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(net(x), twin(x))


def test_widths_between_a_grid_and_float_are_refused() -> None:
    check_bits("step", bits=8, activation_bits=32)
    with pytest.raises(RecipeError, match="step: bits=16 is not allowed: write 2 to 8, or 32"):
        check_bits("step", bits=16)


def test_codes_are_shifted_up_as_far_as_both_sides_leave_room(net: nn.Module) -> None:
    def rooms(**widths: int) -> list[int]:
        found = laid_out(net, **widths)
        return [found.room(shared) for shared in found.layers]

    assert rooms(weights=2, activations=3, ends=8) == [0, 5, 5, 0]
    assert rooms(weights=4, activations=2, ends=6) == [2, 4, 4, 2]
    assert rooms(weights=4, activations=8, ends=8) == [0, 0, 0, 0]
    assert rooms(weights=4, activations=FLOAT, ends=8) == [0, 0, 0, 0]
