# SPDX-License-Identifier: Apache-2.0
"""How long a call takes, candidates measured side by side so that a busy machine treats them alike."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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

    A measurement repeats the call until it takes about 5 ms. Ratios are taken within a round, where both
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
    if not callables or rounds < 1:
        raise ValueError(
            f"latency needs candidates and rounds; it got {len(callables)} and {rounds}"
        )
    count = threads if threads is not None else default_threads()
    names, order = list(callables), random.Random(seed)
    wall, cpu = ({name: list[float]() for name in names} for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(pinned(count))
        stack.enter_context(torch.inference_mode())
        for module in callables.values():
            if isinstance(module, nn.Module):
                stack.enter_context(evaluating(module))
        runs = {name: runner(function, inputs) for name, function in callables.items()}
        repetitions = {name: repetitions_of(run, warmup) for name, run in runs.items()}
        end = time.perf_counter() + budget
        for done in range(rounds):
            if done >= FEWEST and time.perf_counter() > end:
                break
            for name in order.sample(names, len(names)):
                seconds, busy = measure(runs[name], repetitions[name])
                wall[name].append(1e3 * seconds)
                cpu[name].append(1e3 * busy)
    batch = next((len(t) for t in tensors_of(inputs) if t.dim()), 1)
    first = np.array(wall[names[0]])
    return {
        name: summary(
            np.array(wall[name]), np.array(cpu[name]), first, (repetitions[name], count, batch)
        )
        for name in names
    }


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
