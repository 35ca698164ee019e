# SPDX-License-Identifier: Apache-2.0
"""Training under the price of the bits that the weight coder would need.

Oktay, Balle, Singh, Shrivastava: Scalable Model Compression by Entropy Penalized Reparameterization, ICLR
2020, arXiv 1906.06624: a weight is a step times an integer, the step is learned, and the loss holds the
information of the integers under a learned prior. Here the prior is what an adaptive coder knows, see
`rarefy.quantize.code_prices`. The rounding itself is passed straight through (Esser et al.: Learned Step
Size Quantization, 2020, arXiv 1902.08153, for the gradient of the step).
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
from rarefy.quantize.code_prices import LARGEST, information, picture_side
from rarefy.quantize.priced import train_priced
from rarefy.quantize.tied import clothe, clothe_one, finite_weight, holders
from rarefy.select import select, stored_parameter
from rarefy.step import Context, Fraction, Positive
from rarefy.store.coding import encode_tensor
from rarefy.task import move


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
        sides = [picture_side(form.ratio(v)) for _, v, form in held]

        def price(progress: float) -> Tensor:
            grown = min(progress / self.ramp, 1.0) if self.ramp else 1.0
            bits = torch.stack(
                [
                    information(form.ratio(v), side).sum()
                    for (_, v, form), side in zip(held, sides, strict=True)
                ]
            ).sum()
            return bits * (self.strength * grown / max(weights, 1))

        if self.epochs and held:
            settings = Training(self.epochs, self.rate, "adam", weight_decay=0.0)
            train_priced(model, context, settings, price, alpha=self.alpha, label="entropy penalty")
        with torch.no_grad():
            context.record["bits"] = {
                name: 8 * len(encode_tensor(form(v).cpu().numpy())) for name, v, form in held
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
