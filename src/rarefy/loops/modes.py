# SPDX-License-Identifier: Apache-2.0
"""Looking at a network without leaving a trace: its mode, its state, the calls of its modules."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Place: TypeAlias = tuple[nn.Module, int]  # a module and the number of its call in a forward pass


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode for a while; every module is back in its own mode afterwards."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where a network's parameters live; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, those included that a state dict leaves out."""
    return itertools.chain(model.named_parameters(), model.named_buffers())


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer by name."""
    return {name: tensor.detach().clone() for name, tensor in named_state(model)}


@torch.no_grad()
def put_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Writes back what `copy_state` took from a network of the same structure, bit for bit."""
    for name, tensor in named_state(model):
        tensor.copy_(state[name])


@contextmanager
def watching(
    modules: Iterable[nn.Module],
    before: Callable[[Place], None] = lambda _: None,
    after: Callable[[Place, Any], None] = lambda *_: None,
) -> Iterator[None]:
    """For a while, calls `before` and `after` around every call of the modules."""
    counts: Counter[nn.Module] = Counter()
    running: list[Place] = []

    def enter(module: nn.Module, _: Any) -> None:
        running.append((module, counts[module]))
        counts[module] += 1
        before(running[-1])

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        after(running.pop(), output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield
