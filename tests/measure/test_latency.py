# SPDX-License-Identifier: Apache-2.0
"""Latency is measured fairly: interleaved, warmed up, pinned. No test asserts a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.measure import latency as page
from rarefy.measure.latency import latency, latency_in_turns, repetitions_of

X = torch.randn(3, 4)


class Clock:
    """A clock that candidates move, so that the arithmetic can be checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(page.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(page.time, "process_time", lambda: 3 * self.now)

    def work(self, seconds: float, log: list[str], name: str) -> Any:
        """A candidate that takes so long."""

        def run(x: Tensor) -> None:
            self.now += seconds
            log.append(name)

        return run


def test_medians_ratios_and_repetitions_are_those_of_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, log = Clock(monkeypatch), []
    found = latency(
        {"slow": clock.work(8e-3, log, "slow"), "fast": clock.work(2e-3, log, "fast")},
        X,
        rounds=11,
        threads=1,
    )
    slow, fast = found["slow"], found["fast"]
    assert list(found) == ["slow", "fast"]
    assert slow.median == pytest.approx(8)
    assert fast.median == pytest.approx(2)
    assert fast.iqr == pytest.approx((2, 2))
    assert fast.cpu_median == pytest.approx(6)
    assert (slow.ratio, fast.ratio) == pytest.approx((1, 0.25))
    assert fast.ratio_iqr == pytest.approx((0.25, 0.25))
    assert (slow.repetitions, fast.repetitions) == (1, 2)
    assert (fast.rounds, fast.threads, fast.batch) == (11, 1, 3)


def test_every_round_measures_each_candidate_in_a_seeded_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def order(seed: int) -> list[str]:
        clock, log = Clock(monkeypatch), []
        names = ["a", "b", "c"]
        work = {name: clock.work(8e-3, log, name) for name in names}
        latency(work, X, rounds=20, warmup=2, seed=seed, budget=1e9)
        calls = log[6:]
        assert calls[::2] == calls[1::2]  # an untimed call, then a timed one
        return calls[::2]

    first = order(0)
    rounds = [tuple(first[i : i + 3]) for i in range(0, 60, 3)]
    assert all(set(r) == {"a", "b", "c"} for r in rounds)
    assert len(set(rounds)) > 1
    assert order(0) == first != order(1)


def test_the_budget_stops_early_but_not_before_seven_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    assert latency({"a": clock.work(10.0, [], "a")}, X, rounds=30, budget=1)["a"].rounds == 7
    assert latency({"a": clock.work(0.1, [], "a")}, X, rounds=30, budget=1.15)["a"].rounds == 12
    assert latency({"a": clock.work(10.0, [], "a")}, X, rounds=3, budget=1)["a"].rounds == 3


def test_warm_up_calls_every_candidate_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), []
    latency({n: clock.work(1.0, log, n) for n in "ab"}, X, rounds=1, warmup=4)
    assert log[:8] == ["a"] * 4 + ["b"] * 4
    assert repetitions_of(lambda: clock.work(1e-4, [], "")(X), 1) == 50


def test_networks_run_in_eval_mode_without_gradients_and_threads_are_restored() -> None:
    seen: list[tuple[bool, bool, int]] = []

    class Watcher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
            return x

    net, before = Watcher().train(), torch.get_num_threads()
    latency({"net": net}, X, rounds=1, warmup=2, threads=3)
    assert set(seen) == {(False, False, 3)}
    assert net.training
    assert torch.get_num_threads() == before


def test_no_candidate_or_round_is_an_error() -> None:
    with pytest.raises(ValueError, match="0, 5 and 1"):
        latency({}, X, rounds=5)
    with pytest.raises(ValueError, match="1, 0 and 1"):
        latency({"a": nn.Identity()}, X, rounds=0)
    with pytest.raises(ValueError, match="1, 30 and 0"):
        latency_in_turns({"a": nn.Identity}, X, turns=0)


def test_in_turns_one_candidate_is_open_at_a_time_and_each_as_often() -> None:
    alive: set[str] = set()
    opened: list[str] = []

    class Held:
        def __init__(self, name: str) -> None:
            assert not alive
            self.name = name
            alive.add(name)
            opened.append(name)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def __del__(self) -> None:
            alive.discard(self.name)

    found = latency_in_turns({n: lambda n=n: Held(n) for n in "abc"}, X, turns=3, rounds=6)  # type: ignore[misc]
    assert sorted(opened) == sorted("abc" * 3)
    assert {f.rounds for f in found.values()} == {6}
    assert found["a"].ratio == 1.0
    assert not alive
