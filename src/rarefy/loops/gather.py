# SPDX-License-Identifier: Apache-2.0
"""Collects statistics of what flows into and out of chosen modules while a network runs."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError, nearest
from rarefy.loops.heap import kept_blocks
from rarefy.loops.matrix import check_kinds, rows_of
from rarefy.loops.modes import device_of, evaluating
from rarefy.loops.statistics import Statistic
from rarefy.select import Layer
from rarefy.task import Inputs, call, move, tensors_of

Side: TypeAlias = Literal["input", "output", "rows"]
Wanted = TypeVar("Wanted", bound=Mapping[tuple[str, Side], Statistic])


def gather(model: nn.Module, batches: Iterable[Inputs], wanted: Wanted) -> Wanted:
    """Runs the network over all batches and feeds every statistic; no hook stays.

    Args:
        model: on its device; runs in eval mode without gradients.
        batches: inputs without targets, see `rarefy.measure.quality.batches_of`.
        wanted: for ``(path of a module, side)`` the statistic that is updated in place. A side is
            ``"input"`` (the first tensor that the module is called with), ``"output"`` (the first tensor
            that it returns) or ``"rows"`` (the input of a linear layer or convolution as the rows of its
            matrix product, see `rarefy.loops.matrix`). ``("", "input")`` is the network's own input.

    Returns:
        `wanted`.

    Raises:
        ModelError: there is no such module, or a layer has no matrix form.
        TaskError: there is no batch.

    Examples:
        found = gather(model, batches_of(task, "calibration"), {("fc1", "rows"): SecondMoment()})
        H = found["fc1", "rows"].mean()  # (in, in)
    """
    modules = dict(model.named_modules())
    device, count = device_of(model), 0
    with ExitStack() as stack:
        for (path, side), statistic in wanted.items():
            if path not in modules:
                raise ModelError(
                    f"there is no module '{path}' to gather from{nearest(path, modules)}"
                )
            if side == "rows":
                check_kinds([Layer(path, modules[path])])
            stack.callback(attach(modules[path], side, statistic))
        stack.enter_context(evaluating(model))
        stack.enter_context(kept_blocks())
        with torch.no_grad():
            for batch in batches:
                call(model, move(batch, device))
                count += 1
    if not count:
        raise TaskError("there is no calibration batch to run the network on")
    return wanted


def attach(module: nn.Module, side: Side, statistic: Statistic) -> Callable[[], None]:
    """Feeds a statistic from one side of a module; returns what ends it."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor((*args, *kwargs.values()))
        if x is None:
            return
        if side == "rows":
            size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
            x = rows_of(module, x, size)
        statistic.update(x)

    def after(_: nn.Module, __: Any, output: Any) -> None:
        y = first_tensor(output)
        if y is not None:
            statistic.update(y)

    if side == "output":
        return module.register_forward_hook(after).remove
    return module.register_forward_pre_hook(before, with_kwargs=True).remove


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor of a structure."""
    return next(iter(tensors_of(values)), None)
