# SPDX-License-Identifier: Apache-2.0
"""Row fixed-point: the error bound of the right formula, and what a widely copied wrong one does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.quantize.fixed_point import fixed_point


@given(st.integers(2, 12), st.integers(0, 1000), st.sampled_from([None, 0, 1]))
def test_no_weight_is_off_by_more_than_half_a_step(bits, seed, axis):
    w = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    codes, scale = fixed_point(w, bits, axis)
    step = scale if axis is None else scale.view([-1 if i == axis else 1 for i in range(2)])
    assert int(codes.abs().max()) == 2 ** (bits - 1) - 1
    assert bool(((codes * step - w).abs() <= step / 2 + 1e-6).all())


def test_error_falls_with_bits():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in range(2, 13):
        codes, scale = fixed_point(w, bits)
        errors.append(float((codes * scale - w).norm()))
    assert errors == sorted(errors, reverse=True)


def test_zeros_stay_zeros_and_powers_of_two_are_powers_of_two():
    codes, scale = fixed_point(torch.zeros(5), 8)
    assert not codes.any()
    assert float(scale) > 0
    _, scale = fixed_point(torch.tensor([3.0, -1.0]), 8, power_of_two=True)
    assert float(scale) == 2.0**-5


def widely_copied(w, bits):
    """q = clamp(round(w / alpha * 2^b), -2^(b-1), 2^(b-1) - 1) with y = sum(q x) * alpha: wrong twice."""
    alpha = w.abs().max()
    q = torch.round(w / alpha * 2**bits).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return q, alpha


def test_the_widely_copied_formula_is_wrong_twice():
    """It cuts every |w| >= alpha / 2 and gives sums 2^b times too large; the right one does neither."""
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    q, alpha = widely_copied(w, 8)
    assert bool((q[w >= alpha / 2] == 127).all())
    assert bool((q[w <= -alpha / 2] == -128).all())
    inside = w.abs() < 0.49 * alpha
    assert float((q * alpha)[inside].norm() / w[inside].norm()) == pytest.approx(2**8, rel=0.01)
    # even without the wrong factor it is about nine times further off
    mended = float((q * alpha / 2**8 - w).norm() / w.norm())
    codes, scale = fixed_point(w, 8)
    right = float((codes * scale - w).norm() / w.norm())
    assert right == pytest.approx(0.0098, rel=0.1)
    assert mended > 5 * right


def test_the_formula_that_scales_to_the_whole_range_saturates_half_of_a_uniform_layer():
    """clamp(round(w / alpha * 2^b)) cuts every |w| >= alpha / 2: 51 % of uniform, 3 % of Gaussian weights."""
    generator = torch.Generator().manual_seed(0)
    for w, share in (
        (2 * torch.rand(100_000, generator=generator) - 1, 0.5),
        (torch.randn(100_000, generator=generator) / 4.4, 0.028),
    ):
        scaled = torch.round(w / w.abs().max() * 2**8)
        cut = ((scaled > 127) | (scaled < -128)).float().mean()
        assert float(cut) == pytest.approx(share, rel=0.35)
        codes, scale = fixed_point(w, 8)
        assert float((codes * scale - w).norm() / w.norm()) < 0.011
