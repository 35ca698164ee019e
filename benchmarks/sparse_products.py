# SPDX-License-Identifier: Apache-2.0
"""Weights multiplied as they are stored, beside the dense product, on one thread.

    python benchmarks/sparse_products.py [--size 1024] [--rounds 40] [--json]

A square matrix with a share of its entries, or of its blocks of 8 by 8, times some columns. Dense is numpy's
BLAS; CSR and BSR are `rarefy.store.sparse`, once with the sparse library that PyTorch brings and once with
numpy alone. All are interleaved; a factor is the dense product's time over the format's in the same round,
its median and quartiles. The last column is the software model of EIE with 64 elements: cycles of one product
with a vector, as a share of what the dense matrix would take; its own time is no engine's and not stated.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.store.eie import engine_of, multiply
from rarefy.store.sparse import Bsr, Csr
from rarefy.store.sparse_products import Rows, by_numpy

DENSITIES = (0.3, 0.1, 0.05, 0.02)
COLUMNS = (1, 16, 128)
BLOCK = 8
ELEMENTS = 64

Factor = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """Milliseconds of the dense product, and how much faster each format is: (median, quartiles)."""

    density: float
    columns: int
    dense: float
    csr: Factor
    csr_numpy: Factor
    bsr: Factor
    bsr_numpy: Factor
    eie_cycles: float


def made(size: int, density: float, block: int) -> NDArray[np.float32]:
    """Normal weights in a share of all blocks."""
    rng = np.random.default_rng(0)
    kept = np.kron(rng.random((size // block, size // block)) < density, np.ones((block, block)))
    return (rng.normal(size=(size, size)) * kept).astype(np.float32)


def times(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of every candidate in every round, the first two rounds left out."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    rng = np.random.default_rng(0)
    for _ in range(rounds + 2):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            candidates[name]()
            found[name].append(time.perf_counter() - start)
    return {name: np.array(seconds[2:]) for name, seconds in found.items()}


def measure(size: int, density: float, columns: int, rounds: int) -> Row:
    """One row of the table."""
    matrix, blocks = made(size, density, 1), made(size, density, BLOCK)
    right = np.random.default_rng(1).normal(size=(size, columns)).astype(np.float32)
    csr, bsr = Csr.of(matrix), Bsr.of(blocks, (BLOCK, BLOCK))
    entries = Rows(csr.values.reshape(-1, 1, 1), csr.columns, csr.starts)
    tiles = Rows(bsr.values, bsr.columns, bsr.starts)
    assert np.allclose(csr.matmul(right), matrix @ right, atol=1e-3)
    assert np.allclose(bsr.matmul(right), blocks @ right, atol=1e-3)
    candidates: dict[str, Callable[[], Any]] = {
        "dense": lambda: matrix @ right,
        "csr": lambda: csr.matmul(right),
        "bsr": lambda: bsr.matmul(right),
        "csr_numpy": lambda: by_numpy(entries, right),
        "bsr_numpy": lambda: by_numpy(tiles, right),
    }
    seconds = times(candidates, rounds)
    dense = seconds.pop("dense")
    factors = {
        name: tuple(np.round(np.quantile(dense / found, [0.5, 0.25, 0.75]), 2).tolist())
        for name, found in seconds.items()
    }
    levels = np.sign(matrix) * np.minimum(np.ceil(np.abs(matrix) * 3), 7)  # 15 values
    run = multiply(engine_of(levels, ELEMENTS), np.ones(size))
    cycles = run.cycles / (size * size / ELEMENTS)
    return Row(
        density, columns, round(1e3 * float(np.median(dense)), 3), **factors, eie_cycles=cycles
    )


def show(row: Row) -> str:
    """One line of the table."""
    factors = (row.csr, row.csr_numpy, row.bsr, row.bsr_numpy)
    told = " | ".join(f"{middle:.2f} ({low:.2f}–{high:.2f})" for middle, low, high in factors)
    return (
        f"| {row.density:.0%} | {row.columns} | {row.dense:.3f} | {told} | {row.eie_cycles:.1%} |"
    )


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(density, columns) for density in DENSITIES for columns in COLUMNS]
    rows = []
    if not options.json:
        print(
            "| kept | columns | dense, ms | CSR | CSR, numpy | BSR 8 × 8 | BSR, numpy | EIE, cycles |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for density, columns in cases:
        rows.append(measure(options.size, density, columns, options.rounds))
        if not options.json:
            print(show(rows[-1]), flush=True)
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
