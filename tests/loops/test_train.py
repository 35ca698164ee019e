# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumes exactly, averages, clips, stops early, and says what went wrong."""

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import ModelError, TaskError
from rarefy.loops.optimise import Training
from rarefy.loops.state import CHECKPOINT, Watch
from rarefy.loops.train import epoch_seed, steps_of, train

SETTINGS = Training(epochs=5, rate=0.1, average=0.9, clip=1.0)


def data(count: int = 24, shuffle: bool = True) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=draw)
    y = (x[:, 0] + x[:, 1] > 0).long()
    return DataLoader(TensorDataset(x, y), 8, shuffle=shuffle)


def network() -> nn.Module:
    """Has dropout, whose noise must resume too, and a batch norm, whose statistics must."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def run(
    model: nn.Module,
    settings: Training = SETTINGS,
    *,
    watch: Watch | None = None,
    stop: int | None = None,
    batches: Any = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Trains, or is cut short after `stop` batches; the history."""
    watch = watch or Watch()
    steps = train(model, batches or data(), settings, seed=seed, watch=watch)
    for batch in itertools.islice(steps, stop):
        batch.minimise(F.cross_entropy(batch.model(batch.inputs), batch.targets))
    return watch.history


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def validation(model: nn.Module) -> float:
    x, y = next(iter(data(200, shuffle=False)))
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("stop", [3, 7, 8])
def test_a_training_that_was_cut_short_ends_in_the_same_weights(
    tmp_path: Path, optimiser: Any, stop: int
) -> None:
    settings = Training(**{**vars(SETTINGS), "optimiser": optimiser, "rate": 0.02})
    whole = network()
    expected = run(whole, settings, watch=Watch(evaluate=validation))
    cut = network()
    run(cut, settings, watch=Watch(evaluate=validation, folder=tmp_path), stop=stop)
    again = network()  # a new process starts from the original weights
    history = run(again, settings, watch=Watch(evaluate=validation, folder=tmp_path))
    assert equal(again, whole)
    assert [row["loss"] for row in history] == [row["loss"] for row in expected]
    assert [row["metric"] for row in history] == [row["metric"] for row in expected]
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    run(network(), watch=Watch(folder=tmp_path), stop=7)
    assert (tmp_path / CHECKPOINT).is_file()
    fresh, other = network(), network()
    run(fresh, seed=1)
    history = run(other, seed=1, watch=Watch(folder=tmp_path))
    assert equal(fresh, other)
    assert len(history) == SETTINGS.epochs


def test_early_stopping_resumes_with_the_best_weights_it_had(tmp_path: Path) -> None:
    metrics = [0.1, 0.9, 0.5, 0.4, 0.3]
    settings = Training(epochs=5, rate=0.1, patience=1)

    def watch(folder: Path | None, done: int = 0) -> Watch:
        rest = iter(metrics[done:])
        return Watch(evaluate=lambda _: next(rest), folder=folder)

    whole = network()
    history = run(whole, settings, watch=watch(None))
    assert [row["metric"] for row in history] == metrics[:4]
    best = network()
    run(best, settings, watch=watch(None), stop=6)
    assert not equal(best, network())
    again = network()
    run(network(), settings, watch=watch(tmp_path), stop=10)  # epoch 3 is finished
    run(again, settings, watch=watch(tmp_path, 3))
    assert equal(again, whole)


def test_a_training_killed_after_its_last_epoch_trains_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Training(epochs=9, rate=0.1, patience=0)

    def watch(*metrics: float) -> Watch:
        rest = iter(metrics)
        return Watch(evaluate=lambda _: next(rest), folder=tmp_path)

    whole = network()
    run(whole, settings, watch=watch(0.5, 0.4))
    with monkeypatch.context() as patch:
        patch.setattr("rarefy.loops.train.conclude", lambda *_: None)  # the process ends here
        run(network(), settings, watch=watch(0.5, 0.4))
    again = network()
    history = run(again, settings, watch=watch())
    assert [row["metric"] for row in history] == [0.5, 0.4]
    assert equal(again, whole)


def test_early_stopping_returns_the_best_epoch() -> None:
    states: list[dict[str, Tensor]] = []
    losses = iter([5.0, 3.0, 4.0, 3.5])

    def judge(model: nn.Module) -> float:
        states.append(copy.deepcopy(model.state_dict()))
        return next(losses)

    model = network()
    watch = Watch(evaluate=judge, higher_is_better=False)
    run(model, Training(epochs=9, rate=0.1, patience=1), watch=watch)
    assert len(states) == 4
    found = model.state_dict()
    assert all(torch.equal(found[name], states[1][name]) for name in found)


def test_one_step_of_plain_descent_is_the_closed_form() -> None:
    model = nn.Linear(3, 1, bias=False)
    w = model.weight.detach().clone()
    x, y = torch.randn(4, 3), torch.randn(4, 1)
    settings = Training(
        epochs=1, rate=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0, schedule="constant"
    )
    for batch in train(model, [(x, y)], settings):
        batch.minimise(F.mse_loss(batch.model(batch.inputs), batch.targets))
    gradient = 2 * (x @ w.T - y).T @ x / 4
    assert torch.allclose(model.weight, w - 0.1 * gradient, atol=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("stop", [None, 1])
def test_nothing_of_the_training_stays_on_the_network(precision: Any, stop: int | None) -> None:
    model = network()
    own = model.forward
    model.marker = "mine"  # type: ignore[assignment]
    before = dict(vars(model))
    run(model, dataclasses.replace(SETTINGS, precision=precision, epochs=1), stop=stop)
    assert vars(model) == before | {"training": model.training}
    assert model.forward == own
    x = torch.randn(2, 6)
    assert model.eval()(x).dtype == torch.float32
    assert equal(copy.deepcopy(model), model)


def test_clipping_bounds_the_step() -> None:
    settings = Training(epochs=1, rate=1.0, momentum=0.0, weight_decay=0.0, warmup=0.0, clip=0.01)
    model = nn.Linear(3, 1)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    for batch in train(model, [(torch.full((2, 3), 100.0), torch.zeros(2, 1))], settings):
        batch.minimise(batch.model(batch.inputs).square().sum())
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved = float((after - before).norm())
    assert 0.004 < moved <= 0.01 * (1 + 1e-4)


def test_the_average_is_what_is_returned() -> None:
    seen: list[Tensor] = []
    model = nn.Linear(2, 1, bias=False)
    average = model.weight.detach().clone()
    settings = Training(epochs=2, rate=0.1, average=0.5)
    watch = Watch(after_step=lambda: seen.append(model.weight.detach().clone()))
    for batch in train(model, [(torch.ones(1, 2), torch.zeros(1, 1))] * 3, settings, watch=watch):
        batch.minimise(batch.model(batch.inputs).square().sum())
    for step, weight in enumerate(seen, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(model.weight, average)
    assert not torch.allclose(seen[-1], average)


def test_only_the_given_parameters_move() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    head = list(model[4].parameters())  # type: ignore[index]
    for batch in train(model, data(), Training(epochs=1, rate=0.1), parameters=head):
        batch.minimise(F.cross_entropy(batch.model(batch.inputs), batch.targets))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"4.weight", "4.bias"}


def test_batches_know_epoch_and_progress_and_the_model_learns() -> None:
    model = network()
    seen: list[tuple[int, float]] = []
    for batch in train(model, data(), Training(epochs=40, rate=0.2)):
        seen.append((batch.epoch, batch.progress))
        batch.minimise(F.cross_entropy(batch.model(batch.inputs), batch.targets))
    assert [epoch for epoch, _ in seen] == [i // 3 for i in range(120)]
    assert [p for _, p in seen] == pytest.approx([i / 120 for i in range(120)])
    assert not model.training
    x, y = data(24, shuffle=False).dataset.tensors  # type: ignore[attr-defined]
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9


def test_seeds_decide_the_order_alone() -> None:
    one, same, other = network(), network(), network()
    run(one)
    torch.manual_seed(99)  # the state of the global generator must not matter
    run(same)
    run(other, seed=1)
    assert equal(one, same)
    assert not equal(one, other)
    assert len({epoch_seed(s, e) for s in range(20) for e in range(20)}) == 400


def test_unlabelled_batches() -> None:
    model = nn.Linear(2, 2)
    for batch in train(model, [torch.ones(1, 2)], Training(epochs=1), labelled=False):
        assert batch.targets is None
        batch.minimise(batch.model(batch.inputs).sum())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once(value: float) -> None:
    model = network()
    before = copy.deepcopy(model)

    def burst() -> None:
        for batch in train(model, data(), SETTINGS, watch=Watch("distill")):
            batch.minimise(batch.model(batch.inputs).sum() * value)

    with pytest.raises(ModelError) as caught:
        burst()
    message = str(caught.value)
    assert message.startswith(f"the loss of 'distill' became {value} in epoch 1; lower the")
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_weights_that_burst_are_not_returned() -> None:
    model = nn.Linear(1, 1, bias=False)
    settings = Training(epochs=1, rate=1e38, warmup=0.0, weight_decay=0.0, schedule="constant")

    def burst() -> None:
        for batch in train(model, [torch.full((1, 1), 1e3)], settings, labelled=False):
            batch.minimise(batch.model(batch.inputs).sum())

    with pytest.raises(ModelError, match="ended with weights that are not finite"):
        burst()


def test_a_forgotten_loss_is_named() -> None:
    with pytest.raises(ModelError, match=r"'train' handed no loss to Batch\.minimise"):
        for _ in train(network(), data(), SETTINGS):
            pass


def test_empty_loaders() -> None:
    assert steps_of(iter([1, 2])) == 2
    for empty in ([], data(0, shuffle=False)):
        with pytest.raises(TaskError, match="the loader is empty"):
            next(train(network(), empty, SETTINGS))
