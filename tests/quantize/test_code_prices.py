# SPDX-License-Identifier: Apache-2.0
"""The price of codes is their information under counts and, in pictures, under their neighbours."""

import math

import pytest
import torch

from rarefy.quantize.code_prices import (
    PSEUDO,
    SHRINK,
    code_counts,
    information,
    picture_side,
    surroundings,
)


def test_counts_by_row_and_column() -> None:
    codes = torch.tensor([[0, 1, 1], [2, 2, 0]])
    assert code_counts(codes, 0, 3).tolist() == [[1, 2, 0], [1, 0, 2]]
    assert code_counts(codes, 1, 3).tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 0]]


def test_information_of_integers_is_their_code_length() -> None:
    x = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 1.0]])
    counts = {-1: 1.5, 0: 3.5, 1: 2.5, 2: 0.5}  # half a count each; one code beyond for the slope
    p = {k: n / sum(counts.values()) for k, n in counts.items()}
    row, column, size = {0: 1, 1: 1, -1: 1}, {0: 0, 1: 2, -1: 0}, 3 + 2 + PSEUDO
    expected = -math.log2((row[1] + column[1] + PSEUDO * p[1]) / size)
    assert torch.allclose(information(x)[1, 2], torch.tensor(expected), atol=1e-5)


def test_between_two_codes_the_price_is_a_straight_line() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5) * 2
    x.requires_grad_()
    bits = information(x)
    (slope,) = torch.autograd.grad(bits.sum(), x)
    with torch.no_grad():
        near = x + 1e-3 * (x.floor() + 0.5 - x).sign()  # into the middle of the cell
        same = near.round() == x.round()
        moved = information(torch.where(same, near, x)) - bits
    assert torch.allclose(moved[same], (slope * (near - x))[same], atol=2e-4)


def test_surroundings_are_the_signs_to_the_left_and_above() -> None:
    codes = torch.tensor([[[[2, 0, -1], [-3, 1, 0]]]])
    expected = [[4 * 3 + 3, 4 * 2 + 3, 4 * 1 + 3], [4 * 3 + 2, 4 * 0 + 1, 4 * 2 + 0]]
    assert surroundings(codes).tolist() == [[expected]]
    assert surroundings(codes.view(1, 6)).unique().tolist() == [15]
    squares = surroundings(torch.arange(-8, 8).view(2, 8), side=2)
    assert squares[0].tolist() == [15, 3, 12, 0] * 2
    assert squares[1].tolist() == [15, 7, 13, 10, 15, 11, 14, 10]


def test_neighbours_in_a_kernel_multiply_the_chances() -> None:
    torch.manual_seed(1)
    codes = torch.randint(-1, 2, (3, 2, 3, 3))
    levels = [-1, 0, 1, 2]
    count = {k: int((codes == k).sum()) + 0.5 for k in levels}
    p = {k: n / sum(count.values()) for k, n in count.items()}
    r, c, y, x = 2, 1, 1, 2
    k, around = int(codes[r, c, y, x]), surroundings(codes)
    row, column = (int((part == k).sum()) for part in (codes[r], codes[:, c]))
    plain = (row + column + PSEUDO * p[k]) / (codes[r].numel() + codes[:, c].numel() + PSEUDO)
    here = codes[around == around[r, c, y, x]]
    near = (int((here == k).sum()) + SHRINK * p[k]) / (here.numel() + SHRINK)
    expected = torch.tensor(-math.log2(plain * near / p[k]))
    assert torch.allclose(information(codes.float())[r, c, y, x], expected, atol=1e-5)


@pytest.mark.parametrize("square", [False, True])
def test_smooth_pictures_cost_less_than_shuffled_ones(square: bool) -> None:
    torch.manual_seed(2)
    fine = torch.nn.functional.avg_pool2d(torch.randn(24, 4, 10, 10), 3, 1)
    x = (4 * fine).round()
    shuffled = x.flatten(2).gather(2, torch.rand(24, 4, 64).argsort(2)).view_as(x)
    if square:
        x, shuffled = x.flatten(1), shuffled.flatten(1)
        assert picture_side(x) == 8
    side = 8 if square else 0
    assert information(x, side).sum() < 0.9 * information(shuffled, side).sum()


@pytest.mark.parametrize("shape", [(60, 100), (40, 60, 3, 3)])
def test_the_price_of_normal_weights_is_near_their_entropy(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    scale = torch.linspace(-2, 1, shape[0]).exp().view(-1, *[1] * (len(shape) - 1))
    codes, normal = (torch.randn(shape) * scale).round(), torch.distributions.Normal(0.0, 1.0)
    chances = normal.cdf((codes + 0.5) / scale) - normal.cdf((codes - 0.5) / scale)
    entropy = -float(chances.log2().sum())
    assert abs(float(information(codes).sum()) - entropy) < 0.04 * entropy
