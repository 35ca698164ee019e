# SPDX-License-Identifier: Apache-2.0
"""How long one call takes, of several candidates side by side, so that a busy machine is fair to all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rarefy.task import Inputs

SHORTEST = 5e-3  # seconds that one measurement should at least take
LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Latency:
    """Times of one candidate, in milliseconds a call.

    Attributes:
        median, iqr: of the wall time, and its quartiles.
        cpu_median: median of the process's CPU time over all threads.
        ratio, ratio_iqr: median and quartiles of the wall time divided by the first candidate's in the
            same round; below 1 is faster.
        rounds: how many were made.
        threads: that torch was pinned to.
    """

    median: float
    iqr: tuple[float, float]
    cpu_median: float
    ratio: float
    ratio_iqr: tuple[float, float]
    rounds: int
    threads: int


def latency(
    candidates: Mapping[str, Callable[[Inputs], Any]],
    inputs: Inputs,
    *,
    rounds: int = 30,
    warmup: int = 5,
    threads: int | None = None,
    budget: float = 5.0,
    seed: int = 0,
) -> dict[str, Latency]:
    """Measures all candidates in every round, in a random order, on the same inputs.

    Args:
        candidates: by name; the first is what the others are compared with.
        inputs: of one call.
        rounds: at most.
        warmup: calls of each candidate before the first round.
        threads: torch is pinned to so many for the duration; a runtime pins its own.
        budget: seconds after which no further round is started, once there are seven.
        seed: of the order.

    Returns:
        The times by candidate, in the order given.
    """
    was = torch.get_num_threads()
    torch.set_num_threads(threads or was)
    try:
        with torch.no_grad():
            repeats = {name: settle(run, inputs, warmup) for name, run in candidates.items()}
            wall, processor = measure(candidates, inputs, repeats, rounds, budget, seed)
        return summarise(wall, processor, torch.get_num_threads())
    finally:
        torch.set_num_threads(was)


def settle(run: Callable[[Inputs], Any], inputs: Inputs, warmup: int) -> int:
    """Warms a candidate up; how many calls one measurement shall consist of."""
    for _ in range(warmup):
        run(inputs)
    started = time.perf_counter()
    run(inputs)
    return max(1, round(SHORTEST / max(time.perf_counter() - started, 1e-7)))


def measure(
    candidates: Mapping[str, Callable[[Inputs], Any]],
    inputs: Inputs,
    repeats: Mapping[str, int],
    rounds: int,
    budget: float,
    seed: int,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU milliseconds a call of every candidate in every round."""
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    processor: dict[str, list[float]] = {name: [] for name in candidates}
    source, order = random.Random(seed), list(candidates)
    deadline = time.perf_counter() + budget
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        source.shuffle(order)
        for name in order:
            run, count = candidates[name], repeats[name]
            spent, started = time.process_time(), time.perf_counter()
            for _ in range(count):
                run(inputs)
            wall[name].append(1e3 * (time.perf_counter() - started) / count)
            processor[name].append(1e3 * (time.process_time() - spent) / count)
    return wall, processor


def summarise(
    wall: Mapping[str, list[float]], processor: Mapping[str, list[float]], threads: int
) -> dict[str, Latency]:
    """Medians and quartiles, and ratios to the first candidate round by round."""
    first = next(iter(wall.values()))
    found = {}
    for name, times in wall.items():
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        ratios = [mine / base for mine, base in zip(times, first, strict=True)]
        less, ratio, more = statistics.quantiles(ratios, n=4, method="inclusive")
        spent = statistics.median(processor[name])
        found[name] = Latency(middle, (low, high), spent, ratio, (less, more), len(times), threads)
    return found
