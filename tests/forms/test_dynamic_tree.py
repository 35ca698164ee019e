# SPDX-License-Identifier: Apache-2.0
"""Dynamic tree codes: the table, nearest values against brute force, blocks, small values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.forms.dynamic_tree import from_tree_codes, nearest_codes, to_tree_codes, tree_values


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_has_256_values_in_order(signed: bool) -> None:
    values = tree_values(signed)
    assert len(values) == 256
    assert len(values.unique()) == (255 if signed else 256)
    assert torch.equal(values, values.sort().values)
    assert {0.0, 1.0} <= set(values.tolist())
    assert float(values[0]) == (-1.0 if signed else 0.0)
    if signed:
        assert torch.equal(values, -values.flip(0))


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_values(signed: bool) -> None:
    x = torch.linspace(-1 if signed else 0, 1, 4001) ** 3
    values = tree_values(signed)
    ours = values[nearest_codes(x, signed).long()]
    best = (x.unsqueeze(1) - values).abs().amin(1)
    assert torch.allclose((x - ours).abs(), best, atol=1e-7)
    assert torch.equal(values[nearest_codes(values, signed).long()], values)


@given(st.integers(0, 5000), st.integers(1, 300), st.floats(1e-20, 1e20), st.integers(0, 99))
def test_blocks_come_back_within_the_table_s_error(
    size: int, block: int, scale: float, seed: int
) -> None:
    x = scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    codes, reach = to_tree_codes(x, block=block)
    back = from_tree_codes(codes, reach, x.shape)
    assert codes.dtype == torch.uint8
    assert codes.shape == (-(-size // block), block)
    widest = float(tree_values().diff().max()) / 2
    bound = reach.repeat_interleave(block)[:size] * (widest + 1e-6)
    assert bool(((back - x).abs() <= bound).all())


def test_every_block_s_largest_value_is_exact_and_zeros_stay() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    codes, reach = to_tree_codes(x, block=64)
    back = from_tree_codes(codes, reach, x.shape)
    assert torch.equal(reach, x.abs().amax(1))
    assert torch.equal(back.abs().amax(1), reach)
    assert torch.all(back[3] == 0)


def test_small_values_keep_more_digits_than_on_a_uniform_grid() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).mul(2).exp()
    codes, reach = to_tree_codes(x, block=4096)
    tree = from_tree_codes(codes, reach, x.shape)
    step = float(x.max()) / 127
    uniform = (x / step).round() * step
    errors = [((y - x) / x).abs().median() for y in (tree, uniform)]
    assert errors[0] < 0.1 * errors[1]
