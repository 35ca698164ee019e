# SPDX-License-Identifier: Apache-2.0
"""The step itself: what it replaces, what it leaves alone and why, ranks, repair, resuming, bad input."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rarefy.factorize.work
from rarefy.compress import apply_step
from rarefy.errors import ModelError, RecipeError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.factorize.factorize import Factorize
from rarefy.forms.snapshot import restore, snapshot
from rarefy.measure.counts import macs, parameters
from rarefy.measure.latency import Latency
from rarefy.step import Context
from rarefy.task import Task


def toy(model: nn.Module, x: Tensor, batches: list[Tensor] | None = None) -> Task:
    return Task("toy", x, calibration=batches or [x], labelled=False)


def applied(step: Factorize, model: nn.Module, task: Task) -> tuple[nn.Module, dict[str, Any]]:
    context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 5)
    changed, _ = apply_step(step, copy.deepcopy(model).eval(), context)
    return changed, context.record


@torch.no_grad()
def apart(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    return float((one.eval()(x) - other.eval()(x)).norm() / other(x).norm())


class Corners(nn.Module):
    """Layers that are called, read, shared, hooked or called in ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.read = nn.Linear(32, 32), nn.Linear(32, 32)
        self.tied, self.twin = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.twin.weight = self.tied.weight
        self.hooked, self.own = nn.Linear(32, 32), Scaled(32, 32)
        self.hooked.register_forward_hook(lambda module, args, y: y * 2)
        self.up = nn.ConvTranspose1d(8, 8, 3, stride=2)
        self.deep = nn.Conv1d(8, 8, 3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(self.plain(x), self.read.weight)
        x = self.own(self.hooked(self.twin(self.tied(x))))
        return self.deep(self.up(x.reshape(-1, 8, 4), [10]))


class Scaled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def test_what_can_not_be_replaced_stays_and_is_told() -> None:
    torch.manual_seed(0)
    model, x = Corners(), torch.randn(4, 32)
    small, record = applied(Factorize(rank=4), model, toy(model, x))
    assert [row["name"] for row in record["layers"]] == ["plain"]
    assert isinstance(small.plain, nn.Sequential)
    notes = " | ".join(record["notes"])
    for name, reason in (
        ("read", "never called"), ("tied", "shares its weight"), ("hooked", "carries hooks"),
        ("own", "computes in a way of its own (Scaled)"), ("up", "called with more than its input"),
        ("deep", "out of range"),
    ):  # fmt: skip
        assert any(f"'{name}'" in note and reason in note for note in record["notes"]), (
            name,
            notes,
        )
    assert apart(applied(Factorize(rank=15), model, toy(model, x))[0], model, x) < 1


def test_a_network_that_keeps_references_is_told_apart() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)
            self.steps = [self.fc]

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[0](x)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) / self.fc.in_features

    x = torch.randn(2, 32)
    with pytest.raises(ModelError, match=r"calls 'fc' through a reference of its own.*exclude"):
        applied(Factorize(rank=4), Listed(), toy(Listed(), x))
    with pytest.raises(ModelError, match=r"in_features.*exclude: fc"):
        applied(Factorize(rank=4), Reads(), toy(Reads(), x))


def test_the_top_module_and_repeated_modules_are_replaced() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 32)
    alone, _ = applied(Factorize(rank=4), nn.Linear(32, 32), toy(nn.Linear(32, 32), x))
    assert isinstance(alone, nn.Sequential)
    layer = nn.Linear(32, 32)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    small, record = applied(Factorize(rank=4, fit="outputs"), twice, toy(twice, x))
    assert small[0] is small[2]
    assert record["layers"][0]["macs"] == [2 * 32 * 32, 2 * 4 * 64]


def test_embeddings_follow_the_words_that_occur() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(200, 24, padding_idx=0), nn.Linear(24, 5))
    often = torch.randint(1, 20, (8, 30))
    task = toy(model, often)
    aware, record = applied(Factorize(layers="0", rank=6, fit="outputs"), model, task)
    plain, _ = applied(Factorize(layers="0", rank=6), model, task)
    assert record["layers"][0]["parameters"] == [200 * 24, 6 * (200 + 24)]
    assert apart(aware, model, often) < 0.8 * apart(plain, model, often)
    assert isinstance(applied(Factorize(rank=2), model, task)[0][0], nn.Embedding)


def test_repair_works_under_changed_predecessors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    batches = [torch.randn(64, 3, 8, 8).cumsum(2) for _ in range(4)]
    test, task = torch.randn(64, 3, 8, 8).cumsum(2), toy(model, batches[0][:2], batches)
    found = {}
    for repair in ("none", "bias", "least-squares"):
        step = Factorize(rank=0.2, decomposition="channel", repair=repair, examples=256)  # type: ignore[arg-type]
        small, record = applied(step, model, task)
        found[repair] = apart(small, model, test)
        means = small(batches[0]).mean(0) - model(batches[0]).mean(0)
        assert len(record["layers"]) == 4
        if repair != "none":
            assert float(means.abs().max()) < 0.2 * float(model(batches[0]).std())
            assert small[2][-1].bias is not None
    assert found["least-squares"] < found["bias"] < found["none"]


def test_energy_budget_and_both_allocations_are_kept(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    small, record = applied(Factorize(allocation="energy", energy=0.8), model, task)
    kept = {row["name"]: row["ranks"][0] for row in record["layers"]}
    squares = torch.linalg.svdvals(model.fc1.weight.double()).square()  # type: ignore[arg-type, union-attr, operator]
    k = kept["fc1"]
    assert (
        float(squares[:k].sum() / squares.sum())
        >= 0.8
        > float(squares[: k - 1].sum() / squares.sum())
    )
    for allocation in ("greedy", "exact"):
        step = Factorize(allocation=allocation, budget="parameters=0.4", fit="outputs")  # type: ignore[arg-type]
        assert parameters(applied(step, model, task)[0]) <= 0.4 * parameters(model)
        step = Factorize(allocation=allocation, budget="macs=150k")  # type: ignore[arg-type]
        assert macs(applied(step, model, task)[0], task.example) <= 150_000
    with pytest.raises(
        ModelError, match=r"macs=0.01 can't be met: .* lowest rank \d+% of the network"
    ):
        applied(Factorize(allocation="greedy", budget="macs=0.01"), model, task)


def test_a_latency_budget_is_spent_by_measurements(
    digits: tuple[nn.Module, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With times that are proportional to operations a latency budget is a budget of operations."""
    model, task = digits

    def as_counted(layer: nn.Module, chains: Any, x: Tensor, name: str) -> list[Latency]:
        costs = [macs(m, x) for m in (layer, *chains)]
        return [Latency(c, (c, c), c, c / costs[0], (1, 1), 7, 1, 1, 1) for c in costs]

    monkeypatch.setattr("rarefy.factorize.plan.times", as_counted)
    monkeypatch.setattr(
        "rarefy.factorize.plan.total_of", lambda model, batch, unit: float(macs(model, batch))
    )
    step = Factorize(allocation="exact", budget="latency=0.5")
    small, _ = applied(step, model, task)
    assert macs(small, task.example) <= 0.5 * macs(model, task.example)


@pytest.mark.parametrize("how", ["report", "refuse"])
def test_what_is_slower_is_told_or_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 256, 3))
    x = torch.randn(1, 16, 12, 12)
    step = Factorize(rank=0.25, slower=how)  # type: ignore[arg-type]
    applied(step, model, toy(model, x))  # with real measurements: whatever they are, it runs

    def fixed(layer: nn.Module, chains: Any, x: Tensor, name: str) -> list[Latency]:
        ratio = 1.3 if name == "0" else 0.4
        return [Latency(1, (1, 1), 1, r, (r, r), 7, 1, 1, 1) for r in (1.0, ratio)]

    monkeypatch.setattr(rarefy.factorize.work, "times", fixed)
    small, record = applied(step, model, toy(model, x))
    told = [note for note in record["notes"] if "1.30 times as long in ONNX Runtime" in note]
    assert len(told) == 1
    assert "'0'" in told[0]
    assert isinstance(small[0], nn.Conv2d if how == "refuse" else nn.Sequential)
    assert isinstance(small[1], nn.Sequential)


def test_an_interrupted_run_resumes_with_the_factors(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    small, _ = applied(Factorize(decomposition="tucker", rank=0.5, layers="conv2"), model, task)
    small, _ = applied(Factorize(decomposition="tensor-train", rank=4, layers="fc1"), small, task)
    structure, tensors = snapshot(small)
    back = restore(copy.deepcopy(model), json.loads(json.dumps(structure)), tensors)
    assert torch.equal(back(task.example), small(task.example))
    step = Factorize(layers="fc2", rank=3, fit="outputs", repair="least-squares")
    goes_on, _ = applied(step, back, task)
    wanted, _ = applied(step, small, task)
    torch.testing.assert_close(goes_on(task.example), wanted(task.example))


def test_every_decomposition_computes_the_same_in_onnx_runtime() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 12, 12)
    for name in ("separable", "tensor-train"):
        model = nn.Sequential(
            nn.Conv2d(8, 16, 3, 2, 1), nn.ConvTranspose2d(16, 12, 3, 2, output_padding=1),
            nn.Flatten(), nn.Linear(12 * 196, 64),
        ).eval()  # fmt: skip
        small, record = applied(Factorize(decomposition=name, rank=3), model, toy(model, x))  # type: ignore[arg-type]
        assert len(record["layers"]) >= 2
        found = OnnxRuntime(export_onnx(small, x))(x)
        torch.testing.assert_close(found, small(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, "rank=0 is not allowed"),
        ({"rank": 1.5}, "rank=1.5 is not allowed"),
        ({"decomposition": "qr"}, "decomposition='qr' is not allowed"),
        ({"budget": "size=0.5"}, "budget='size=0.5' is not allowed"),
        ({"budget": "macs=5ms"}, "macs"),
        ({"ranks": {"fc1": 3}, "allocation": "energy"}, "leave one of the two out"),
        ({"start": "random", "fit": "outputs"}, "knows no weights to fit"),
        ({"norms": True}, "norms=True is for start=random"),
        ({"rank": []}, "names no rank"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Factorize(**fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_ranks_and_names_are_told_in_a_sentence(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    for step, words in (
        (
            Factorize(rank=999),
            "rank=999 is out of range: the full rank of 'fc1' is 64; give 1 to 64",
        ),
        (Factorize(ranks={"fc1": 65}), "the full rank of 'fc1' is 64"),
        (Factorize(rank=(3, 3, 3), decomposition="tucker"), "has 3 numbers, but tucker of 'conv1'"),
        (Factorize(layers="conv3"), "did you mean 'conv"),
    ):
        with pytest.raises(RecipeError) as caught:
            applied(step, model, task)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_no_exporter_takes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect")),
        torch.randn(1, 8, 9, 9),
    )

    def refuses(*_: Any, **__: Any) -> None:
        raise ModelError(
            "the Sequential uses the operator 'aten::x', which standard ONNX can't express"
        )

    monkeypatch.setattr("rarefy.factorize.runtime.export_onnx", refuses)
    with pytest.raises(
        ModelError, match=r"'0' can't be measured.*aten::x.*exclude, or set slower: allow"
    ):
        applied(Factorize(rank=4, slower="refuse"), model, toy(model, x))
