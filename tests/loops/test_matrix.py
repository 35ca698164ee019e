# SPDX-License-Identifier: Apache-2.0
"""Every layer type as a matrix product, against torch's own layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.mask import set_mask
from rarefy.loops.matrix import (
    check_kinds,
    input_entries,
    matrix_of,
    put_matrix,
    rows_of,
    unit_entries,
)
from rarefy.select import Layer


class Conv1D(nn.Module):
    """A linear layer that stores its weight as (in, out), as in transformers' GPT-2."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


CASES = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3, bias=False), (2, 7, 5)),
    (nn.Linear(5, 3), (5,)),
    (Conv1D(3, 5), (2, 7, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (2, 4, 9, 7)),
    (nn.Conv2d(4, 6, 3, groups=2, padding="same"), (2, 4, 5, 5)),
    (nn.Conv2d(4, 4, 4, groups=4, padding="same"), (2, 4, 6, 5)),
    (nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"), (1, 4, 5, 6)),
    (nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), (4, 5, 6)),
    (nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 2, 4, 5, 6)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 4)),
    (nn.ConvTranspose2d(4, 6, (2, 3), stride=(3, 1), dilation=2, groups=2), (2, 4, 5, 4)),
    (nn.ConvTranspose2d(2, 3, 1, padding=1), (2, 2, 5, 4)),
    (nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2), (1, 2, 3, 2, 3)),
]


def outputs_as_rows(y: Tensor, module: nn.Module) -> Tensor:
    """(groups · out, N) of an output, bias taken off, examples before positions."""
    if isinstance(module, (nn.Linear, Conv1D)):
        bias = 0 if module.bias is None else module.bias
        return (y - bias).reshape(-1, y.shape[-1]).mT
    nd = len(module.kernel_size)  # type: ignore[arg-type]
    y = y if y.dim() == nd + 2 else y.unsqueeze(0)
    flat = y.flatten(2).transpose(0, 1).flatten(1)  # (out, B · positions)
    return flat - module.bias.view(-1, 1)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("module", "shape"), CASES)
def test_rows_times_matrix_is_the_layer(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    product = rows_of(module, x) @ matrix_of(Layer("x", module)).mT  # (N, out) or (G, N, out / G)
    got = product.mT.flatten(0, -2)
    torch.testing.assert_close(got, outputs_as_rows(module(x), module), atol=1e-5, rtol=1e-5)


def test_output_size_of_a_transposed_convolution() -> None:
    module = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 5, 4)
    y = module(x, output_size=(10, 8))
    got = rows_of(module, x, (10, 8)) @ matrix_of(Layer("x", module)).mT
    torch.testing.assert_close(got.mT, outputs_as_rows(y, module), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("module", "shape"), CASES)
def test_put_is_the_inverse_of_matrix(module: nn.Module, shape: tuple[int, ...]) -> None:
    layer = Layer("x", module)
    before, matrix = layer.weight.detach().clone(), matrix_of(layer).clone()
    put_matrix(layer, torch.zeros_like(matrix))
    assert not layer.weight.any()
    put_matrix(layer, matrix)
    assert torch.equal(layer.weight, before)


def test_put_goes_through_forms() -> None:
    module = nn.ConvTranspose1d(4, 4, 3, groups=2)
    layer = Layer("x", module)
    keep = torch.rand(4, 2, 3) > 0.5
    set_mask(module, keep)
    put_matrix(layer, torch.ones_like(matrix_of(layer)))
    assert torch.equal(layer.weight, keep.float())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_entries_are_the_weights_that_matter(data: st.DataObject) -> None:
    """The gradient of marked outputs (or of all, by marked inputs) is non-zero just there."""
    module, shape = data.draw(st.sampled_from([c for c in CASES if len(c[1]) > 1]))
    y = module(torch.ones(shape))
    spatial = not isinstance(module, (nn.Linear, Conv1D))
    channel = (-len(module.kernel_size) - 1) if spatial else -1
    draw = st.integers(0, 1)
    units = torch.tensor([data.draw(draw) for _ in range(y.shape[channel])], dtype=torch.bool)
    columns = torch.tensor([data.draw(draw) for _ in range(shape[channel])], dtype=torch.bool)
    w = module.weight
    trailing = [1] * (-channel - 1)
    (by_unit,) = torch.autograd.grad((y * units.view(-1, *trailing)).sum(), w)
    assert torch.equal(anywhere(by_unit), anywhere(unit_entries(module, units).expand_as(w)))
    x = torch.ones(shape) * columns.view(-1, *trailing)
    (by_column,) = torch.autograd.grad(module(x).sum(), w)
    assert torch.equal(anywhere(by_column), anywhere(input_entries(module, columns).expand_as(w)))


def anywhere(values: Tensor) -> Tensor:
    """Which of the first two axes' entries have anything but zeros in the kernel."""
    return (values != 0).flatten(2).any(-1) if values.dim() > 2 else values != 0


def test_layers_without_a_matrix_are_named() -> None:
    with pytest.raises(ModelError, match=r"'e' \(Embedding"):
        check_kinds([Layer("e", nn.Embedding(3, 2))])
    check_kinds([Layer("l", nn.Linear(3, 2))])
