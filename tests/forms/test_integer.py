# SPDX-License-Identifier: Apache-2.0
"""The integer path against cases worked out by hand and against exact rational arithmetic."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import ModelError
from rarefy.forms.integer import (
    fixed_multiplier,
    integer_add,
    integer_conv,
    integer_product,
    requantise,
    scaled,
    within_int32,
)


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(
    ("factor", "M0", "n"),
    [
        (0.5, 2**30, 0),
        (0.75, 3 * 2**29, 0),
        (0.25, 2**30, 1),
        (1.0, 2**30, -1),
        (3.0, 3 * 2**29, -2),
        (0.0003, round(0.0003 * 2**11 * 2**31), 11),
    ],
)
def test_factors_by_hand(factor: float, M0: int, n: int) -> None:
    assert [int(v) for v in fixed_multiplier(number(factor))] == [M0, n]


@given(st.floats(1e-9, 1e3))
def test_a_factor_is_met_to_31_bits(factor: float) -> None:
    M0, n = (int(v) for v in fixed_multiplier(number(factor)))
    assert 2**30 <= M0 < 2**31
    assert abs(Fraction(M0) / 2**31 / Fraction(2) ** n / Fraction(factor) - 1) <= Fraction(1, 2**30)


def test_products_are_rounded_once_halves_up() -> None:
    half, none = torch.tensor(2**30), torch.tensor(0)
    assert scaled(torch.tensor([3, -3, 1, -1, 5]), half, none).tolist() == [2, -1, 1, 0, 3]
    # 3 / 8: rounded to 2 / 4 first, it would become 1
    assert scaled(torch.tensor([3, 5, -3]), half, torch.tensor(2)).tolist() == [0, 1, 0]
    assert scaled(torch.tensor([3]), half, torch.tensor(-3)).tolist() == [12]
    assert scaled(torch.tensor([3]), half, torch.tensor(-31)).tolist() == [3 << 30]
    assert scaled(torch.tensor([2**31 - 1]), half, torch.tensor(40)).tolist() == [0]


@given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(2**30, 2**31 - 1), st.integers(-8, 40))
def test_a_scaled_sum_is_the_nearest_integer(x: int, M0: int, n: int) -> None:
    found = int(scaled(torch.tensor(x), torch.tensor(M0), torch.tensor(n)))
    assert abs(Fraction(found) - Fraction(x) * M0 / Fraction(2) ** (31 + n)) <= Fraction(1, 2)


@given(st.integers(-(2**24), 2**24), st.floats(1e-6, 1.0), st.integers(-128, 127))
def test_requantised_sums_are_the_codes_nearest_to_the_real_product(
    total: int, factor: float, zero: int
) -> None:
    found = int(requantise(torch.tensor([total]), number(factor), zero, -128, 127, axis=0))
    real = min(max(Fraction(total) * Fraction(factor) + zero, -128), 127)
    # the factor has 31 bits, of which a sum of 24 bits leaves 2^-7
    assert abs(found - real) <= Fraction(1, 2) + Fraction(1, 2**7)


def test_a_convolution_by_hand() -> None:
    # x = [1, 2, 3] with zero point 1 is [0, 1, 2]; the kernel [1, -2], the bias 10, padded by one in front
    x, w = torch.tensor([[[1, 2, 3]]]), torch.tensor([[[1, -2]]])
    total = integer_conv(x, 1, w, torch.tensor([10]), [1], [1, 0], [1])
    # 0*1+0*-2, 0*1+1*-2, 1*1+2*-2
    assert total.tolist() == [[[10, 8, 7]]]
    # a factor of 1/2, zero point 3: 5, 4, 3.5 -> 8, 7, 7 (halves up)
    assert requantise(total, number(0.5), 3, 0, 255).tolist() == [[[8, 7, 7]]]
    assert requantise(total, number(0.5), 3, 0, 7).tolist() == [[[7, 7, 7]]]


def test_factors_of_channels_go_along_their_axis() -> None:
    total = torch.tensor([[[4, 8]], [[4, 8]]]).movedim(0, 1)  # (1, 2, 2)
    found = requantise(total, torch.tensor([0.5, 0.25], dtype=torch.float64), 0, -128, 127)
    assert found.tolist() == [[[2, 4], [1, 2]]]


def test_strides_dilation_and_groups_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 4, 7, 6), generator=generator)
    w = torch.randint(-127, 128, (6, 2, 3, 2), generator=generator)
    found = integer_conv(x, 128, w, None, [2, 1], [1, 0, 1, 0], [1, 2], groups=2)
    expected = torch.nn.functional.conv2d(
        (x - 128).double(), w.double(), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2
    )
    assert torch.equal(found.double(), expected)


def test_a_product_by_hand() -> None:
    x, w = torch.tensor([[130, 127]]), torch.tensor([[1, 5], [2, 6]])
    assert integer_product(x, 128, w, 4, torch.tensor([7, -7])).tolist() == [[3, -7]]


def test_a_sum_of_two_scales_by_hand() -> None:
    # 0.5 * (10 - 2) + 0.25 * (7 - 3) = 5; on a grid of 0.1 with zero point -20 that is 50 - 20
    a, b = (torch.tensor([10]), 0.5, 2), (torch.tensor([7]), 0.25, 3)
    assert integer_add(a, b, 0.1, -20, -128, 127).tolist() == [30]
    assert integer_add(a, b, 0.1, -20, -128, 25).tolist() == [25]


@given(
    st.integers(-128, 127),
    st.integers(-128, 127),
    st.floats(0.001, 2),
    st.floats(0.001, 2),
    st.floats(0.01, 4),
)
def test_a_sum_is_within_one_code(a: int, b: int, sa: float, sb: float, s: float) -> None:
    found = int(integer_add((torch.tensor(a), sa, 3), (torch.tensor(b), sb, -5), s, 1, -128, 127))
    real = min(max((sa * (a - 3) + sb * (b + 5)) / s + 1, -128), 127)
    assert abs(found - real) <= 0.51


def test_sums_beyond_32_bits_are_refused() -> None:
    assert within_int32(number(2.0**31 - 1)).tolist() == 2**31 - 1
    with pytest.raises(ModelError, match="a sum of 'layer' exceeds 32 bits"):
        within_int32(number(-(2.0**31)))
