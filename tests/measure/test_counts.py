# SPDX-License-Identifier: Apache-2.0
"""Counts agree with what can be counted by hand, whatever form the weights have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from rarefy.forms.affine import OnGrid
from rarefy.forms.codebook import Codebook
from rarefy.forms.grid import Grid
from rarefy.forms.mask import Mask
from rarefy.forms.shadow import bake, dress
from rarefy.measure.counts import DISTINCT, distinct_values, layers, macs, nonzero, parameters
from rarefy.zoo.resnet import CifarResNet


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)  # type: ignore[operator]


LENGTH, INPUTS, HIDDEN = 7, 3, 5
CELL = INPUTS * HIDDEN + HIDDEN * HIDDEN
CASES = {
    "grouped convolution": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 7), 5 * 7 * 6 * 2 * 9),
    "1-d": (nn.Conv1d(4, 6, 3), (4, 9), 7 * 6 * 4 * 3),
    "3-d": (nn.Conv3d(2, 3, 2, stride=2), (2, 4, 4, 4), 8 * 3 * 2 * 8),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 25 * 4 * 6 * 9),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), 25 * 4 * 3 * 9),
    "linear on sequences": (nn.Linear(4, 6), (5, 4), 5 * 4 * 6),
    "linear without bias": (nn.Linear(4, 6, bias=False), (4,), 4 * 6),
    "bilinear": (Calls(lambda x: F.bilinear(x, x, torch.ones(5, 4, 4))), (4,), 5 * 4 * 4),
    "batched product": (Calls(lambda x: x @ x.transpose(1, 2)), (3, 4), 3 * 3 * 4),
    "product with a vector": (Calls(lambda x: torch.ones(6, 4) @ x[0]), (4,), 6 * 4),
    "dot product": (Calls(lambda x: torch.dot(x[0], x[0])), (4,), 4),
    "einsum": (Calls(lambda x: torch.einsum("bij,bkj->bik", x, x)), (3, 4), 3 * 3 * 4),
    "attention": (
        Calls(lambda x: F.scaled_dot_product_attention(x, x, x)),
        (2, 5, 4),
        2 * 2 * 5 * 5 * 4,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (5, 8),
        5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8 + 2 * 5 * 8 * 16,
    ),
    "RNN": (nn.RNN(INPUTS, HIDDEN, batch_first=True), (LENGTH, INPUTS), LENGTH * CELL),
    "GRU": (nn.GRU(INPUTS, HIDDEN, batch_first=True), (LENGTH, INPUTS), LENGTH * 3 * CELL),
    "LSTM": (nn.LSTM(INPUTS, HIDDEN, batch_first=True), (LENGTH, INPUTS), LENGTH * 4 * CELL),
    "LSTM, two layers and directions": (
        nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True, bidirectional=True),
        (LENGTH, INPUTS),
        LENGTH * 4 * 2 * (CELL + 3 * HIDDEN * HIDDEN),
    ),
    "no product": (nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2)), (4, 6), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_macs_are_those_counted_by_hand(name: str) -> None:
    network, shape, expected = CASES[name]
    network.train()
    assert macs(network, torch.randn(3, *shape)) == expected
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_macs_leave_torch_as_it_was() -> None:
    before = (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled())
    macs(nn.Linear(2, 2), torch.randn(1, 2))
    assert (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()) == before


def test_macs_take_tuples_mappings_and_the_meta_device() -> None:
    product = Calls(lambda a, b: a @ b)
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert macs(product, (a, b)) == 60
    with torch.device("meta"):
        assert macs(nn.Conv2d(3, 8, 3), torch.zeros(4, 3, 6, 6)) == 16 * 8 * 27

    class Named(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    assert macs(Named(), {"x": a, "y": b}) == 60


@settings(deadline=None, max_examples=30)
@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.integers(3, 8),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
)
def test_macs_of_any_convolution(
    inputs: int, outputs: int, groups: int, size: int, kernel: int, stride: int
) -> None:
    layer = nn.Conv2d(inputs * groups, outputs * groups, kernel, stride, groups=groups)
    x = torch.randn(2, inputs * groups, size, size)
    # every output value is a sum over one group's inputs and the kernel
    assert macs(layer, x) == layer(x[:1]).numel() * inputs * kernel**2


def test_resnet20_by_hand() -> None:
    net = CifarResNet(20)
    first = 32 * 32 * 9 * 3 * 16
    stages = [
        6 * 32 * 32 * 9 * 16 * 16,
        16 * 16 * 9 * (16 * 32 + 5 * 32 * 32),
        8 * 8 * 9 * (32 * 64 + 5 * 64 * 64),
    ]
    assert macs(net, torch.randn(2, 3, 32, 32)) == first + sum(stages) + 640 == 40_551_040
    weights = 9 * (3 * 16 + 6 * 256 + 512 + 5 * 1024 + 2048 + 5 * 4096) + 650
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert parameters(net) == weights + norms == 269_722


def forms() -> dict[str, nn.Module]:
    """One 4 x 6 weight in every form, six of its values zero."""
    torch.manual_seed(0)
    w = torch.randn(4, 6)
    w[:, 0] = 0
    w[0, 1:3] = 0
    made: dict[str, nn.Module] = {}
    for kind in ("dense", "mask", "codebook", "quantised", "baked", "mask+quantised"):
        layer = nn.Linear(6, 4)
        with torch.no_grad():
            layer.weight.copy_(w if kind != "mask" else torch.where(w == 0, 1.0, w))
        scale, zero = torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int8)
        grid = Grid(8, narrow=True)
        if "mask" in kind:
            dress(layer, "weight", Mask(w != 0))
        if kind == "codebook":
            indices = torch.where(w == 0, 0, torch.arange(24).view(4, 6) % 3 + 1)
            dress(layer, "weight", Codebook(indices, 3, zero=True))
        if "quantised" in kind or kind == "baked":
            dress(layer, "weight", OnGrid(scale, zero, grid, 0))
        made[kind] = bake(layer) if kind == "baked" else layer
    return made


@pytest.mark.parametrize(
    "kind", ["dense", "mask", "codebook", "quantised", "baked", "mask+quantised"]
)
def test_a_weight_counts_once_whatever_its_form(kind: str) -> None:
    net = nn.Sequential(forms()[kind])
    value = net[0].weight
    assert parameters(net) == 24 + 4
    assert nonzero(net) == int(torch.count_nonzero(value)) + 4
    if kind in ("dense", "mask", "codebook"):
        assert nonzero(net) == 24 - 6 + 4
    (row,) = layers(net)
    assert (row.name, row.type, row.shape) == ("0", "Linear", (4, 6))
    assert (row.parameters, row.nonzero) == (28, nonzero(net))
    assert row.distinct == len(value.unique())
    assert row.form == {"baked": "quantised"}.get(kind, kind)


def test_shared_weights_count_once_and_foreign_parametrizations_by_value() -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert parameters(tied) == 16
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)))
    assert parameters(normed) == 28
    assert [row.parameters for row in layers(normed)] == [28]


def test_buffers_are_not_parameters() -> None:
    net = nn.BatchNorm2d(5)
    assert parameters(net) == 10
    assert nonzero(net) == 5


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.integers(-5, 5), max_size=60), limit=st.integers(1, 12))
def test_distinct_values_stop_at_the_limit(values: list[int], limit: int) -> None:
    different = len(set(values))
    found = distinct_values(torch.tensor(values, dtype=torch.float32), limit)
    assert found == (different if different <= limit else None)
    assert DISTINCT == 65_536
