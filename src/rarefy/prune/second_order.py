# SPDX-License-Identifier: Apache-2.0
"""Weights of one layer go by what its inputs say about them, and the others may make up for it.

Wanda: Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, 2023,
arXiv 2306.11695, equation 1. SparseGPT: Frantar, Alistarh: SparseGPT: Massive Language Models Can Be
Accurately Pruned in One-Shot, 2023, arXiv 2301.00774, algorithm 1. All tensors have a leading axis of the
groups of a convolution, one for other layers.
"""

import torch
from torch import Tensor

from rarefy.prune.granularity import n_of_m


def wanda_scores(W: Tensor, H: Tensor) -> Tensor:
    """|w_ij| · ‖x_j‖₂, the norm over all inputs.

    Args:
        W: (groups, out, in).
        H: second moments XᵀX of the inputs, or their mean, (groups, in, in).
    """
    return W.abs() * H.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().unsqueeze(-2).to(W)


def keep_by_row(scores: Tensor, sparsity: float, pattern: tuple[int, int] | None = None) -> Tensor:
    """A mask of the largest scores of every row, or of N of every M neighbours in it.

    Args:
        scores: (groups, out, in); ties go to the lower index.
        sparsity: share of each row that goes.
        pattern: N and M.
    """
    flat = scores.flatten(0, 1)
    if pattern:
        return n_of_m(flat, *pattern).view_as(scores)
    kept = flat.shape[1] - round(sparsity * flat.shape[1])
    order = flat.argsort(dim=1, descending=True, stable=True)
    return (
        torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :kept], True).view_as(scores)
    )


def sparse_gpt(
    W: Tensor,
    U: Tensor,
    sparsity: float,
    *,
    alive: Tensor | None = None,
    pattern: tuple[int, int] | None = None,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Prunes column after column; what is lost is made up for by the columns that are still to come.

    The mask of a block of columns is chosen when the columns before it have been pruned, as the least
    w² / U_jj² over all rows of the block.

    Args:
        W: (groups, out, in).
        U: see `inverse_factor`.
        sparsity: share of each block that goes.
        alive: False where a weight is gone already; default: none is.
        pattern: N:M along each row, instead of `sparsity`.
        block: columns.

    Returns:
        The new weights and their mask, both (groups, out, in).
    """
    W, keep = W.double().clone(), torch.ones_like(W, dtype=torch.bool)
    gone = ~alive if alive is not None else torch.zeros_like(keep)
    W[gone] = 0
    step = block if pattern is None else -(-block // pattern[1]) * pattern[1]
    for start in range(0, W.shape[-1], step):
        part = slice(start, min(start + step, W.shape[-1]))
        keep[..., part] = block_mask(
            W[..., part], U[:, part, part], gone[..., part], sparsity, pattern
        )
        errors = torch.zeros_like(W[..., part])
        for j in range(part.start, part.stop):
            lost = torch.where(keep[..., j], 0.0, W[..., j]) / U[:, j, j, None]
            W[..., j : part.stop] -= lost.unsqueeze(-1) * U[:, None, j, j : part.stop]
            errors[..., j - start] = lost
        W[..., part.stop :] -= errors @ U[:, part, part.stop :]
    return W * keep, keep


def block_mask(
    W: Tensor, U: Tensor, gone: Tensor, sparsity: float, pattern: tuple[int, int] | None
) -> Tensor:
    """Which weights of a block of columns stay, (groups, out, columns)."""
    scores = (W / U.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).square().masked_fill(gone, -1.0)
    if pattern:
        return n_of_m(scores.flatten(0, 1), *pattern).view_as(scores) & ~gone
    flat = scores.flatten(1)
    kept = flat.shape[1] - round(sparsity * flat.shape[1])
    order = flat.argsort(dim=1, descending=True, stable=True)
    keep = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :kept], True)
    return keep.view_as(scores) & ~gone
