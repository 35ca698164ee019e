# SPDX-License-Identifier: Apache-2.0
"""Inputs keep their structure whichever examples are chosen."""

import torch

from rarefy.export.inputs import first_examples, starting_with

X, SCALAR = torch.arange(6), torch.tensor(7)


def test_first_examples_leave_tensors_without_axes() -> None:
    assert [t.numel() for t in first_examples((X, SCALAR), 2)] == [2, 1]
    assert torch.equal(first_examples(X, 99), X)  # type: ignore[arg-type]


def test_one_example_moves_to_the_front() -> None:
    for example in range(6):
        found = starting_with((X, SCALAR, X[:2]), example)
        assert isinstance(found, tuple)
        assert found[0][0] == example
        assert sorted(found[0].tolist()) == X.tolist()
        assert found[1] == 7
        assert found[2].tolist() == ([1, 0] if example == 1 else [0, 1])
