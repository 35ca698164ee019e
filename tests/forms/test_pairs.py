# SPDX-License-Identifier: Apache-2.0
"""Pairs of codes: what a processor that adds in 16 bits computes is exact, and little is paid for it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.forms.pairs import like, limited, overflows, rows_of, safe_scale, starts_of


def saturating(x: Tensor, w: Tensor) -> Tensor:
    """Products of uint8 (K,) and int8 (outputs, K) added in pairs that are cut off at 16 bits."""
    products = nn.functional.pad(x.long() * w.long(), (0, w.shape[1] % 2))
    pairs = products.view(len(w), -1, 2).sum(2).clamp(-(2**15), 2**15 - 1)
    return pairs.sum(1)


@given(st.integers(0, 999), st.integers(1, 40))
def test_limited_codes_never_saturate(seed: int, K: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (8, K), generator=generator).float()
    found = limited(codes, (0,)).long()
    x = torch.full((K,), 255)
    assert torch.equal(saturating(x, found), (x * found).sum(1))
    assert not overflows(found.to(torch.int8))
    # what was safe stays, and no code changes its sign or grows
    safe = torch.ones(8, K, dtype=torch.bool)
    n = K - K % 2
    safe[:, :n] = ((codes[:, 0:n:2] + codes[:, 1:n:2]).abs() <= 128).repeat_interleave(2, 1)
    assert torch.equal(found[safe], codes.long()[safe])
    assert torch.all(found * codes >= 0)
    assert torch.all(found.abs() <= codes.abs())


def test_the_excess_is_shared() -> None:
    assert limited(torch.tensor([[127.0, 127.0, -127.0, -5.0]]), (0,)).tolist() == [
        [64, 64, -125, -3]
    ]
    assert limited(torch.tensor([[127.0, -127.0]]), (0,)).tolist() == [[127, -127]]


@pytest.mark.parametrize(
    ("shape", "groups", "rows"),
    [((6, 4, 3, 3), 1, (6, 36)), ((6, 3, 5), 2, (6, 15)), ((5, 8), 1, (5, 8))],
)
def test_rows_go_over_inputs_first_and_back(
    shape: tuple[int, ...], groups: int, rows: tuple[int, int]
) -> None:
    w = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    found = rows_of(w, 0, groups)
    assert found is not None
    assert found.shape == rows
    if w.dim() > 2:
        assert torch.equal(found[:, : shape[1]], w.flatten(2)[..., 0])
    assert torch.equal(like(found, w), w)


def test_depthwise_kernels_add_in_32_bits() -> None:
    assert rows_of(torch.ones(6, 1, 3, 3), 0, 6) is None
    assert not overflows(torch.full((6, 1, 3, 3), 127, dtype=torch.int8), groups=6)
    assert overflows(torch.full((6, 1, 3, 3), 127, dtype=torch.int8), groups=1)


def test_an_odd_number_of_inputs_pairs_either_way() -> None:
    assert starts_of(torch.ones(2, 3, 3, 3)) == (0, 1)
    assert starts_of(torch.ones(2, 4, 3, 3)) == (0,)
    assert starts_of(torch.ones(2, 3)) == (0,)
    codes = torch.zeros(1, 3, 1, 2, dtype=torch.int8)
    codes[0, 1:, 0, 0] = 100
    assert overflows(codes)


def test_wider_scales_are_taken_only_where_they_pay() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(32, 64, generator=generator)
    w[0] = 1.0  # every pair exceeds at full scale
    w[1] = 0.01
    w[1, 0] = 1.0  # none does
    scale = w.abs().amax(1) / 127
    found = safe_scale(w, scale, 127, (0,))
    assert torch.all((found >= scale) & (found <= 2 * scale * 1.0001))
    assert found[1] == scale[1]
    assert found[0] > 1.9 * scale[0]

    def error(by: Tensor) -> Tensor:
        codes = limited((w / by.unsqueeze(1)).round(), (0,))
        return (codes * by.unsqueeze(1) - w).square().sum(1)

    seven = (w / (w.abs().amax(1) / 63).unsqueeze(1)).round() * (w.abs().amax(1) / 63).unsqueeze(1)
    assert torch.all(error(found) <= error(scale) + 1e-9)
    assert error(found).sum() < 0.6 * (seven - w).square().sum()
