# SPDX-License-Identifier: Apache-2.0
"""Values on the line, sorted and summed up, so that the cost of any run of them is known in O(1)."""

import tempfile
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
LARGE = 1 << 20  # values whose sums are worth a file
PIECE = 1 << 17  # values that are worked on together


@dataclass(frozen=True)
class Line:
    """Values in ascending order with prefix sums, each of length n + 1 and starting with 0.

    Attributes:
        x: (n,) ascending values, float64, with their mean taken off so that sums keep their digits.
        mean: what was taken off.
        count, total, square: prefix sums of the weights, the weighted values and their squares.
    """

    x: Array
    mean: float
    count: Array
    total: Array
    square: Array

    def cost(self, i: Array, j: Array) -> Array:
        """Sum of squared distances of the values i <= . < j to their mean; i < j elementwise."""
        n, s = self.count[j] - self.count[i], self.total[j] - self.total[i]
        return np.maximum(self.square[j] - self.square[i] - s * s / n, 0.0)

    def means(self, ends: Array) -> Array:
        """Means of the clusters that `ends` (starting with 0, ending with n) cut the values into."""
        return np.diff(self.total[ends]) / np.diff(self.count[ends])


def line_of(values: Array, counts: Array | None = None) -> Line:
    """Sorts `values` (any shape) and sums them up; `counts` are weights of values already sorted."""
    x = room(np.size(values))
    x[:] = np.ravel(values)
    if counts is None:
        x.sort()
        mean = float(x.sum() / max(len(x), 1))
    else:
        mean = float(np.average(x, weights=counts))
    x -= mean
    return Line(x, mean, *(prefix_sums(x, counts, p) for p in range(3)))


def prefix_sums(x: Array, counts: Array | None, power: int) -> Array:
    """0 and the sums of the first 1, 2, … values of counts · x^power, shape (n + 1,)."""
    sums = room(len(x) + 1)
    sums[0] = 0.0
    for start in range(0, len(x), PIECE):
        terms = x[start : start + PIECE] ** power
        terms *= 1.0 if counts is None else counts[start : start + PIECE]
        terms[0] += sums[start]
        np.cumsum(terms, out=sums[start + 1 : start + 1 + len(terms)])
    return sums


def room(size: int) -> Array:
    """An array of float64, in a file without a name if it is large: several are needed for one weight."""
    if size < LARGE:
        return np.empty(size)
    with tempfile.TemporaryFile(prefix="rarefy-") as file:
        return np.memmap(file, np.float64, "w+", shape=(size,))
