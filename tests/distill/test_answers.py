# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: found by input, in any order, and what the largest logits alone still say."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.answers import Answers, digests, restored, shortened
from rarefy.errors import TaskError
from rarefy.loops.losses import soft_target_loss


def never() -> Tensor:
    raise AssertionError("the teacher is asked again")


def test_answers_are_found_in_any_order_and_after_a_restart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, x = nn.Linear(3, 4), torch.randn(6, 3)
    kept = Answers(tmp_path, teacher)
    with torch.no_grad():
        first = kept.fetch(x, lambda: teacher(x))
        torch.testing.assert_close(first, teacher(x))
    order = torch.tensor([5, 0, 3])
    assert torch.equal(kept.fetch(x[order], never), first[order])
    kept.save()
    again = Answers(tmp_path, teacher)
    assert torch.equal(again.fetch(x[order], never), first[order])
    with pytest.raises(AssertionError, match="asked again"):
        again.fetch(x + 1, never)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    other = nn.Linear(3, 4)
    assert not Answers(tmp_path, other).known  # another teacher has another file


def test_inputs_of_several_tensors_are_told_apart() -> None:
    a, b = torch.arange(4.0).view(2, 2), torch.ones(2, 3)
    assert digests({"x": a, "y": b}) == digests((a, b))
    assert len(set(digests((a, b)) + digests((a, 2 * b)))) == 4
    image = torch.randn(2, 3, 4, 4)
    assert digests(image) == digests(image.contiguous(memory_format=torch.channels_last))


def test_the_largest_logits_keep_their_probabilities() -> None:
    logits = 3 * torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    kept, places, left = shortened(logits, 8)
    back = restored((kept, places, left), 50)
    p, q = logits.softmax(1), back.softmax(1)
    torch.testing.assert_close(q.gather(1, places.long()), p.gather(1, places.long()))
    rest = 1 - p.gather(1, places.long()).sum(1)
    # what the divergence from any student loses is at most what the rest could say
    student = torch.randn(5, 50)
    whole, short = soft_target_loss(student, logits, 1.0), soft_target_loss(student, back, 1.0)
    log_q = F.log_softmax(student, 1)
    entropies = (p * p.log()).sum(1) - (q * q.log()).sum(1)
    bound = (rest * (log_q.amax(1) - log_q.amin(1)) + entropies.abs()).mean()
    assert abs(float(whole - short)) <= float(bound) + 1e-6
    assert float(bound) < 1


def test_only_classes_have_largest_logits(tmp_path: Path) -> None:
    kept = Answers(tmp_path, nn.Linear(2, 2), largest=3)
    with pytest.raises(TaskError, match=r"3 largest .* \(2, 4, 4\)"):
        kept.fetch(torch.randn(2, 2), lambda: torch.randn(2, 4, 4))
    x = torch.randn(3, 2)
    answers = kept.fetch(x, lambda: torch.arange(15.0).view(3, 5))
    assert answers.argmax(1).tolist() == [4, 4, 4]
