# SPDX-License-Identifier: Apache-2.0
"""Inputs keep their structure whatever is done to their tensors."""

import torch

from rarefy.export.inputs import first_examples, mapped, starting_with

X, SCALAR = torch.arange(6), torch.tensor(7)


def test_a_change_reaches_every_tensor_of_every_structure() -> None:
    assert torch.equal(mapped(X, lambda t: t + 1), X + 1)  # type: ignore[arg-type]
    pair = mapped((X, SCALAR), lambda t: -t)
    assert isinstance(pair, tuple)
    assert [t.tolist() for t in pair] == [(-X).tolist(), -7]
    named = mapped({"a": X}, lambda t: t * 2)
    assert isinstance(named, dict)
    assert torch.equal(named["a"], 2 * X)


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
