# SPDX-License-Identifier: Apache-2.0
"""Deep mutual learning: peers take turns, teach without gradients, and end better than alone."""

import copy
import dataclasses
from statistics import mean

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.finetune import Finetune
from rarefy.distill.mutual import MutualLearning, Peers
from rarefy.loops.optimise import Training
from rarefy.loops.train import Batch, train
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def student(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def context(task: Task, seed: int = 0) -> Context:
    return Context(task, student(seed).eval(), torch.device("cpu"), seed)


@pytest.mark.parametrize("teacher", ["peers", "ensemble"])
def test_a_turn_moves_one_peer_alone(teacher: str, digits_task: Task) -> None:
    step = MutualLearning(peers=3, teacher=teacher)  # type: ignore[arg-type]
    together = Peers([student(s) for s in range(3)], 10 if teacher == "ensemble" else 0)
    x, y = next(iter(digits_task.batches("train")))
    for turn in range(3):
        together.zero_grad()
        step.loss(Batch(together, x, y, 0, 0.0), turn, together, digits_task).backward()
        touched = [any(p.grad is not None for p in n.parameters()) for n in together.networks]
        assert touched == [number == turn for number in range(3)]
        if together.gate is not None:
            assert together.gate.weight.grad is not None
    assert together(x).shape == (len(x), 10)


def test_what_teaches_changes_with_every_step(digits_task: Task) -> None:
    together = Peers([student(0), student(1)])
    step, batches = MutualLearning(), [next(iter(digits_task.batches("train")))] * 6
    weights = []
    settings = Training(epochs=1, rate=0.05)
    for number, batch in enumerate(train(together, batches, settings)):
        weights.append([n[1].weight.detach().clone() for n in together.networks])  # type: ignore[index]
        batch.minimise(step.loss(batch, number % 2, together, digits_task))
    for number, (before, after) in enumerate(zip(weights, weights[1:], strict=False)):  # noqa: RUF007
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [number % 2 == 0, number % 2 == 1]


def test_two_peers_by_hand(digits_task: Task) -> None:
    together = Peers([student(0), student(1)])
    x, y = next(iter(digits_task.batches("train")))
    ours = MutualLearning().loss(Batch(together, x, y, 0, 0.0), 0, together, digits_task)
    p, q = (n(x) for n in together.networks)
    divergence = F.kl_div(p.log_softmax(1), q.softmax(1), reduction="batchmean")
    torch.testing.assert_close(ours, F.cross_entropy(p, y) + divergence)


def test_peers_beat_their_solo_baseline(digits_task: Task) -> None:
    """A third of the labels is wrong; what the peers believe is less so."""
    torch.manual_seed(7)
    x, y = (torch.cat(parts) for parts in zip(*digits_task.batches("train"), strict=True))
    draw = torch.Generator().manual_seed(1)
    told, wrong = y[:500].clone(), torch.rand(500, generator=draw) < 0.3
    told[wrong] = torch.randint(10, (int(wrong.sum()),), generator=draw)
    little = DataLoader(TensorDataset(x[:500], told), 25, shuffle=True)
    rest = DataLoader(TensorDataset(x[500:], y[500:]), 600)
    few = dataclasses.replace(digits_task, train=little, validation=None, test=rest)
    (step,) = load_recipe("kd-online").steps
    assert isinstance(step, MutualLearning)
    fields = {"epochs": 12, "rate": 0.1}
    together = dataclasses.replace(step, **fields)  # type: ignore[arg-type]
    alone = Finetune(**fields)  # type: ignore[arg-type]
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for seed in range(3):
        for step, scores in ((together, ours), (alone, theirs)):
            found = step.apply(student(seed), context(few, seed))
            with torch.no_grad():
                surprise = float(F.cross_entropy(found(x[500:]), y[500:]))
            scores.append((surprise, evaluate(found, few).value))
    for better, worse in zip(ours, theirs, strict=True):
        assert better[0] < worse[0]  # less surprised by what it has not seen, under every seed
    assert mean(s for _, s in ours) >= mean(s for _, s in theirs) - 0.01


def test_the_best_peer_is_returned(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
    found = MutualLearning(peers=2, epochs=2, rate=0.02, noise=0.3).apply(model, ctx)
    best = evaluate(found, task, "validation").value
    assert best == max(ctx.record["peers"])
    assert len(ctx.record["peers"]) == 2
    assert evaluate(found, task).value > 0.9
