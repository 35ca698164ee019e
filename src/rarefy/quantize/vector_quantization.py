# SPDX-License-Identifier: Apache-2.0
"""Weights as rows of small tables: product and residual quantisation, and signs, without training.

Gong, Liu, Yang, Bourdev: Compressing Deep Convolutional Networks using Vector Quantization, 2014,
arXiv 1412.6115, section 3. A weight is a matrix W (rows, columns), a convolution's filters being its rows.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.codebook import Codebook
from rarefy.forms.shadow import Form
from rarefy.quantize.kmeans import cluster, nearest_codes
from rarefy.quantize.line import Array
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select
from rarefy.step import Context, Count, Patterns, Step


def nearest_rows(X: Array, centres: Array) -> Array:
    """Index of the nearest of `centres` (k, d) for every row of X (n, d)."""
    squares = (centres**2).sum(1)
    parts = np.array_split(
        X, math.ceil(len(X) / 8192)
    )  # distances of all rows would fill the memory
    return np.concatenate([(squares - 2 * part @ centres.T).argmin(1) for part in parts])


def spread_rows(X: Array, k: int, generator: np.random.Generator) -> Array:
    """k rows of X drawn far apart (k-means++: Arthur, Vassilvitskii 2007); fewer if rows repeat."""
    chosen = [int(generator.integers(len(X)))]
    distance = ((X - X[chosen[0]]) ** 2).sum(1)
    while len(chosen) < k and distance.max() > 0:
        chosen.append(int(generator.choice(len(X), p=distance / distance.sum())))
        distance = np.minimum(distance, ((X - X[chosen[-1]]) ** 2).sum(1))
    return X[chosen]


def cluster_rows(X: Array, k: int, seed: int = 0, iterations: int = 50) -> tuple[Array, Array]:
    """k-means of the rows of X (n, d): centres (at most k, d) and codes (n,).

    Rows of one number are clustered optimally; others by Lloyd's iteration from k-means++.
    """
    X = np.asarray(X, np.float64)
    if X.shape[1] == 1:
        levels = cluster(X, k)
        return levels[:, None], nearest_codes(X[:, 0], levels)
    centres = spread_rows(X, k, np.random.default_rng(seed))
    codes = nearest_rows(X, centres)
    for _ in range(iterations):
        count = np.bincount(codes, minlength=len(centres))
        total = np.zeros_like(centres)
        np.add.at(total, codes, X)
        centres = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], centres)
        before, codes = codes, nearest_rows(X, centres)
        if np.array_equal(codes, before):
            break
    return centres, codes


def product_quantize(W: Array, k: int, width: int, seed: int = 0) -> tuple[Array, Array]:
    """Splits W (m, n) into blocks of `width` columns and clusters the rows of each (equation 6).

    Returns:
        Tables (ceil(n / width), k, width), the last padded with zeros, and codes (m, ceil(n / width)).
    """
    W = np.pad(W, ((0, 0), (0, -W.shape[1] % width)))
    blocks = W.reshape(len(W), -1, width)
    found = [cluster_rows(blocks[:, b], k, seed + b) for b in range(blocks.shape[1])]
    return stack_tables([t for t, _ in found], k), np.stack([c for _, c in found], 1)


def residual_quantize(W: Array, k: int, stages: int, seed: int = 0) -> tuple[Array, Array]:
    """Clusters the rows of W (m, n), then what is left of them, again and again (equation 7).

    Returns:
        Tables (stages, k, n) and codes (m, stages); a row is the sum of its entries.
    """
    R, tables, codes = np.asarray(W, np.float64), [], []
    for stage in range(stages):
        table, code = cluster_rows(R, k, seed + stage)
        R = R - table[code]
        tables.append(table)
        codes.append(code)
    return stack_tables(tables, k), np.stack(codes, 1)


def stack_tables(tables: list[Array], k: int) -> Array:
    """Tables with at most k rows as one array (tables, largest number of rows, width)."""
    most = max(len(table) for table in tables)
    return np.stack([np.pad(table, ((0, most - len(table)), (0, 0))) for table in tables])


class RowTables(Form):
    """A weight whose rows are put together from rows of T tables, one entry of each.

    Args:
        codes: (m, T) which entry.
        shape: of the weight; (m, n) once its rows are flattened.
        summed: whether entries are added (residual quantisation) or stand side by side (product).
    """

    kind: ClassVar[str] = "codebook"
    codes: Tensor

    def __init__(self, codes: Tensor, shape: tuple[int, ...], summed: bool) -> None:
        super().__init__()
        self.shape, self.summed = tuple(shape), summed
        small = int(codes.max()) < 256
        self.register_buffer("codes", codes.to(torch.uint8 if small else torch.int32))

    def forward(self, tables: Tensor) -> Tensor:  # (T, k, d) -> shape
        T, k, _ = tables.shape
        place = self.codes.long() + k * torch.arange(T, device=tables.device)  # (m, T)
        entries = torch.nn.functional.embedding(place, tables.flatten(0, 1))  # (m, T, d)
        rows = entries.sum(1) if self.summed else entries.flatten(1)
        return rows[:, : math.prod(self.shape[1:])].reshape(self.shape)

    def right_inverse(self, tables: Tensor) -> Tensor:
        return tables

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Stays as it is: tables and codes are what is stored."""


@dataclass(frozen=True)
class VectorQuantization(Step):
    """Replaces weights by entries of tables found by k-means; data and training are not needed.

    A layer for which tables and codes would take as much room as its weights is left alone.

    Attributes:
        method: ``"product"`` (blocks of columns), ``"residual"`` (rows, then what is left of them) or
            ``"binary"`` (sign times the mean absolute value, the baseline).
        levels: entries of a table.
        width: columns of a block; product only.
        stages: how often; residual only.
        layers, exclude: which layers, see `rarefy.select.select`; convolutions can be named too.
    """

    method: Literal["product", "residual", "binary"] = "product"
    levels: Annotated[int, Field(ge=2, le=65536)] = 16
    width: Count = 4
    stages: Count = 2
    layers: Patterns = "type:Linear"
    exclude: Patterns = ()

    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "codebook"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Quantises every selected layer for which it pays."""
        left = []
        for shared in holders(model, select(model, self.layers, exclude=self.exclude)):
            w = finite_weight(shared[0])
            if self.method == "binary":
                clothe(shared, sign_scaled(w), Codebook(w >= 0, 2))
                continue
            W = w.flatten(1).cpu().double().numpy()
            if self.method == "product":
                tables, codes = product_quantize(W, self.levels, self.width, context.seed)
            else:
                tables, codes = residual_quantize(W, self.levels, self.stages, context.seed)
            if stored_bytes(tables, codes) >= 4 * W.size:
                left.append(shared[0].name)
                continue
            found, summed = torch.from_numpy(codes).to(w.device), self.method == "residual"
            form = RowTables(found, tuple(w.shape), summed)
            clothe(shared, torch.from_numpy(tables).to(w), form)
        context.record["left_alone"] = left
        return model


def sign_scaled(w: Tensor) -> Tensor:
    """a * sign(w) with a = mean |w|, the least-squares factor; 0 counts as positive."""
    return torch.where(w >= 0, w.abs().mean(), -w.abs().mean())


def stored_bytes(tables: Array, codes: Array) -> float:
    """Bytes of float32 tables and of codes of log2(levels) bits."""
    return 4 * tables.size + codes.size * math.log2(max(tables.shape[1], 2)) / 8
