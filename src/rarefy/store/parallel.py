# SPDX-License-Identifier: Apache-2.0
"""All tensors of a `.rfy` file decoded by several workers, each of which opens the file itself.

Workers are threads where the decoder's loops are compiled, which run without Python's lock. The decoder
of `constriction` holds it, so without them workers are processes.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rarefy.store.compiled import loops
from rarefy.store.rfy import read

LEAST = 1 << 24
"""Bytes of decoded tensors below which one process is faster than starting several."""


def read_parallel(
    path: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    *,
    workers: int | None = None,
    least: int = LEAST,
) -> dict[str, NDArray[Any]]:
    """Tensors by name, in the order of the file.

    Args:
        path: a `.rfy` file; it is checked whole once.
        names: which tensors; all if not given.
        workers: threads or processes; as many as the machine has processors if not given.
        least: decoded bytes from which on they are started.

    Raises:
        FileError: as `rfy.read`, whichever worker finds it.
        KeyError: a name that the file does not have.

    Examples:
        >>> weights = read_parallel("model.rfy", workers=4)
    """
    with read(path) as archive:
        sizes = archive.decoded_sizes()
        wanted = list(sizes) if names is None else list(dict.fromkeys(names))
        chosen = {name: sizes[name] for name in wanted}
        parts = shares(chosen, workers or os.cpu_count() or 1)
        if len(parts) < 2 or sum(chosen.values()) < least:
            return {name: archive[name] for name in wanted}
    with _workers(len(parts), os.path.getsize(path)) as pool:
        found: dict[str, NDArray[Any]] = {}
        for part in pool.map(_decoded, [Path(path)] * len(parts), parts):
            found |= part
    return {name: found[name] for name in wanted}


def _workers(count: int, size: int) -> Executor:
    if loops(size) is not None:
        return ThreadPoolExecutor(count)
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def shares(sizes: Mapping[str, int], workers: int) -> list[list[str]]:
    """Names dealt out so that every worker has about as many bytes: the largest first, to who has least.

    Examples:
        >>> shares({"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}, 2)
        [['a', 'd'], ['b', 'c', 'e']]
    """
    parts: list[list[str]] = [[] for _ in range(max(min(workers, len(sizes)), 1))]
    loads = [0] * len(parts)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        least = loads.index(min(loads))
        parts[least].append(name)
        loads[least] += sizes[name]
    return parts


def _decoded(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    with read(path, verify=False) as archive:
        return {name: archive[name] for name in names}
