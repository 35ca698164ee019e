# SPDX-License-Identifier: Apache-2.0
"""Differences are relative to the reference's range, over all batches together."""

import math

import torch

from rarefy.export.difference import Difference


def test_the_largest_gap_over_the_range_of_all_batches() -> None:
    found = Difference()
    assert (
        found.add(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 3.5]]))
        == 1
    )
    assert found.relative == 0.5 / 3
    found.add(torch.tensor([[-7.0, 0.0]]), torch.tensor([[-7.0, 0.25]]))
    assert found.largest == 0.5
    assert found.relative == 0.5 / 10


def test_equal_tensors_do_not_differ_even_where_they_are_not_numbers() -> None:
    found, odd = Difference(), torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    found.add(odd, odd.clone())
    assert found.relative == 0.0


def test_a_nan_on_one_side_and_another_shape_are_infinite() -> None:
    for theirs in (torch.tensor([math.nan, 1.0]), torch.zeros(3)):
        found = Difference()
        found.add(torch.tensor([0.0, 1.0]), theirs)
        assert math.isinf(found.relative)


def test_a_constant_output_is_judged_by_its_size() -> None:
    found = Difference()
    found.add(torch.full((4,), 2.0), torch.full((4,), 2.002))
    assert 0.5 < found.relative < 2


def test_nothing_compared_is_no_difference() -> None:
    found = Difference()
    found.add(torch.zeros(0, 3), torch.zeros(0, 3))
    assert found.relative == 0.0
