# SPDX-License-Identifier: Apache-2.0
"""Training under the price of the bits that the weight coder would need.

Oktay, Balle, Singh, Shrivastava: Scalable Model Compression by Entropy Penalized Reparameterization, ICLR
2020, arXiv 1906.06624: a weight is a step times an integer, the step is learned, and the loss holds the
information of the integers under a learned prior. Here the prior is what an adaptive coder knows: counts of
the integers so far, in the same row, in the same column and in the whole tensor. The price between two
integers is interpolated, so a weight drifts to the cheaper neighbour; the rounding itself is passed straight
through (Esser et al.: Learned Step Size Quantization, 2020, arXiv 1902.08153, for the gradient of the step).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.shadow import Form, dressed, find
from rarefy.graph.fold import fold_batch_norms
from rarefy.loops.optimise import Training
from rarefy.loops.training import LearningStep
from rarefy.quantize.priced import train_priced
from rarefy.quantize.tied import clothe, clothe_one, finite_weight, holders
from rarefy.select import select, stored_parameter
from rarefy.step import Context, Fraction, Positive
from rarefy.task import move

LARGEST = 127
"""Codes reach from -127 to 127."""

PSEUDO = 4.0
"""How many codes the tensor's own distribution counts for beside those of a row and a column."""


class LearnedGrid(Form):
    """w = step · round(v / step), step = 2^exponent, with gradients for v and the exponent.

    Args:
        exponent: of the step, to begin with.
        largest: integers reach from minus to plus this.
        short: whether the step is rounded to eight bits, so that a file needs two bytes for it.
    """

    kind: ClassVar[str] = "codebook"

    def __init__(self, exponent: float, largest: int = LARGEST, *, short: bool = False) -> None:
        super().__init__()
        self.largest, self.short = largest, short
        self.exponent = nn.Parameter(torch.tensor(float(exponent)))

    def ratio(self, v: Tensor) -> Tensor:
        """The real number v / step that is rounded."""
        return v / self.step()

    def step(self) -> Tensor:
        """2^exponent, with its own gradient where it is rounded."""
        exact = torch.exp2(self.exponent)
        if not self.short:
            return exact
        return exact + (exact.detach().bfloat16().to(exact) - exact.detach())

    def forward(self, v: Tensor) -> Tensor:
        x = self.ratio(v)
        # What is added is exactly 0, so that the codes are integers to the last bit.
        codes = x.detach().round().clamp(-self.largest, self.largest) + (x - x.detach())
        return codes * self.step()

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def code_counts(codes: Tensor, axis: int, levels: int) -> Tensor:
    """How often each code occurs along an axis, float (size of the axis, levels).

    Args:
        codes: integers in [0, levels), any shape of two or more axes.
        axis: whose entries get a histogram each.
        levels: size of the alphabet.
    """
    size = codes.shape[axis]
    moved = codes.movedim(axis, 0).reshape(size, -1)
    places = moved + levels * torch.arange(size, device=codes.device).unsqueeze(1)
    return torch.bincount(places.flatten(), minlength=size * levels).view(size, levels).float()


def information(x: Tensor) -> Tensor:
    """Bits of every entry under counts of the rounded entries, with a gradient, same shape.

    The probability of code k in row r and column c is (n_r(k) + n_c(k) + 4 p(k)) / (n_r + n_c + 4), where p
    is the tensor's own distribution with half a count for every code; rows are the first axis, columns the
    second (a convolution's kernel counts as one column), and tensors of one axis know only p. Between two
    codes the bits are interpolated.

    Args:
        x: weights in steps, any shape.
    """
    low = x.detach().floor().clamp(-LARGEST - 1, LARGEST).long()
    codes = x.detach().round().clamp(-LARGEST, LARGEST).long()
    first = int(min(low.min(), codes.min()))
    levels = int(max(low.max() + 1, codes.max())) - first + 1
    counts = torch.bincount((codes - first).flatten(), minlength=levels).float() + 0.5
    p = counts / counts.sum()
    lower, upper = low - first, low - first + 1
    if x.dim() < 2:
        below, above = -p.log2()[lower], -p.log2()[upper]
    else:
        rows, columns = (code_counts(codes - first, axis, levels) for axis in (0, 1))
        total = rows[0].sum() + columns[0].sum() + PSEUDO
        r = torch.arange(x.shape[0], device=x.device).view(-1, *[1] * (x.dim() - 1))
        c = torch.arange(x.shape[1], device=x.device).view(-1, *[1] * (x.dim() - 2))

        def bits(k: Tensor) -> Tensor:
            return total.log2() - (rows[r, k] + columns[c, k] + PSEUDO * p[k]).log2()

        below, above = bits(lower), bits(upper)
    return below + (x - low) * (above - below)


@dataclass(frozen=True)
class EntropyPenalty(LearningStep):
    """Puts weights and biases on grids with learned steps and trains them under the price of their bits.

    Attributes:
        strength: loss that one bit for every weight of the network is worth.
        bits: of the grid to begin with: the largest weight of a tensor is 2^(bits-1) - 1 steps.
        epochs: of training; 0 rounds the weights to the first grid.
        rate: learning rate of that training (Adam, cosine).
        ramp: share of the training in which the price rises to its full strength.
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        fold: whether batch norms are folded into the layers first, so that they need no bits.
        layers, exclude: which layers, see `rarefy.select.select`; their biases come along.
    """

    strength: Positive = 0.02
    bits: Annotated[int, Field(ge=2, le=8)] = 5
    epochs: Annotated[int, Field(ge=0)] = 20
    rate: Positive = 2e-3
    ramp: Fraction = 0.3
    fold: bool = True

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Puts every tensor on its grid, trains, and records bits and steps."""
        if self.fold:
            fold_batch_norms(model.eval(), move(context.task.example, context.device))
        for shared in holders(model, select(model, self.layers, exclude=self.exclude)):
            w = finite_weight(shared[0])
            clothe(shared, w, LearnedGrid(self.exponent(w), short=True).to(w.device))
            module = shared[0].module
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                grid = LearnedGrid(self.exponent(bias), short=True).to(bias.device)
                clothe_one(module, "bias", bias.detach(), grid)
        held = list(gridded(model))
        weights = sum(v.numel() for _, v, _ in held)

        def price(progress: float) -> Tensor:
            grown = min(progress / self.ramp, 1.0) if self.ramp else 1.0
            bits = torch.stack([information(form.ratio(v)).sum() for _, v, form in held]).sum()
            return bits * (self.strength * grown / max(weights, 1))

        if self.epochs and held:
            settings = Training(self.epochs, self.rate, "adam", weight_decay=0.0)
            train_priced(model, context, settings, price, alpha=self.alpha, label="entropy penalty")
        with torch.no_grad():
            context.record["bits"] = {
                name: float(information(form.ratio(v)).sum()) for name, v, form in held
            }
            context.record["steps"] = {name: float(form.step()) for name, _, form in held}
        return model.eval()

    def exponent(self, w: Tensor) -> float:
        """log2 of the first step of a tensor; that of a tensor of zeros is any."""
        largest = float(w.detach().abs().max()) if w.numel() else 0.0
        return float(torch.tensor(largest / (2 ** (self.bits - 1) - 1) or 1.0).log2())


def gridded(model: nn.Module) -> Iterator[tuple[str, Tensor, LearnedGrid]]:
    """Name, real-valued parameter and grid of every tensor on a learned grid, shared ones once."""
    seen: set[int] = set()
    for path, module, name in dressed(model):
        form = find(module, LearnedGrid, name)
        stored = stored_parameter(module, name)
        if form is not None and id(stored) not in seen:
            seen.add(id(stored))
            yield f"{path}.{name}".lstrip("."), stored, form
