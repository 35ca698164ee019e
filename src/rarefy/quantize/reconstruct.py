# SPDX-License-Identifier: Apache-2.0
"""Few-bit weights without labels: roundings are learned block by block from what the float block gives.

Nagel et al. 2020, arXiv 2004.10568 (AdaRound: up or down); Li et al.: BRECQ, 2021, arXiv 2102.05426 (block
by block); Wei et al.: QDrop, 2022, arXiv 2203.05740 (activations are left unrounded at random meanwhile).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rarefy.forms.shadow import bake
from rarefy.graph.fold import fold_pair
from rarefy.loops.blocks import put_module
from rarefy.loops.progress import watch
from rarefy.measure.quality import batches_of
from rarefy.quantize.layout import Bits, Layout, Widths, check_bits, folded_copy, lay_out
from rarefy.quantize.reconstruction_loss import (
    DroppingWatcher,
    mixed,
    output_error,
    requiring_grad,
    unit_error,
)
from rarefy.quantize.reconstruction_units import Sample, Unit, samples_of, units_of
from rarefy.quantize.soft_rounding import SoftRounding, annealed_beta, indecision
from rarefy.quantize.tied import clothe
from rarefy.quantize.training_grids import TrainedGrid, below_grid, grid_of
from rarefy.quantize.training_network import dress_for_training, finish_training, sites_of
from rarefy.quantize.training_quantizers import LearnedStep
from rarefy.select import Layer
from rarefy.step import Context, Count, Fraction, Patterns, Positive, Step
from rarefy.task import move, tensors_of

Rounded = list[tuple[list[Layer], TrainedGrid, SoftRounding]]
STEP_RATE = 4e-5 / 1e-3  # of activations' steps relative to roundings, as in QDrop


@dataclass(frozen=True)
class Reconstruct(Step):
    """Rounds weights up or down so that each block gives what it gave in float; needs no labels.

    Quantisers stand where `static-int8` puts them. Every block keeps nearest rounding if what was learned
    does not serve it better on the calibration data.

    Attributes:
        bits: of weights, 2 to 8; weights of 8 bits are rounded to the nearest.
        activation_bits: of what layers with weights read, 2 to 8, or 32 for float.
        end_bits: of the first and the last layer's weight and of what they read.
        by: what is reconstructed at a time, a ``"block"`` or a ``"layer"``.
        iterations: steps of Adam for each.
        batch: examples in a step.
        rate: of the roundings.
        decision: factor of the mean indecision in the loss, in which the error of nearest rounding is 1.
        warmup: share of the iterations before it counts.
        drop: share of activations left unrounded meanwhile.
        overflow: ``"avoid"`` keeps pairs of 8-bit weights within 16 bits, see `static-int8`.
        examples: of calibration, at most.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    bits: Bits = 4
    activation_bits: Bits = 8
    end_bits: Bits = 8
    by: Literal["block", "layer"] = "block"
    iterations: Annotated[int, Field(ge=0)] = 200
    batch: Count = 16
    rate: Positive = 0.03
    decision: Annotated[float, Field(ge=0)] = 1.0
    warmup: Fraction = 0.2
    drop: Fraction = 0.5
    overflow: Literal["avoid", "allow"] = "avoid"
    examples: Count = 128
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(
            self.key(), bits=self.bits, activation_bits=self.activation_bits, end_bits=self.end_bits
        )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Folds, places, then unit after unit, each behind those that are rounded already."""
        widths = Widths(self.bits, self.activation_bits, self.end_bits)
        bake(model.eval())
        layout = lay_out(
            model, context, widths,
            layers=self.layers, exclude=self.exclude, examples=self.examples,
        )  # fmt: skip
        reference = folded_copy(model, layout.pairs)
        layout = fold(model, layout)
        dress_for_training(model, layout, "learned-step", "mse", self.overflow)
        inputs = batches_of(context.task, "calibration", self.examples)
        batches = [move(each, context.device) for each in inputs]
        low = [s for s in layout.layers if (g := grid_of(s[0])) is not None and g.grid.bits < 8]
        errors: dict[str, list[float]] = {}
        torch.manual_seed(context.seed)
        model.eval().requires_grad_(False)
        units = units_of(reference, batches[0], low, self.by == "block") if low else []
        for unit in watch(units, "reconstruct"):
            samples = samples_of(unit.path, model, reference, batches)
            errors[unit.path] = self.mend(model, unit, samples)
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())
        context.record.update(finish_training(model, layout))
        context.record["output_errors"] = errors  # nearest, learned, kept
        return model

    def mend(self, model: nn.Module, unit: Unit, samples: list[Sample]) -> list[float]:
        """Learns the roundings of one unit; returns the errors of nearest, learned and kept ones."""
        module, sites = model.get_submodule(unit.path), sites_of(model)
        inside = [q for s, q in sites.items() if s.startswith((f"{unit.path}.", f"{unit.path}:"))]
        steps = [q.scale for q in inside if isinstance(q, LearnedStep)]
        kept_steps = [step.detach().clone() for step in steps]
        nearest = unit_error(model, module, samples)
        soft = soften(unit.layers)
        forms = [form for _, _, form in soft]
        self.learn(model, module, samples, forms, steps, max(nearest, 1e-30))
        for _, _, form in soft:
            form.hard = True
        learned = unit_error(model, module, samples)
        better = learned < nearest
        settle(soft, better)
        if not better:
            with torch.no_grad():
                for step, kept in zip(steps, kept_steps, strict=True):
                    step.copy_(kept)
        return [nearest, learned, min(nearest, learned)]

    def learn(
        self,
        model: nn.Module,
        module: nn.Module,
        samples: list[Sample],
        forms: list[SoftRounding],
        steps: Sequence[Tensor],
        nearest: float,
    ) -> None:
        """Adam over the roundings and the steps of activations inside the unit.

        The output error counts relative to that of nearest rounding, so that no unit's scale matters.
        """
        groups = [
            {"params": [form.V for form in forms], "lr": self.rate},
            {"params": steps, "lr": self.rate * STEP_RATE},
        ]
        with requiring_grad(groups):
            optimiser = torch.optim.Adam([group for group in groups if group["params"]])
            for number in range(self.iterations):
                progress = number / self.iterations
                whole = samples[int(torch.randint(len(samples), ()))]
                part = whole.take(torch.randperm(whole.size)[: self.batch])
                optimiser.zero_grad()
                loss = self.error(model, module, part) / nearest
                (loss + self.pressure(forms, progress)).backward()
                optimiser.step()
                with torch.no_grad():
                    for step in steps:
                        step.clamp_(min=1e-8)

    def error(self, model: nn.Module, module: nn.Module, sample: Sample) -> Tensor:
        """Output error while inputs and activations are left unrounded at random."""

        def blend(rounded: Any, exact: Any) -> Any:
            is_float = isinstance(rounded, Tensor) and rounded.is_floating_point()
            return mixed(rounded, exact, self.drop) if is_float else rounded

        args, kwargs = pytree.tree_map(blend, sample.rounded, sample.exact)
        with DroppingWatcher(model, self.drop).watching():
            found = tensors_of(module(*args, **kwargs))[0]
        return output_error(found, sample.target)

    def pressure(self, forms: list[SoftRounding], progress: float) -> Tensor | float:
        """What indecision costs at `progress` in [0, 1]."""
        if progress < self.warmup:
            return 0.0
        beta = annealed_beta((progress - self.warmup) / max(1 - self.warmup, 1e-9))
        count = sum(form.V.numel() for form in forms)
        total = torch.stack([indecision(form.share(), beta) for form in forms]).sum()
        return self.decision * total / count


def fold(model: nn.Module, layout: Layout) -> Layout:
    """Folds the layout's norms into the network for good; the layout without them."""
    with torch.no_grad():
        for layer, norm in layout.pairs:
            fold_pair(model.get_submodule(layer), model.get_submodule(norm))
            put_module(model, norm, nn.Identity())
    return replace(layout, pairs=[])


def soften(layers: list[list[Layer]]) -> Rounded:
    """Puts a learned rounding in the place of each grid."""
    soft: Rounded = []
    for shared in layers:
        grid = grid_of(shared[0])
        if isinstance(grid, TrainedGrid):
            w = below_grid(shared[0])
            form = SoftRounding(w, grid.scale.detach().clone(), grid.grid, grid.axis)
            form.shift = grid.shift
            clothe(shared, w, form)
            soft.append((shared, grid, form))
    return soft


def settle(soft: Rounded, better: bool) -> None:
    """Puts the grids back, on the rounded weights if those are better, else on the weights as they were."""
    for shared, grid, form in soft:
        w = below_grid(shared[0])
        clothe(shared, form(w).detach() if better else w, grid)
        for layer in shared:
            layer.stored.requires_grad_(False)
