# SPDX-License-Identifier: Apache-2.0
"""How long a call takes, candidates measured side by side so that a busy machine treats them alike."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rarefy.export.threads import default_threads
from rarefy.loops.modes import evaluating
from rarefy.task import Inputs, call, tensors_of

SHORTEST = 5e-3  # seconds of one measurement; shorter ones drown in the clock and the scheduler
FEWEST = 7


@dataclass(frozen=True)
class Latency:
    """Time of one call of one candidate.

    Attributes:
        median: milliseconds of wall time.
        iqr: first and third quartile of it.
        cpu_median: milliseconds of processor time, all threads of the process together.
        ratio: of the wall time to that of the first candidate, median of the rounds' ratios.
        ratio_iqr: first and third quartile of the ratios.
        rounds: measurements made.
        repetitions: calls in one measurement.
        threads: that torch may use.
        batch: examples in a call.
    """

    median: float
    iqr: tuple[float, float]
    cpu_median: float
    ratio: float
    ratio_iqr: tuple[float, float]
    rounds: int
    repetitions: int
    threads: int
    batch: int


def latency(
    callables: Mapping[str, Callable[..., Any]],
    inputs: Inputs,
    *,
    rounds: int = 30,
    warmup: int = 5,
    threads: int | None = None,
    budget: float = 5.0,
    seed: int = 0,
) -> dict[str, Latency]:
    """Times candidates on the same inputs: every round measures each of them once, in a random order.

    A measurement repeats the call until it takes about 5 ms, behind one call that is not timed, so that none
    pays for what another left in the processor's caches. Ratios are taken within a round, where both
    candidates met the same machine, and are therefore steadier than the quotient of two medians.

    Args:
        callables: networks (called in eval mode without gradients) or programs; the first is the reference.
        inputs: for every call.
        rounds: measurements of each candidate.
        warmup: calls of each before the first measurement.
        threads: for torch during the measurement, default `default_threads()`; a program has its own.
        budget: seconds for everything after the warm-up; when they are over, at least 7 rounds are done.
        seed: of the order.

    Raises:
        ValueError: no candidates, or fewer than one round.

    Examples:
        >>> net = torch.nn.Linear(8, 8)
        >>> found = latency({"before": net, "after": net}, torch.randn(1, 8), rounds=7)
        >>> found["before"].ratio
        1.0
    """
    opened = {name: partial(lambda held: held, function) for name, function in callables.items()}
    return latency_in_turns(
        opened,
        inputs,
        turns=1,
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        budget=budget,
        seed=seed,
    )


def latency_in_turns(
    openers: Mapping[str, Callable[[], Callable[..., Any]]],
    inputs: Inputs,
    *,
    turns: int = 3,
    rounds: int = 30,
    warmup: int = 5,
    threads: int | None = None,
    budget: float = 5.0,
    seed: int = 0,
) -> dict[str, Latency]:
    """Times candidates that need not be open at the same time.

    In every turn each of them is opened, warmed up, measured and dropped, in a random order, so that only
    one takes memory; ratios are taken between measurements of the same turn, seconds apart. With one turn
    all are open together and every round measures each of them, as `latency` says.

    Args:
        openers: from name to what opens a network or a program; the first is the reference.
        inputs: for every call.
        turns: how often each is opened.
        rounds, warmup, threads, budget, seed: as for `latency`; rounds and budget are for all turns.

    Raises:
        ValueError: no candidates, or fewer than one round or turn.
    """
    if not openers or rounds < 1 or turns < 1:
        told = f"{len(openers)}, {rounds} and {turns}"
        raise ValueError(f"latency needs candidates, rounds and turns; it got {told}")
    count = threads if threads is not None else default_threads()
    names, order, repetitions = list(openers), random.Random(seed), dict[str, int]()
    times = {name: list[tuple[float, float]]() for name in names}
    for _ in range(turns):
        groups = [names] if turns == 1 else [[name] for name in order.sample(names, len(names))]
        seconds = budget / (turns * len(groups))
        limits = (math.ceil(FEWEST / turns), math.ceil(rounds / turns), seconds)
        found: dict[str, list[tuple[float, float]]] = {}
        with pinned(count), torch.inference_mode():
            for group in groups:
                opened = {name: openers[name] for name in group}
                found |= time_together(opened, inputs, warmup, limits, repetitions, order)
        least = min(len(measured) for measured in found.values())
        for name in names:
            times[name] += found[name][:least]
    batch = next((len(t) for t in tensors_of(inputs) if t.dim()), 1)
    arrays = {name: np.array(times[name]).T for name in names}
    first = arrays[names[0]][0]
    return {
        name: summary(wall, cpu, first, (repetitions[name], count, batch))
        for name, (wall, cpu) in arrays.items()
    }


def time_together(
    openers: Mapping[str, Callable[[], Callable[..., Any]]],
    inputs: Inputs,
    warmup: int,
    limits: tuple[int, int, float],
    repetitions: dict[str, int],
    order: random.Random,
) -> dict[str, list[tuple[float, float]]]:
    """Opens candidates and measures each of them in every round; milliseconds of wall and processor time.

    Args:
        openers, inputs, warmup: as for `latency_in_turns`.
        limits: fewest and most rounds, and seconds after which no more than the fewest are done.
        repetitions: calls in a measurement, by name; written for those that are new.
        order: shuffles the rounds.
    """
    fewest, most, seconds = limits
    with ExitStack() as stack:
        opened = {name: opener() for name, opener in openers.items()}
        for module in opened.values():
            if isinstance(module, nn.Module):
                stack.enter_context(evaluating(module))
        runs = {name: runner(function, inputs) for name, function in opened.items()}
        for name, run in runs.items():
            judged = repetitions_of(run, warmup)
            repetitions.setdefault(name, judged)
        found = {name: list[tuple[float, float]]() for name in runs}
        end = time.perf_counter() + seconds
        for done in range(most):
            if done >= fewest and time.perf_counter() > end:
                break
            for name in order.sample(list(runs), len(runs)):
                if len(runs) > 1:
                    runs[name]()
                spent, busy = measure(runs[name], repetitions[name])
                found[name].append((1e3 * spent, 1e3 * busy))
    return found


def summary(wall: Any, cpu: Any, first: Any, circumstances: tuple[int, int, int]) -> Latency:
    """Medians and quartiles of one candidate's times (rounds,), against those of the first."""
    repetitions, threads, batch = circumstances
    return Latency(
        median=float(np.median(wall)),
        iqr=quartiles(wall),
        cpu_median=float(np.median(cpu)),
        ratio=float(np.median(wall / first)),
        ratio_iqr=quartiles(wall / first),
        rounds=len(first),
        repetitions=repetitions,
        threads=threads,
        batch=batch,
    )


def runner(function: Callable[..., Any], inputs: Inputs) -> Callable[[], None]:
    """A call that returns when its result is there, also on a graphics card."""
    on_gpu = any(t.is_cuda for t in tensors_of(inputs))

    def run() -> None:
        call(function, inputs)
        if on_gpu:
            torch.cuda.synchronize()

    return run


def repetitions_of(run: Callable[[], None], warmup: int) -> int:
    """Warms up and returns how many calls last about `SHORTEST`, judged by the fastest one."""
    fastest = min(measure(run, 1)[0] for _ in range(max(warmup, 2)))
    return max(1, round(SHORTEST / max(fastest, 1e-7)))


def measure(run: Callable[[], None], repetitions: int) -> tuple[float, float]:
    """Seconds of wall and processor time of one call, averaged over so many."""
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(repetitions):
        run()
    end, done = time.perf_counter(), time.process_time()
    return (end - start) / repetitions, (done - busy) / repetitions


def quartiles(values: Any) -> tuple[float, float]:
    """The first and the third."""
    low, high = np.percentile(values, [25, 75])
    return float(low), float(high)


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Sets torch's number of threads for the duration."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
