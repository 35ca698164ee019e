# SPDX-License-Identifier: Apache-2.0
"""Rows and columns are reordered so that small weights gather in blocks, and whole blocks go.

Ji, Liang, Deng, Zhang, Zhang, Xie: TETRIS: TilE-matching the TRemendous Irregular Sparsity, NeurIPS 2018:
minimise the pruned norm sum M ∘ |P W Q| over permutations P, Q and block masks M of a given share, in turn:
the mask by the blocks' norms, a permutation by the best swaps of two rows, then of two columns (section 3).
Weights keep their places in the network; `tiled` gives the order in which a block-sparse product runs them.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.mask import set_mask
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.select import select
from rarefy.step import Context, Count, Fraction, OpenFraction, Patterns, Positive, Step
from rarefy.store.sparse import Bsr

Array = NDArray[np.float64]
Order = NDArray[np.int64]


@dataclass(frozen=True)
class Tiling:
    """An order of rows and columns, and which blocks of the reordered matrix stay.

    Attributes:
        rows, columns: the matrix that is tiled is ``w[rows][:, columns]``.
        keep: (row blocks, column blocks) bool.
        block: height and width.
    """

    rows: Order
    columns: Order
    keep: NDArray[np.bool_]
    block: tuple[int, int]

    def mask(self) -> NDArray[np.bool_]:
        """Which weights stay, in their own places, (rows, columns)."""
        spread = self.keep.repeat(self.block[0], 0).repeat(self.block[1], 1)
        found = np.empty((self.rows.size, self.columns.size), dtype=bool)
        found[np.ix_(self.rows, self.columns)] = spread[: self.rows.size, : self.columns.size]
        return found


def padded(sizes: Array, block: tuple[int, int]) -> Array:
    """Magnitudes with rows and columns of zeros up to whole blocks."""
    extra = [(0, -size % part) for size, part in zip(sizes.shape, block, strict=True)]
    return np.pad(sizes, extra)


def block_norms(sizes: Array, block: tuple[int, int]) -> Array:
    """Sums of whole blocks, (row blocks, column blocks)."""
    height, width = block
    shape = (sizes.shape[0] // height, height, sizes.shape[1] // width, width)
    return sizes.reshape(shape).sum(axis=(1, 3))


def lowest_blocks(norms: Array, sparsity: float) -> NDArray[np.bool_]:
    """Which blocks stay when the share `sparsity` with the lowest norms goes."""
    count = round(sparsity * norms.size)
    keep = np.ones(norms.size, dtype=bool)
    keep[np.argsort(norms, axis=None, kind="stable")[:count]] = False
    return keep.reshape(norms.shape)


def swapped(sizes: Array, gone: NDArray[np.bool_], height: int, most: int) -> Order:
    """An order of the rows with a lower pruned norm: the best swap of two rows is made until none helps.

    Args:
        sizes: (rows, columns) magnitudes, rows a multiple of `height`.
        gone: (row blocks, columns) which columns each block of rows loses.
        height: of a block.
        most: swaps at most.
    """
    order, home = np.arange(len(sizes)), np.arange(len(sizes)) // height
    cost = sizes @ gone.T.astype(np.float64)  # (rows, row blocks): lost if the row stood there
    for _ in range(most):
        here = cost[order, home]
        there = cost[order][:, home]  # (places, places): the row of one in the place of another
        gain = here[:, None] + here[None, :] - there - there.T
        one, other = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[one, other] <= 1e-9 * max(float(here.sum()), 1e-30):
            break
        order[[one, other]] = order[[other, one]]
    return order


def tiled(
    sizes: Array, block: tuple[int, int], sparsity: float, sweeps: int
) -> tuple[Tiling, list[float]]:
    """Reorders and masks in turn; the pruned norm never rises.

    Args:
        sizes: (rows, columns) magnitudes of the weights.
        block: height and width; the matrix counts as filled up with zeros to whole blocks.
        sparsity: share of the blocks that goes.
        sweeps: how often mask, rows and columns are improved.

    Returns:
        The tiling, and the pruned norm after each improvement, that without reordering first.
    """
    whole = padded(sizes, block)
    rows, columns = (np.arange(size) for size in whole.shape)
    keep = lowest_blocks(block_norms(whole, block), sparsity)
    norms = [float(block_norms(whole, block)[~keep].sum())]
    for _ in range(sweeps):
        now = whole[rows][:, columns]
        rows = rows[swapped(now, (~keep).repeat(block[1], 1), block[0], len(rows))]
        norms.append(float(block_norms(whole[rows][:, columns], block)[~keep].sum()))
        now = whole[rows][:, columns]
        columns = columns[swapped(now.T, (~keep.T).repeat(block[0], 1), block[1], len(columns))]
        found = block_norms(whole[rows][:, columns], block)
        norms.append(float(found[~keep].sum()))
        keep = lowest_blocks(found, sparsity)
        norms.append(float(found[~keep].sum()))
        if norms[-1] >= norms[-4] * (1 - 1e-6):
            break
    return Tiling(rows, columns, keep, block), norms


def block_product(w: Array, tiling: Tiling, x: Array) -> Array:
    """w @ x by whole blocks of the reordered matrix, for x (columns, k).

    Raises:
        ValueError: rows or columns are no whole number of blocks.
    """
    sparse = Bsr.of(w[tiling.rows][:, tiling.columns], tiling.block)
    out = sparse.matmul(x[tiling.columns])
    back = np.empty_like(out)
    back[tiling.rows] = out
    return back


@dataclass(frozen=True)
class Tetris(Step):
    """Prunes blocks of reordered matrices and trains what is left.

    Attributes:
        sparsity: share of the blocks of every layer that goes.
        block: height and width of a block; layers smaller than a block are left alone.
        sweeps: how often mask and orders are improved in turn; 0 prunes blocks where they stand.
        epochs: of training; 0 for none.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    sparsity: OpenFraction = 0.8
    block: tuple[Count, Count] = (8, 8)
    sweeps: Annotated[int, Field(ge=0)] = 5
    epochs: Annotated[int, Field(ge=0)] = 3
    rate: Positive = 1e-3
    alpha: Fraction | None = None
    layers: Patterns = "type:Linear"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})
    writes: ClassVar[str | None] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs:
            object.__setattr__(self, "needs", frozenset())

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Tiles layer by layer, then trains; records the pruned norms as shares of all."""
        lost: dict[str, list[float]] = {}
        for layer in select(model, self.layers, exclude=self.exclude):
            W: Tensor = layer.weight.detach().flatten(1)
            sizes = W.abs().double().cpu().numpy()
            if sizes.shape[0] < self.block[0] or sizes.shape[1] < self.block[1]:
                continue
            tiling, norms = tiled(sizes, self.block, self.sparsity, self.sweeps)
            keep = torch.from_numpy(cut_to(tiling, sizes.shape)).to(W.device)
            set_mask(layer.module, keep.view(layer.weight.shape), layer.tensor)
            total = max(float(sizes.sum()), 1e-30)
            lost[layer.path] = [norm / total for norm in norms]
        context.record["pruned_norm"] = lost
        if not self.epochs:
            return model
        settings = Training(self.epochs, self.rate, "adam", weight_decay=0.0)
        return repair(model, context, settings, alpha=self.alpha, label="tetris")


def cut_to(tiling: Tiling, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask of a matrix that was filled up to whole blocks, cut to its own shape."""
    return tiling.mask()[: shape[0], : shape[1]]
