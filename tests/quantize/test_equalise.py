# SPDX-License-Identifier: Apache-2.0
"""Equalised networks compute the same, and both sides of every pair have equal ranges."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.mask import set_mask
from rarefy.quantize.chains import pairs_of_layers
from rarefy.quantize.equalise import (
    Equalise,
    equalise_pairs,
    equalising_factors,
    input_reach,
    multiply_inputs,
    output_reach,
)
from rarefy.step import Context
from rarefy.task import Task


class Net(nn.Module):
    """A chain with a depthwise, a grouped and a padded convolution, pooling, flattening; and a sum."""

    def __init__(self, clip: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.point = nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 4, 1)
        self.side, self.pool, self.clip = nn.Conv2d(6, 4, 1), nn.MaxPool2d(2), clip()
        self.fc1, self.fc2 = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(self.norm(self.stem(x)))
        x = self.grouped(nn.functional.leaky_relu(self.depthwise(x), 0.1))
        x = self.pool(self.point(x) + self.side(x)).relu()
        return self.fc2(self.fc1(x.flatten(1)).relu())


def uneven(clip: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A network whose channels differ by orders of magnitude."""
    torch.manual_seed(0)
    model = Net(clip)
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6))
    with torch.no_grad():
        for module in (model.stem, model.depthwise, model.fc1):
            w = module.weight
            w.mul_(torch.exp(2 * torch.randn(len(w))).view(-1, *[1] * (w.dim() - 1)))
    return model.eval()


def context_of(model: nn.Module) -> Context:
    x = torch.randn(2, 3, 6, 6)
    return Context(Task("random", x, labelled=False, calibration=[x]), model, torch.device("cpu"))


def test_pairs_are_found_where_a_factor_can_pass() -> None:
    model = uneven()
    model.norm = nn.Identity()
    pairs = pairs_of_layers(model, torch.randn(2, 3, 6, 6))
    found = [(p.first, p.second, p.between, p.whole) for p in pairs]
    assert found == [
        ("stem", "depthwise", ("relu",), False),
        ("depthwise", "grouped", ("leaky_relu",), True),
        ("fc1", "fc2", ("relu",), True),
    ]  # what the sum reads has two readers or two makers


def test_the_network_computes_the_same_and_ranges_agree() -> None:
    model = uneven()
    exact = copy.deepcopy(model)
    context = context_of(model)
    found = Equalise(rounds=60).apply(model, context)
    x = torch.randn(16, 3, 6, 6)
    with torch.no_grad():
        y, z = found(x), exact(x)
    assert float((y - z).abs().max()) <= 1e-5 * float(z.abs().max())
    assert context.record["pairs"] == [
        ["stem", "depthwise"],
        ["depthwise", "grouped"],
        ["fc1", "fc2"],
    ]
    for first, second in context.record["pairs"]:
        first, second = found.get_submodule(first), found.get_submodule(second)
        reach = output_reach(first)
        assert torch.allclose(reach, input_reach(second, len(reach)), rtol=1e-2)


def test_in_double_precision_it_is_exact() -> None:
    model = uneven().double()
    model.norm = nn.Identity()
    exact, x = copy.deepcopy(model), torch.randn(4, 3, 6, 6).double()
    equalise_pairs(model, pairs_of_layers(model, x))
    assert float((model(x) - exact(x)).abs().max()) <= 1e-13 * float(exact(x).abs().max())


def test_a_clip_stands_in_the_way_unless_it_is_replaced() -> None:
    model = uneven(nn.ReLU6)
    kept, replaced = (context_of(model) for _ in range(2))
    Equalise().apply(copy.deepcopy(model), kept)
    found = Equalise(clips="replace").apply(copy.deepcopy(model), replaced)
    assert ["stem", "depthwise"] not in kept.record["pairs"]
    assert ["stem", "depthwise"] in replaced.record["pairs"]
    assert replaced.record["replaced_clips"] == 1
    assert type(found.clip) is nn.ReLU


def test_masks_stay_on_and_zeros_stay_zero() -> None:
    model = uneven()
    set_mask(model.fc1, torch.rand(5, 16) > 0.5)
    zeros = model.fc1.weight == 0
    exact, x = copy.deepcopy(model), torch.randn(4, 3, 6, 6)
    found = Equalise().apply(model, context_of(model))
    assert torch.all(found.fc1.weight[zeros] == 0)
    assert torch.allclose(found(x), exact(x), rtol=1e-3, atol=1e-4 * float(exact(x).abs().max()))


def test_factors_in_numbers_and_empty_channels() -> None:
    first, second = torch.tensor([4.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 0.0])
    assert equalising_factors(first, second).tolist() == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_inputs_are_scaled_group_by_group(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, groups=groups, bias=False)
    x, s = torch.randn(2, 4, 5, 5), torch.rand(4) + 0.5
    expected = layer(x * s.view(1, -1, 1, 1))
    multiply_inputs(layer, s)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    one = torch.zeros(4)
    one[2] = 1
    reach = (
        max(
            float(layer.weight[o].abs().max())
            for o in range(8)
            if groups == 1 or o // (8 // groups) == 2 // (4 // groups)
        )
        if groups == 4
        else None
    )
    if reach is not None:
        assert float(input_reach(layer, 4)[2]) == pytest.approx(reach)


def test_a_network_without_pairs_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.randn(2, 4)
    context = Context(Task("random", x, labelled=False), model, torch.device("cpu"))
    Equalise().apply(model, context)
    assert "no two layers stand one behind the other" in context.record["notes"][0]
