# SPDX-License-Identifier: Apache-2.0
"""One factor for each unit that stays, by least squares, so that a layer's output comes nearest to the old.

Luo, Wu, Lin: ThiNet, 2017, arXiv 1707.06342, equation 7; Kwon et al.: A Fast Post-Training Pruning Framework
for Transformers, 2022, arXiv 2204.09656, section 4.3, tunes masks the same way.
"""

import torch
from torch import Tensor

from rarefy.loops.ridge import ridge_solve
from rarefy.prune.readers import Reader


def scales(X: Tensor, y: Tensor, damping: float = 1e-6) -> Tensor:
    """One factor for each channel so that ``X @ w`` comes nearest to y, never farther than ``X @ 1``.

    Args:
        X: contributions of the channels that stay, (samples, channels).
        y: (samples,) their sum with those that go.
        damping: pull towards 1, as a share of the mean of the squared contributions.
    """
    return 1 + ridge_solve(X.mT @ X, X.mT @ (y - X.sum(1)), damping)


def rescale(reader: Reader, X: Tensor, gone: Tensor) -> None:
    """Scales what a layer reads of the channels that stay."""
    stays = torch.ones(X.shape[1], dtype=torch.bool)
    stays[gone] = False
    W, columns = reader.matrix, reader.columns[stays]
    w = scales(X[:, stays], X.sum(1)).to(W)
    W[:, columns] *= w.unsqueeze(1)
    reader.put(W)
