# SPDX-License-Identifier: Apache-2.0
"""The distillation step: with and without labels, fixed and annealed temperature."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rarefy.distill.distill as page
from rarefy.distill.distill import Distill, annealed
from rarefy.distill.taught import Taught
from rarefy.distill.teach import Plan
from rarefy.errors import ModelError, RecipeError
from rarefy.step import Context
from rarefy.task import Task


def network(seed: int, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs))


def context(labelled: bool = True, outputs: int = 3) -> Context:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x[:, :3].argmax(1)) if labelled else TensorDataset(x)
    batches = DataLoader(data, batch_size=16)
    task = Task("toy", example=x[:2], train=batches, validation=batches, labelled=labelled)
    return Context(task, network(9, outputs).eval(), torch.device("cpu"), 3, {}, None)


def gap(model: nn.Module, ctx: Context) -> float:
    x = torch.cat([batch[0] for batch in ctx.task.train or []])
    with torch.no_grad():
        return float((model.eval()(x) - ctx.teacher(x)).square().mean())


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("loss", [None, "soft-targets", "logits"])
def test_the_student_comes_to_answer_as_the_teacher(labelled: bool, loss: str | None) -> None:
    ctx = context(labelled)
    step = Distill(epochs=15, rate=0.1, loss=loss, alpha=None if not labelled else 1.0)  # type: ignore[arg-type]
    before = gap(network(0), ctx)
    assert gap(step.apply(network(0), ctx), ctx) < 0.3 * before


def test_outputs_that_are_no_classes() -> None:
    ctx = context(labelled=False, outputs=1)
    before = gap(network(0, 1), ctx)
    assert gap(Distill(epochs=15, rate=0.1).apply(network(0, 1), ctx), ctx) < 0.3 * before


def test_defaults_of_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(taught: Taught, ctx: Context, settings: object, plan: Plan, _: object) -> nn.Module:
        seen.append((plan.alpha, len(plan.answers)))
        return taught.student

    monkeypatch.setattr(page, "teach", watched)
    for labelled in (True, False):
        Distill().apply(network(0), context(labelled))
    Distill(alpha=0.2).apply(network(0), context())
    Distill(loss="relations").apply(network(0), context())
    Distill(loss="relations").apply(network(0), context(labelled=False))
    Distill(loss=("relations", "logits")).apply(network(0), context())
    assert seen == [(0.7, 1), (1.0, 1), (0.2, 1), (0.0, 0), (1.0, 0), (0.7, 1)]


def test_needs() -> None:
    assert Distill().needs == {"train"}
    assert Distill(alpha=1.0).needs == {"train"}
    assert Distill(alpha=0.5).needs == {"train", "labels"}
    with pytest.raises(RecipeError, match="alpha"):
        Distill(alpha=1.5)
    with pytest.raises(RecipeError, match="temperature"):
        Distill(temperature=0)


def test_annealing_ends_at_one() -> None:
    assert annealed(8.0, 0.0) == 8.0
    assert annealed(8.0, 1.0) == 1.0
    assert annealed(8.0, 0.5) == 4.5
    step = Distill(temperature=6, temperature_schedule="annealed")
    assert step.at(0) == 6
    assert step.at(1) == 1


@pytest.mark.parametrize("role", ["teachers", "student"])
def test_a_network_for_other_inputs_is_refused_in_a_sentence(role: str) -> None:
    step = Distill(**{role: "zoo:resnet8"}, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as caught:
        step.apply(network(0), context())
    message = str(caught.value)
    assert message.startswith(f"{role.removesuffix('s')} 'zoo:resnet8' does not run on the task's")
    assert "(2, 6)" in message
    assert "\n" not in message
