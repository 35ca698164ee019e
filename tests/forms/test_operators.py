# SPDX-License-Identifier: Apache-2.0
"""Quantise-and-dequantise: values, gradients, and what an exporter sees."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.forms.grid import Grid, from_codes, to_codes
from rarefy.forms.operators import dequantize, fake_quantize


@given(st.integers(0, 2**32 - 1), st.sampled_from([-1, 0, 1]), st.booleans())
def test_fake_quantize_is_codes_and_back(seed: int, axis: int, signed: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(4, 5, generator=draw)
    size = () if axis < 0 else (x.shape[axis],)
    scale = 0.01 + 0.05 * torch.rand(size, generator=draw)
    grid = Grid(6, signed)
    zero_point = torch.randint(grid.low, grid.high + 1, size, generator=draw).to(grid.dtype)
    place = None if axis < 0 else axis
    codes = to_codes(x, scale, zero_point, grid, place)
    found = fake_quantize(x, scale, zero_point, axis, grid.low, grid.high)
    expected = from_codes(codes, scale, zero_point, place)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(dequantize(codes, scale, zero_point, axis), expected)


def test_gradient_passes_inside_and_stops_outside() -> None:
    x = torch.tensor([-9.0, -0.26, 0.0, 0.24, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    out = fake_quantize(x, scale, torch.tensor(0, dtype=torch.int8), -1, -2, 1)
    assert out.tolist() == [-1.0, -0.5, 0.0, 0.0, 0.5]
    out.backward(torch.ones(5))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    # LSQ, equation 3: the codes at the ends, rounding errors round(x/s) - x/s inside
    expected = -2 + (-1 + 0.52) + 0 + (0 - 0.48) + 1
    assert scale.grad is not None
    assert torch.allclose(scale.grad, torch.tensor(expected))


def test_gradient_of_scales_along_an_axis_is_taken_row_by_row() -> None:
    torch.manual_seed(0)
    x, scales = torch.randn(3, 7), torch.rand(3) * 0.1 + 0.05
    zero = torch.zeros(3, dtype=torch.int8)
    upstream = torch.randn(3, 7)
    together = scales.clone().requires_grad_()
    fake_quantize(x, together, zero, 0, -8, 7).backward(upstream)
    alone = []
    for row in range(3):
        scale = scales[row].clone().requires_grad_()
        fake_quantize(x[row], scale, zero[row], -1, -8, 7).backward(upstream[row])
        assert scale.grad is not None
        alone.append(scale.grad)
    assert together.grad is not None
    assert torch.allclose(together.grad, torch.stack(alone))


def test_operators_are_whole_in_a_captured_graph() -> None:
    class Rounds(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int8)
            codes = torch.ones(3, dtype=torch.int8)
            return fake_quantize(x, scale, zero, -1, -8, 7) + dequantize(codes, scale, zero, -1)

    program = torch.export.export(Rounds(), (torch.randn(3),))
    names = {str(node.target) for node in program.graph.nodes}
    assert {"rarefy.fake_quantize.default", "rarefy.dequantize.default"} <= names
