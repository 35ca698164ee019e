# SPDX-License-Identifier: Apache-2.0
"""Static int8 that needs no settings: the layers that hurt most go back to float until a loss is allowed.

Every layer is rounded by itself and judged by what that does to the network's output. If the network with all
layers rounded loses too much, the worst go back to float: twice as many each time until the loss is within
bounds, then as few of those as suffice.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from rarefy.errors import ModelError
from rarefy.quantize.damage import Damage, output_damage
from rarefy.quantize.judged import loss_against
from rarefy.quantize.static_int8 import TRIED, StaticInt8
from rarefy.step import Context


@dataclass(frozen=True)
class AutoInt8(StaticInt8):
    """Static int8 within a bound on the loss, layer by layer if need be.

    Attributes:
        loss: the most that the metric may lose on validation data; without labels or validation data, the
            share of calibration examples that may get another answer.
        bits, range, percentile, weight_range, overflow, runtime, compensate, correct: as for static int8.
        examples, layers, exclude: as for static int8, see `rarefy.quantize.static_int8.StaticInt8`.
    """

    loss: Annotated[float, Field(ge=0, le=1)] = 0.01

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Rounds everything, and if that loses too much, ever less.

        Raises:
            ModelError: even with a single layer in integers too much is lost.
        """
        lose = loss_against(model, context, self.examples)
        plain, record = StaticInt8(**self.common()), dict[str, Any]()

        def rounded(layers: list[str]) -> tuple[nn.Module, float]:
            step = replace(plain, exclude=(*self.excluded(), *dict.fromkeys(layers)))
            inner = replace(context, record={})
            found = step.apply(copy.deepcopy(model), inner)
            record.update(inner.record)
            return found, lose(found)

        found, lost = rounded([])
        tried = [(0, lost)]
        if lost > self.loss:
            ranking, bound = self.ranking(copy.deepcopy(model), context)
            found = self.fewest(bound, rounded, tried)
            record["damage"] = [vars(damage) for damage in ranking]
        context.record.update(record)
        kept = min(number for number, value in tried if value <= self.loss)
        context.record["notes"] = [
            f"{kept} layers went back to float to keep the loss within {self.loss:.2%}: "
            + ", ".join(f"{number} in float lose {value:.2%}" for number, value in sorted(tried))
        ]
        return found

    def fewest(
        self,
        bound: list[list[str]],
        rounded: Callable[[list[str]], tuple[nn.Module, float]],
        tried: list[tuple[int, float]],
    ) -> nn.Module:
        """The network with as few of the worst layers in float as suffice; writes what was tried.

        Args:
            bound: layers that leave the integers together, the worst first.
            rounded: the network with these layers in float, and what it loses.
            tried: numbers of entries of `bound` in float, and what they lose.

        Raises:
            ModelError: no number does.
        """

        def attempt(number: int) -> tuple[nn.Module, float]:
            found, lost = rounded([layer for group in bound[:number] for layer in group])
            tried.append((number, lost))
            return found, lost

        every = {layer for group in bound for layer in group}
        counts = range(1, len(bound))
        most = max((n for n in counts if {x for g in bound[:n] for x in g} < every), default=0)
        failed, number, found, lost = 0, 0, None, tried[0][1]
        while found is None or lost > self.loss:
            if number >= most:
                raise ModelError(
                    f"auto-int8 can't keep the loss within {self.loss:.2%}: with {number} layers in float "
                    f"still {lost:.2%} is lost; allow a larger loss"
                )
            failed, number = number, min(max(2 * number, 1), most)
            found, lost = attempt(number)
        while number - failed > 1:
            middle = (failed + number) // 2
            better, lost = attempt(middle)
            if lost <= self.loss:
                found, number = better, middle
            else:
                failed = middle
        return found

    def ranking(self, model: nn.Module, context: Context) -> tuple[list[Damage], list[list[str]]]:
        """The damage of integer calls that hold a weight, worst first, and the layers bound to each."""
        prepared, ranges = self.ready(model, context)
        how = prepared.rounding(ranges, self.coded(prepared, ranges, context))
        sites = [site for site in how.readers if site.rpartition(":")[0] in how.holding]
        found = output_damage(model, self.few(context, TRIED)[0], how, sites)
        return found, [prepared.bound(damage.site) for damage in found]

    def excluded(self) -> tuple[Any, ...]:
        """The layers that were to stay float from the start."""
        return (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)

    def common(self) -> dict[str, Any]:
        """The fields of static int8."""
        return {field.name: getattr(self, field.name) for field in fields(StaticInt8)}
