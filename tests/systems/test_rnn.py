# SPDX-License-Identifier: Apache-2.0
"""Recurrent networks: hidden units leave all gates at once, exactly, in every cell, depth and direction.

Weights leave one by one as well, and integers in place of the rest don't drift.
"""

import copy
import math
from dataclasses import replace
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rarefy.compress import apply_step
from rarefy.forms.shadow import bake
from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.silent_units import cut_silent_units
from rarefy.prune.sparsify import Sparsify
from rarefy.quantize.dynamic_int8 import DynamicInt8
from rarefy.recipe import Recipe, load_recipe
from rarefy.step import Context
from rarefy.task import Metric, Task

GATES: dict[type[nn.RNNBase], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Reader(nn.Module):
    """Reads the rows of an image one after the other, (B, 1, rows, 8)."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, hidden: int = 24, **more: Any) -> None:
        super().__init__()
        self.rnn = kind(8, hidden, batch_first=True, **more)  # type: ignore[call-arg, misc]
        self.fc = nn.Linear(hidden * (2 if more.get("bidirectional") else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x[:, 0])[0])[:, -1]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("more", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_hidden_units_leave_every_gate(kind: type[nn.RNNBase], more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Reader(kind, 16, **more).eval(), torch.randn(3, 1, 30, 8)
    coupling = couple(model, x)
    (group,) = coupling.groups
    assert group.size == 16
    gone = torch.tensor([0, 3, 4, 9, 15])
    with torch.no_grad():  # what reads these units: the recurrence, the next layer, the head
        for name, p in model.named_parameters():
            if "weight_hh" in name:
                p[:, gone] = 0
            elif name.startswith("rnn.weight_ih_l1") or name == "fc.weight":
                p[:, torch.cat([gone + i for i in range(0, p.shape[1], 16)])] = 0
    before = model(x)
    outcome = cut(model, coupling, [(group, gone)], x)
    assert outcome.cut == {"rnn": 5}
    assert torch.allclose(model(x), before, atol=1e-6), "exact over the whole sequence"
    assert model.rnn.hidden_size == 11
    assert model.rnn.weight_hh_l0.shape == (GATES[kind] * 11, 11)
    model.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_units_that_a_penalty_silenced_are_found(digits_task: Task) -> None:
    torch.manual_seed(0)
    model, x = Reader().eval(), digits_task.example
    with torch.no_grad():
        model.rnn.weight_hh_l0[:, 5:9] = 0  # type: ignore[index, operator]
        model.fc.weight[:, 5:9] = 0
    before = model(x)
    assert cut_silent_units(model, x).cut == {"rnn": 4}
    assert torch.allclose(model(x), before, atol=1e-6)


@pytest.fixture(scope="module")
def reader(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    settings = Training(epochs=12, rate=0.01, optimiser="adam")
    return fit(Reader(), digits_task, settings)


def test_the_lasso_empties_whole_units(reader: nn.Module, digits_task: Task) -> None:
    ctx = Context(digits_task, copy.deepcopy(reader).eval(), torch.device("cpu"))
    step = Sparsify(penalty="group-lasso", roles=("out", "along", "in"), strength=0.006, rate=0.1)
    whole = replace(step, cut=False).apply(copy.deepcopy(reader), ctx)
    small = step.apply(copy.deepcopy(reader), ctx)
    assert ctx.record["cut"]["rnn"] >= 2
    x = digits_task.example
    assert torch.allclose(whole(x), small(x), atol=1e-5)


def test_the_recipe_halves_the_hidden_units(reader: nn.Module, digits_task: Task) -> None:
    model, before = copy.deepcopy(reader), evaluate(reader, digits_task).value
    assert before > 0.85
    for number, step in enumerate(load_recipe("rnn").steps):
        ctx = Context(digits_task, copy.deepcopy(reader).eval(), torch.device("cpu"), number)
        model, _ = apply_step(step, model, ctx)
    assert model.rnn.hidden_size <= 12  # type: ignore[union-attr]
    assert parameters(model) < 0.55 * parameters(reader)
    assert evaluate(model, digits_task).value > before - 0.08


class Writer(nn.Module):
    """Foretells the next character, (B, tokens) to (B, 96, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(96, 32), nn.LSTM(32, 128, batch_first=True)
        self.head = nn.Linear(128, 96)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(tokens))[0]).transpose(1, 2)


def characters(start: int, end: int, length: int = 64) -> TensorDataset:
    """Pieces of Python's own help, and what follows each of their characters."""
    text = "".join(topics[key] for key in sorted(topics))[start : end + 1]
    codes = torch.tensor([min(max(ord(c) - 32, 0), 95) for c in text])
    return TensorDataset(codes[:-1].view(-1, length), codes[1:].view(-1, length))


@pytest.fixture(scope="module")
def writer() -> tuple[nn.Module, Task]:
    def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none").mean(1)

    train, rest = characters(0, 79_872), characters(80_000, 99_200)
    task = Task(
        "help",
        train[:2][0],
        DataLoader(train, 32, shuffle=True),
        DataLoader(rest, 32),
        metric=Metric("perplexity", surprise, higher_is_better=False, finish=math.exp),
    )
    torch.manual_seed(0)
    settings = Training(epochs=12, rate=0.005, optimiser="adam", weight_decay=0)
    return fit(Writer(), task, settings), task


SPARSE = """
steps:
  - prune-weights: {sparsity: 0.8, layers: "type:LSTM", schedule: cubic, rounds: 3, epochs: 1, rate: 0.003}
  - finetune: {epochs: 4, rate: 0.003, optimiser: adam, weight_decay: 0}
"""


def test_four_fifths_of_the_weights_cost_no_twentieth_of_the_perplexity(
    writer: tuple[nn.Module, Task],
) -> None:
    dense, task = writer
    model, before = copy.deepcopy(dense), evaluate(dense, task).value
    assert before < 11  # of 96 characters
    for number, step in enumerate(Recipe.from_yaml(SPARSE).steps):
        context = Context(task, copy.deepcopy(dense), torch.device("cpu"), number)
        model, _ = apply_step(step, model, context)
    model = copy.deepcopy(model)  # which weights that remember how they were made would forbid
    dressed = model.eval()(task.example)
    bake(model)
    assert torch.equal(model(task.example), dressed)
    assert not model.rnn._forward_hooks  # type: ignore[union-attr]
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = model.rnn.get_parameter(name)  # type: ignore[union-attr]
        zeros = float((weight == 0).float().mean())
        assert zeros == pytest.approx(0.8, abs=0.15), name
    every = torch.cat([p.flatten() for n, p in model.rnn.named_parameters() if "weight" in n])  # type: ignore[union-attr]
    assert float((every == 0).float().mean()) == pytest.approx(0.8, abs=1e-3)
    assert evaluate(model, task).value < 1.05 * before


def test_integers_do_not_drift_over_two_hundred_steps(writer: tuple[nn.Module, Task]) -> None:
    model, task = writer
    tokens = characters(80_000, 99_200, 200)[:8][0]
    context = Context(task, model, torch.device("cpu"))
    small = DynamicInt8().apply(copy.deepcopy(model).eval(), context)
    with torch.no_grad():
        exact, found = model.eval()(tokens), small.eval()(tokens)
    off = (exact - found).norm(dim=1) / exact.norm(dim=1)
    assert 0 < float(off.mean()) < 0.05
    assert float(off[:, -50:].mean()) < 1.5 * float(off[:, :50].mean())
