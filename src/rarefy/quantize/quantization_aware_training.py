# SPDX-License-Identifier: Apache-2.0
"""Training through the rounding: the network learns to do its job with few bits.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, section 3 (straight-through gradients, moving ranges, folded norms); Esser et al.
2020, arXiv 1902.08153 (learned steps); Choi et al. 2018, arXiv 1805.06085 (learned clips). The teacher of
the default loss is the untouched original, as in Polino et al. 2018, arXiv 1802.05668, so labels are not
needed.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.loops.losses import imitation_loss
from rarefy.loops.modes import evaluating
from rarefy.loops.repair import loss_of, part_seed, remember, teacher_share, watch_over
from rarefy.loops.train import train
from rarefy.loops.training import TrainedStep
from rarefy.quantize.folded_norm import norms_behind
from rarefy.quantize.gradient_rounding import (
    Rounding,
    rounding_gradients,
    stochastic_gradient,
    tree_gradient,
)
from rarefy.quantize.layout import FLOAT, Bits, Layout, Widths, check_bits, lay_out
from rarefy.quantize.training_network import (
    Start,
    Way,
    dress_for_training,
    finish_training,
    grids_in_training,
    quantizers_in_training,
)
from rarefy.step import Context, Count, Fraction, Patterns, Positive


@dataclass(frozen=True)
class QuantizationAwareTraining(TrainedStep):
    """Trains with rounded weights and activations, then stores integers.

    Quantisers stand where `static-int8` puts them and start from the same calibration. With ``epochs: 0``
    nothing is trained.

    Attributes:
        bits: of weights, 2 to 8; 32 leaves them float.
        activation_bits: of what layers with weights read, 2 to 8; what only sums and pooling read has 8
            bits; 32 leaves all activations float.
        end_bits: of the first and the last layer's weight and of what they read.
        method: ``"learned-step"`` (LSQ), ``"straight-through"`` (ranges follow the largest values),
            ``"pact"`` (learned clips behind ReLU) or ``"learned-range"`` (both ends learned).
        start: of learned steps: ``"mse"`` (least squared error), or ``"mean"`` as in the LSQ paper.
        delay: share of the training before activations are rounded.
        freeze_norms: share after which folded batch norms use their running statistics.
        freeze_ranges: share after which steps, clips and ranges stay.
        clip_decay: factor of the squares of PACT's clips in the loss.
        gradient_bits: of the gradients of layers' outputs while training, 2 to 8; 32 leaves them float.
        gradient_grid: ``"uniform"``, rounded at random, or ``"dynamic-tree"``, which has 8 bits.
        epochs: passes over the training data.
        rate: highest learning rate.
        alpha: share of the original's answers in the loss; default: 0.7 with labels, 1 without.
        temperature: softens these answers.
        overflow: ``"avoid"`` keeps pairs of 8-bit weights within 16 bits, see `static-int8`.
        examples: of calibration, at most.
        layers: which layers, see `rarefy.select.select`.
        exclude: layers that stay float, and modules whose own calls do.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`.
    """

    bits: Bits = 8
    activation_bits: Bits = 8
    end_bits: Bits = 8
    method: Way = "learned-step"
    start: Start = "mse"
    delay: Fraction = 0.0
    freeze_norms: Fraction = 0.5
    freeze_ranges: Fraction = 0.9
    clip_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_bits: Bits = FLOAT
    gradient_grid: Literal["uniform", "dynamic-tree"] = "uniform"
    epochs: Annotated[int, Field(ge=0)] = 3
    rate: Positive = 0.005
    alpha: Fraction | None = None
    temperature: Positive = 2.0
    overflow: Literal["avoid", "allow"] = "avoid"
    examples: Count = 512
    layers: Patterns = "*"
    exclude: Patterns = ()
    needs: ClassVar[frozenset[str]] = frozenset({"train", "calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})
    writes: ClassVar[str | None] = "quantised"
    fixes_ranges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(
            self.key(), bits=self.bits, activation_bits=self.activation_bits,
            end_bits=self.end_bits, gradient_bits=self.gradient_bits,
        )  # fmt: skip
        if self.alpha is not None and self.alpha < 1:
            object.__setattr__(self, "needs", self.needs | {"labels"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place; codes, scales and quantisers of activations are what remains."""
        widths = Widths(self.bits, self.activation_bits, self.end_bits)
        layout = lay_out(
            model, context, widths,
            layers=self.layers, exclude=self.exclude, examples=self.examples,
        )  # fmt: skip
        dress_for_training(model, layout, self.method, self.start, self.overflow)
        if self.epochs:
            self.fit(model, context, layout)
        context.record.update(finish_training(model, layout))
        return model

    def fit(self, model: nn.Module, context: Context, layout: Layout) -> None:
        """The training loop: what is frozen or waits, the loss, valid steps."""
        task, label = context.task, self.key()
        alpha = self.alpha if self.alpha is not None else 0.7 if task.labelled else 1.0
        alpha = teacher_share(alpha, task, label)
        watch = watch_over(context, label, partial(keep_valid, model))
        settings, seed = self.training(), part_seed(context.seed, label)
        modules = [layer.module for shared in layout.layers for layer in shared]
        batches = task.batches("train")
        with evaluating(context.teacher), rounding_gradients(modules, self.rounding()):
            for batch in train(
                model, batches, settings, seed=seed, labelled=task.labelled, watch=watch
            ):
                self.set_stage(model, batch.progress)
                loss = loss_of(
                    batch, task, context.teacher, alpha, self.temperature, imitation_loss
                )
                batch.minimise(loss + self.clip_decay * clip_cost(model))
        self.set_stage(model, 1.0)
        remember(context.record, label, watch.history)

    def set_stage(self, model: nn.Module, progress: float) -> None:
        """Opens and freezes what the schedule says, at `progress` in [0, 1]."""
        for norm in norms_behind(model):
            norm.train(norm.training and progress < self.freeze_norms)
        for grid in grids_in_training(model):
            grid.frozen = progress >= self.freeze_ranges
        for quantizer in quantizers_in_training(model):
            quantizer.frozen = progress >= self.freeze_ranges
            quantizer.waiting = progress < self.delay

    def rounding(self) -> Rounding | None:
        """How gradients are rounded, if they are."""
        if self.gradient_grid == "dynamic-tree":
            return tree_gradient
        if self.gradient_bits == FLOAT:
            return None
        return partial(stochastic_gradient, bits=self.gradient_bits)


def keep_valid(model: nn.Module) -> None:
    """Keeps all steps positive and all ranges around zero after the optimiser moved them."""
    for grid in grids_in_training(model):
        grid.keep_valid()
    for quantizer in quantizers_in_training(model):
        quantizer.keep_valid()


def clip_cost(model: nn.Module) -> Tensor:
    """The sum of the squares of all learned clips; zero without any."""
    costs = [torch.as_tensor(q.cost()) for q in quantizers_in_training(model)]
    return torch.stack([c.to(costs[0].device) for c in costs]).sum() if costs else torch.zeros(())
