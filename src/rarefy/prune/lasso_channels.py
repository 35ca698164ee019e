# SPDX-License-Identifier: Apache-2.0
"""Channels are chosen by LASSO and the next layer is fitted anew to what the original network gave.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, 2017, arXiv 1707.06168: minimise
1/2N |Y - sum_i beta_i X_i W_iᵀ|² + λ |beta|₁ with beta at most c' times other than zero (equation 2), first
over beta, then over W; Y comes from the original network, X from the network pruned so far.
"""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.graph.groups import Group
from rarefy.loops.matrix import matrix_of
from rarefy.loops.ridge import ridge_solve
from rarefy.prune.by_group import Cutting
from rarefy.prune.readers import Reader
from rarefy.prune.reconstruction import Reconstruction, Samples
from rarefy.select import Layer
from rarefy.step import Context


def lasso(
    Q: Tensor,
    r: Tensor,
    penalty: float,
    start: Tensor | None = None,
    tolerance: float = 1e-9,
    sweeps: int = 1000,
) -> Tensor:
    """Minimises ``beta Q beta / 2 - r beta + penalty |beta|₁`` by coordinate descent.

    With Q = ZᵀZ / N and r = ZᵀY / N this is the LASSO of Y on Z.

    Args:
        Q: (n, n), symmetric, positive semidefinite.
        r: (n,).
        penalty: λ.
        start: (n,) where to begin; zeros if left out.
        tolerance: largest change of a coefficient in the last sweep, as a share of the largest one.
        sweeps: at most.
    """
    beta = torch.zeros_like(r) if start is None else start.clone()
    slope = r - Q @ beta
    diagonal = Q.diagonal().tolist()
    every = [i for i, q in enumerate(diagonal) if q > 0]
    active = every
    for _ in range(sweeps):
        moved = 0.0
        for i in active:
            old = float(beta[i])
            pull = float(slope[i]) + diagonal[i] * old
            new = max(abs(pull) - penalty, 0.0) / diagonal[i] * (1 if pull > 0 else -1)
            if new != old:
                beta[i] = new
                slope = slope - Q[:, i] * (new - old)
                moved = max(moved, abs(new - old))
        settled = moved <= tolerance * max(float(beta.abs().max()), 1e-30)
        if settled and len(active) == len(every):
            break
        # sweeps over the coefficients in use alone, until they settle; then all are looked at again
        active = every if settled else beta.nonzero()[:, 0].tolist() or every
    return beta


def select_channels(Q: Tensor, r: Tensor, kept: int) -> Tensor:
    """The `kept` channels that are left when the penalty is raised until no more remain.

    Where a penalty drops several channels at once, the strongest of them stay.

    Args:
        Q, r: see `lasso`.
        kept: how many channels stay, at least 1.

    Returns:
        (kept,) channels, rising.
    """
    high = float(r.abs().max())
    low, beta = high, torch.zeros_like(r)
    while int((beta != 0).sum()) < kept and low > 1e-12 * high:
        low *= 0.7
        beta = lasso(Q, r, low, beta, 1e-5, 100)
    high = low / 0.7
    for _ in range(12):
        if int((beta != 0).sum()) == kept:
            break
        middle = (low + high) / 2
        tried = lasso(Q, r, middle, beta, 1e-5, 100)
        if int((tried != 0).sum()) >= kept:
            low, beta = middle, tried
        else:
            high = middle
    strength = beta.abs() * Q.diagonal().clamp(min=0).sqrt()
    return strength.topk(kept).indices.sort().values


def normal_equations(X: Tensor, Y: Tensor, W: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Q and r of the LASSO over channels, without forming the N · out rows of Z_i = X_i W_iᵀ.

    Args:
        X: inputs, (N, in).
        Y: wanted outputs, (N, out).
        W: (out, in).
        columns: of each channel, (channels, m).
    """
    N, (c, m) = len(X), columns.shape
    flat = columns.flatten()
    X, W = X[:, flat], W[:, flat]
    Q = ((X.mT @ X) * (W.mT @ W)).view(c, m, c, m).sum((1, 3)) / N
    r = ((X.mT @ Y) * W.mT).sum(1).view(c, m).sum(1) / N
    return Q, r


def fit_weight(
    X: Tensor, Y: Tensor, W: Tensor, damping: float = 1e-6, biased: bool = True
) -> tuple[Tensor, Tensor]:
    """Least squares from X to Y: the weight, held near W where X does not say, and the bias.

    Args:
        X: inputs that stay, (N, in).
        Y: wanted outputs, (N, out).
        W: (out, in) to start from.
        damping: pull towards W, as a share of the mean square of X.
        biased: whether a bias is fitted; else it is 0.
    """
    x, y = X.mean(0), Y.mean(0)
    if biased:
        X, Y = X - x, Y - y
    found = W + ridge_solve(X.mT @ X, X.mT @ (Y - X @ W.mT), damping).mT
    return found, (y - found @ x if biased else torch.zeros_like(y))


@dataclass(frozen=True)
class LassoChannels(Reconstruction):
    """Keeps the channels that LASSO finds to rebuild the next layer's output best, and refits that layer.

    Attributes:
        sparsity, round_to, examples, samples, layers, exclude: see
            `rarefy.prune.reconstruction.Reconstruction`.
        sequential: whether Y is what the network gave before this step, so that a layer makes up for the
            errors of those before it; otherwise what the layer gives as pruning comes to it.
        damping: pull of the fitted weight towards the one before.
    """

    sequential: bool = True
    damping: Annotated[float, Field(ge=0)] = 1e-4

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Chooses, refits and cuts, one layer after the other."""
        samples = Samples(self, context)
        original = copy.deepcopy(model)

        def choose(group: Group, readers: list[Reader], number: int) -> Tensor:
            source = original if self.sequential else model
            X, before = samples.rows(model, readers), samples.rows(source, readers)
            Y = [
                outputs_of(source, reader.layer, x)[:, left]
                for reader, x in zip(readers, before, strict=True)
                for left in [kept_outputs(reader, cutting) if self.sequential else slice(None)]
            ]
            data = list(zip(readers, X, Y, strict=True))
            parts = [
                normal_equations(x, y - bias_of(r.layer), r.matrix, r.columns) for r, x, y in data
            ]
            Q, pull = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[select_channels(Q, pull, group.size - number)] = False
            for reader, x, y in data:
                refit(reader, x, y, reader.columns[~gone].flatten(), self.damping)
            return gone.nonzero()[:, 0]

        cutting = self.cutting(choose)
        return self.prune(model, context, cutting)


def kept_outputs(reader: Reader, cutting: Cutting) -> Tensor | slice:
    """Which of a reader's first outputs are left."""
    return cutting.outputs.get(f"{reader.layer.name}.weight", slice(None))


def bias_of(layer: Layer) -> Tensor | float:
    """The bias of a layer, float64; 0 if there is none."""
    bias: Tensor | None = layer.module.bias  # type: ignore[assignment]
    return 0.0 if bias is None else bias.detach().double()


def outputs_of(model: nn.Module, layer: Layer, rows: Tensor) -> Tensor:
    """What the layer of that name gives in a network, bias included: (N, out)."""
    own = Layer(layer.name, model.get_submodule(layer.name))
    return rows @ matrix_of(own).double().mT + bias_of(own)


def refit(reader: Reader, X: Tensor, Y: Tensor, columns: Tensor, damping: float) -> None:
    """Fits what a layer makes of the columns that stay, and its bias if it has one, to wanted outputs."""
    W, bias = reader.matrix, bias_of(reader.layer)
    biased = isinstance(bias, Tensor)
    W[:, columns], found = fit_weight(X[:, columns], Y, W[:, columns], damping, biased)
    reader.put(W, found - bias)
