# SPDX-License-Identifier: Apache-2.0
"""Layers that multiply or normalise, each with the group that it must give, and cut by half."""

import pytest
import torch
from tests.graph.cuts import cut_half, halves_and_agrees, seen
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = (2, 3, 6, 6)


def chain(*middle: nn.Module, width: int = 8, last: int | None = None) -> nn.Sequential:
    """A pointwise convolution to `width` channels, something, and one from `last` channels."""
    torch.manual_seed(0)
    first, end = nn.Conv2d(3, width, 1), nn.Conv2d(last or width, 2, 1)
    return nn.Sequential(first, *middle, end)


SPATIAL = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.AvgPool1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.AvgPool3d),
}


@pytest.mark.parametrize("dims", SPATIAL)
def test_convolutions_of_one_to_three_axes(dims: int) -> None:
    conv, transposed, norm, pool = SPATIAL[dims]
    model = nn.Sequential(
        conv(3, 6, 3, padding=1), norm(6), nn.ReLU(), pool(2), transposed(6, 4, 2), conv(4, 2, 1)
    )
    x = torch.randn(2, 3, *[6] * dims)
    assert seen(model, x) == {
        "0": (6, {"0.weight:0": 6, "0.bias:0": 6, "1.weight:0": 6, "1.bias:0": 6,
                  "1.running_mean:0": 6, "1.running_var:0": 6, "4.weight:0": 6}),
        "4": (4, {"4.weight:1": 4, "4.bias:0": 4, "5.weight:1": 4}),
    }  # fmt: skip
    halves_and_agrees(model, x)
    assert model[0].weight.shape[:2] == (3, 3)
    assert model[4].weight.shape[:2] == (3, 2)
    assert model[1].running_var.shape == (3,)
    assert model[1].num_features == 3
    assert (model[4].in_channels, model[4].out_channels) == (3, 2)
    assert (model[5].in_channels, model[5].out_channels) == (2, 2)


def test_a_depthwise_layer_belongs_to_the_layer_before_it() -> None:
    model, x = chain(nn.Conv2d(8, 8, 3, groups=8, padding=1)), torch.randn(IMAGE)
    expected = {"0.weight:0": 8, "0.bias:0": 8, "1.weight:0": 8, "1.bias:0": 8, "2.weight:1": 8}
    assert seen(model, x) == {"0": (8, expected)}
    halves_and_agrees(model, x)
    assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (4, 4, 4)
    assert model[1].weight.shape == (4, 1, 3, 3)


def test_a_depthwise_layer_with_a_multiplier_gives_several_channels_per_unit() -> None:
    model, x = chain(nn.Conv2d(6, 18, 3, groups=6), width=6, last=18), torch.randn(IMAGE)
    expected = {"0.weight:0": 6, "0.bias:0": 6, "1.weight:0": 18, "1.bias:0": 18, "2.weight:1": 18}
    assert seen(model, x) == {"0": (6, expected)}
    halves_and_agrees(model, x)
    assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (3, 3, 9)


def test_of_many_small_groups_whole_groups_go() -> None:
    model, x = chain(nn.Conv2d(8, 12, 3, groups=4), last=12), torch.randn(IMAGE)
    expected = {"0.weight:0": 8, "0.bias:0": 8, "1.weight:0": 12, "1.bias:0": 12, "2.weight:1": 12}
    assert seen(model, x)["0"] == (4, expected)
    halves_and_agrees(model, x)
    assert model[1].groups == 2
    assert model[1].weight.shape == (6, 2, 3, 3)


def test_of_few_wide_groups_equally_many_channels_of_each_go() -> None:
    model, x = chain(nn.Conv2d(8, 12, 3, groups=2), last=12), torch.randn(IMAGE)
    assert seen(model, x) == {
        "0": (4, {"0.weight:0": 8, "0.bias:0": 8, "1.weight:1": 4}),
        "1": (6, {"1.weight:0": 12, "1.bias:0": 12, "2.weight:1": 12}),
    }
    halves_and_agrees(model, x)
    assert model[1].groups == 2
    assert model[1].weight.shape == (6, 2, 3, 3)
    assert (model[1].in_channels, model[1].out_channels) == (4, 6)


def test_a_grouped_transposed_layer() -> None:
    model, x = chain(nn.ConvTranspose2d(6, 9, 2, groups=3), width=6, last=9), torch.randn(IMAGE)
    ((size, touched),) = seen(model, x).values()
    assert size == 3
    assert touched == {
        "0.weight:0": 6,
        "0.bias:0": 6,
        "1.weight:0": 6,
        "1.bias:0": 9,
        "2.weight:1": 9,
    }
    halves_and_agrees(model, x)
    assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (2, 4, 6)


def test_the_input_of_a_grouped_layer_that_is_the_networks_can_only_lose_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(4, 12, 1, groups=2), nn.Conv2d(12, 2, 1))
    x = torch.randn(2, 4, 6, 6)
    assert seen(model, x) == {"0": (6, {"0.weight:0": 12, "0.bias:0": 12, "1.weight:1": 12})}
    halves_and_agrees(model, x)
    assert (model[0].in_channels, model[0].out_channels, model[0].groups) == (4, 6, 2)


@pytest.mark.parametrize(
    ("middle", "last", "size"),
    [
        (nn.PReLU(8), 8, 8),
        (nn.PReLU(), 8, 8),
        (nn.PixelShuffle(2), 2, 2),
        (nn.PixelUnshuffle(2), 32, 8),
        (nn.ChannelShuffle(2), 8, 4),
        (nn.Upsample(scale_factor=2), 8, 8),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 8, 8),
        (nn.Upsample(size=(5, 7), mode="bicubic"), 8, 8),
        (nn.AdaptiveAvgPool2d(1), 8, 8),
        (nn.AdaptiveMaxPool2d(2), 8, 8),
        (nn.AvgPool2d(2), 8, 8),
        (nn.ReflectionPad2d(1), 8, 8),
        (nn.ReplicationPad2d(1), 8, 8),
        (nn.ZeroPad2d(1), 8, 8),
        (nn.Dropout2d(), 8, 8),
        (nn.Hardswish(), 8, 8),
        (nn.GELU(), 8, 8),
        (nn.Mish(), 8, 8),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8, 8),
        (nn.BatchNorm2d(8), 8, 8),
        (nn.GroupNorm(8, 8), 8, 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_between_two_convolutions(middle: nn.Module, last: int, size: int) -> None:
    model, x = chain(middle, last=last), torch.randn(IMAGE)
    found = seen(model, x)
    assert [n for n, _ in found.values()] == [size]
    assert found["0"][1]["0.weight:0"] == 8
    assert found["0"][1]["2.weight:1"] == last
    halves_and_agrees(model, x)
    assert model[0].weight.shape[0] == 4
    assert model[2].weight.shape[1] == last // 2
    shape = model[1].weight.shape if getattr(model[1], "weight", None) is not None else None
    assert shape in (None, (4,), (1,))


@pytest.mark.parametrize(("groups", "size"), [(1, 8), (2, 2), (4, 4), (8, 8)])
def test_a_group_norm_loses_whole_groups_and_one_group_counts_what_is_there(
    groups: int, size: int
) -> None:
    model, x = chain(nn.GroupNorm(groups, 8)), torch.randn(IMAGE)
    assert [n for n, _ in seen(model, x).values()] == [size]
    _, outcome = cut_half(model, x)
    assert outcome.cut == {"0": size // 2}
    assert not outcome.spared
    assert model[1].weight.shape == (4,)
    assert model[1].num_channels == 4
    assert model[1].num_groups == (1 if groups == 1 else groups // 2)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm((8,), bias=False)])
def test_a_norm_over_the_last_axis_is_told_its_size(norm: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 2)), torch.randn(3, 5)
    touched = {"0.weight:0": 8, "0.bias:0": 8, "2.weight:1": 8}
    touched |= {f"1.{name}:0": 8 for name, _ in norm.named_parameters()}
    assert seen(model, x) == {"0": (8, touched)}
    _, outcome = cut_half(model, x)
    assert outcome.cut == {"0": 4}
    assert model[1].normalized_shape == (4,)
    assert model[1](torch.ones(2, 4)).shape == (2, 4)


class Products(nn.Module):
    """Two layers whose results are multiplied as matrices: over what is between them, or beside it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.left, self.right, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        if self.how == "inner":
            return a @ b.transpose(1, 2)
        if self.how == "inner einsum":
            return torch.einsum("bnc,bmc->bnm", a, b)
        return self.head(a.transpose(1, 2) @ b)


@pytest.mark.parametrize("how", ["inner", "inner einsum"])
def test_what_is_summed_over_in_a_product_is_cut_alike(how: str) -> None:
    model, x = Products(how), torch.randn(2, 4, 5)
    touched = {"left.weight:0": 6, "left.bias:0": 6, "right.weight:0": 6, "right.bias:0": 6}
    assert seen(model, x) == {"left": (6, touched)}
    _, outcome = cut_half(model, x)
    assert outcome.cut == {"left": 3}


def test_what_stands_beside_a_product_goes_its_own_way() -> None:
    model, x = Products("outer"), torch.randn(2, 4, 5)
    found = seen(model, x)  # rows of the product are rows of the output, which stay
    assert found == {"right": (6, {"right.weight:0": 6, "right.bias:0": 6, "head.weight:1": 6})}
    halves_and_agrees(model, x)


class Functional(nn.Module):
    """A linear layer whose weight is computed: transposed, scaled, or normalised."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.randn(6, 5))
        self.scale, self.head = nn.Parameter(torch.rand(6, 1) + 0.5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.how == "transposed":
            return self.head(x @ weight.t())
        if self.how == "reshaped":
            weight = weight.reshape(2, 3, 5).reshape(6, 5)
        return self.head(F.linear(x, weight))


@pytest.mark.parametrize("how", ["plain", "transposed", "reshaped"])
def test_weights_that_are_computed_need_no_special_case(how: str) -> None:
    model, x = Functional(how), torch.randn(3, 5)
    if how == "reshaped":  # the sizes stand in the code as numbers
        assert seen(model, x) == {}
        return
    assert seen(model, x) == {"weight": (6, {"weight:0": 6, "scale:0": 6, "head.weight:1": 6})}
    halves_and_agrees(model, x)
    assert model.weight.shape == (3, 5)
    assert model.scale.shape == (3, 1)


class Cropped(nn.Module):
    """Looks at boxes in a picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.picture, self.box = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import roi_align

        boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 5.0, 5.0]])] * len(x)
        crops = roi_align(self.picture(x), boxes, (2, 2), sampling_ratio=2)
        return self.box(crops.flatten(1))


def test_channels_of_boxes_are_those_of_the_picture() -> None:
    model, x = Cropped(), torch.randn(IMAGE)
    expected = {"picture.weight:0": 8, "picture.bias:0": 8, "box.weight:1": 32}
    assert seen(model, x) == {"picture": (8, expected)}
    halves_and_agrees(model, x)
