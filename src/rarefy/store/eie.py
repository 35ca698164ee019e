# SPDX-License-Identifier: Apache-2.0
"""A software model of EIE, an engine that multiplies with compressed weights as they are stored.

Han, Liu, Mao, Pu, Pedram, Horowitz, Dally: EIE: Efficient Inference Engine on Compressed Deep Neural
Network, ISCA 2016, arXiv 1602.01528. Row i of a matrix belongs to processing element i mod N. Each
element holds its part of every column as pairs of four bits: an index into a codebook of 16 values
and the number of zeros in front (section 3.2; runs above 15 are cut by padding zeros). Activations
that are zero are never sent; each element queues up to `depth` of the others and works off one pair
a cycle (section 4), so a short column waits for the longest only when queues run full.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_RUN = 15
"""Zeros that one pair can skip."""


@dataclass(frozen=True)
class Element:
    """One processing element's part of a matrix, column by column.

    Attributes:
        codes: shape (pairs,), index into the codebook.
        zeros: shape (pairs,), zeros in front of each pair, at most 15.
        starts: shape (columns + 1,), where each column begins.
    """

    codes: NDArray[np.uint8]
    zeros: NDArray[np.uint8]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Engine:
    """A matrix spread over processing elements.

    Attributes:
        shape: rows and columns.
        codebook: 16 values at most, the first of them 0.
        elements: row i stands in element i mod N.
    """

    shape: tuple[int, int]
    codebook: NDArray[np.float32]
    elements: tuple[Element, ...]

    @property
    def pairs(self) -> int:
        """Stored pairs, padding included."""
        return sum(element.codes.size for element in self.elements)

    @property
    def padding(self) -> int:
        """Pairs whose value is zero, which are there only to bridge long runs."""
        return sum(int((element.codes == 0).sum()) for element in self.elements)

    @property
    def bits(self) -> int:
        """Eight bits a pair, 16 bits a start, and the codebook in 16-bit fixed point."""
        starts = sum(element.starts.size for element in self.elements)
        return 8 * self.pairs + 16 * starts + 16 * self.codebook.size


@dataclass(frozen=True)
class Run:
    """What one product cost.

    Attributes:
        output: shape (rows,).
        work: multiplications of each element, shape (elements,), padding included.
        cycles: until the last element has finished.
    """

    output: NDArray[np.float64]
    work: NDArray[np.int64]
    cycles: int

    @property
    def balance(self) -> float:
        """Mean over maximum of the elements' work: 1 where all finish together."""
        return float(self.work.mean() / self.work.max()) if self.work.max() else 1.0


def engine_of(matrix: NDArray[Any], elements: int) -> Engine:
    """Spread a matrix of at most 15 distinct values beside zero over processing elements.

    Args:
        matrix: shape (rows, columns).
        elements: number N of processing elements.

    Raises:
        ValueError: more values than four bits can name, NaN or infinity, no matrix, no element.

    Examples:
        >>> engine_of(np.eye(4, dtype=np.float32), 2).pairs
        4
    """
    if matrix.ndim != 2 or elements < 1:
        raise ValueError(
            f"{elements} elements for an array of shape {matrix.shape}: give one or more, and a matrix"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("a matrix with NaN or infinity has no codebook")
    values = np.unique(matrix[matrix != 0])
    if values.size > 15:
        raise ValueError(f"{values.size} distinct values do not fit a codebook of 16 with zero")
    codebook = np.concatenate([[0], values]).astype(np.float32)
    codes = np.where(matrix != 0, np.searchsorted(values, matrix) + 1, 0).astype(np.uint8)
    parts = tuple(_element(codes[first::elements]) for first in range(elements))
    return Engine((matrix.shape[0], matrix.shape[1]), codebook, parts)


def _element(codes: NDArray[np.uint8]) -> Element:
    kept: list[int] = []
    zeros: list[int] = []
    starts = [0]
    for column in codes.T:
        last = -1
        for row in np.flatnonzero(column).tolist():
            gap = row - last - 1
            while gap > LONGEST_RUN:
                kept.append(0)
                zeros.append(LONGEST_RUN)
                gap -= LONGEST_RUN + 1
            kept.append(int(column[row]))
            zeros.append(gap)
            last = row
        starts.append(len(kept))
    return Element(np.array(kept, np.uint8), np.array(zeros, np.uint8), np.array(starts))


def multiply(engine: Engine, activations: NDArray[Any], depth: int = 8) -> Run:
    """The product of the engine's matrix with activations, and its cost.

    Args:
        activations: shape (columns,).
        depth: activations that an element can have waiting.

    Raises:
        ValueError: activations of another shape.
    """
    if activations.shape != engine.shape[1:]:
        raise ValueError(
            f"activations of shape {activations.shape} do not fit a matrix of shape {engine.shape}"
        )
    number = len(engine.elements)
    output = np.zeros(engine.shape[0])
    active = np.flatnonzero(activations)
    lengths = np.zeros((active.size, number), dtype=np.int64)
    for place, element in enumerate(engine.elements):
        for index, column in enumerate(active.tolist()):
            rows, values = _column(engine, element, column)
            np.add.at(output, rows * number + place, values * activations[column])
            lengths[index, place] = values.size
    return Run(output, lengths.sum(axis=0), _cycles(lengths, depth))


def _column(
    engine: Engine, element: Element, column: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows within the element, and values, of one column's pairs."""
    part = slice(element.starts[column], element.starts[column + 1])
    rows = np.cumsum(element.zeros[part].astype(np.int64) + 1) - 1
    return rows, engine.codebook[element.codes[part]].astype(np.float64)


def _cycles(lengths: NDArray[np.int64], depth: int) -> int:
    """Cycles until all is done: an activation is sent when every queue has room for it.

    Args:
        lengths: pairs of each (activation, element).
        depth: of the queues.
    """
    done = np.zeros((lengths.shape[0] + 1, lengths.shape[1]), dtype=np.int64)
    sent = 0
    for index, work in enumerate(lengths):
        room = int(done[index - depth + 1].max()) if index >= depth else 0
        sent = max(sent + 1, room)
        done[index + 1] = np.maximum(done[index], sent) + work
    return int(done[-1].max())


def decoded(engine: Engine) -> NDArray[np.float64]:
    """The dense matrix that the engine holds, shape (rows, columns)."""
    out = np.zeros(engine.shape)
    for place, element in enumerate(engine.elements):
        for column in range(engine.shape[1]):
            rows, values = _column(engine, element, column)
            out[rows * len(engine.elements) + place, column] = values
    return out


def layers_of(tensors: dict[str, NDArray[Any]], elements: int) -> Iterator[tuple[str, Engine]]:
    """An engine for every matrix that a codebook of 16 can hold."""
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and np.unique(tensor[tensor != 0]).size <= 15:
            yield name, engine_of(tensor, elements)
