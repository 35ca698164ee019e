# SPDX-License-Identifier: Apache-2.0
"""Every function call that a network makes on tensors, seen while it runs eagerly.

A call site is named by the module whose forward makes the call, the function and its place among the calls
of that function there: ``layer1.0:add#0``. Names are stable between runs as long as the network takes the
same path, so things can be attached to them: quantisers, counters, comparisons.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from rarefy.task import Inputs, call, tensors_of

IGNORED = {"__get__", "__set__", "size", "dim", "shape", "is_floating_point", "numel", "stride"}


class CallWatcher(TorchFunctionMode):
    """Names every call while active; a subclass says what happens at it.

    Args:
        model: the network whose modules name the sites.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.stack: list[str] = [""]
        self.counts: dict[tuple[str, str], int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in IGNORED:
            return func(*args, **(kwargs or {}))
        place = (self.stack[-1], name.strip("_"))
        number = self.counts.get(place, 0)
        self.counts[place] = number + 1
        return self.at(f"{place[0]}:{place[1]}#{number}", func, args, kwargs or {})

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What happens at a call; here just the call."""
        return func(*args, **kwargs)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follows which module is running, and watches its calls."""
        self.stack, self.counts = [""], {}

        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(self.paths.get(id(module), self.stack[-1]))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        site: its name.
        function: name of the function, without underscores (``conv2d``, ``add``, ``relu``).
        module: path of the module whose forward made it.
        inputs, outputs: numbers of the tensors that went in and came out; a tensor that no call made
            (an input of the network, a parameter) has a number too.
        shapes: of the outputs.
        arguments: positional and keyword arguments with tensors left out (None stands in their place).
    """

    site: str
    function: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    arguments: tuple[Any, ...] = ()


class Recorder(CallWatcher):
    """Writes every call down; tensors are kept alive meanwhile, so that their identity means something."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: list[Call] = []
        self.numbers: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor, given at first sight."""
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = len(self.alive)
            self.alive.append(tensor)
        return self.numbers[id(tensor)]

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inputs = tuple(self.number(t) for t in tensors_of((args, kwargs)))
        result = func(*args, **kwargs)
        outputs = tensors_of(result)
        plain = tuple(None if tensors_of(a) else a for a in (*args, *kwargs.values()))
        module, _, rest = site.rpartition(":")
        self.calls.append(
            Call(
                site,
                rest.split("#")[0],
                module,
                inputs,
                tuple(self.number(t) for t in outputs),
                tuple(tuple(t.shape) for t in outputs),
                plain,
            )
        )
        return result


@dataclass(frozen=True)
class Calls:
    """The calls of one run of a network.

    Attributes:
        calls: in order.
        inputs: numbers of the network's input tensors.
        outputs: numbers of its output tensors.
        parameters: numbers of tensors that are the network's own parameters, with their names.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    parameters: dict[int, str]

    def consumers(self) -> dict[int, list[Call]]:
        """For every tensor the calls that read it."""
        found: dict[int, list[Call]] = {}
        for item in self.calls:
            for number in dict.fromkeys(item.inputs):
                found.setdefault(number, []).append(item)
        return found

    def producers(self) -> dict[int, Call]:
        """For every tensor the call that made it (the last one, if it was changed in place)."""
        return {number: item for item in self.calls for number in item.outputs}


@torch.no_grad()
def record_calls(model: nn.Module, example: Inputs) -> Calls:
    """Runs `model` once on `example` in eval mode and returns what it called.

    Memory: all activations of one run are alive at once; use a small batch.
    """
    was = model.training
    recorder = Recorder(model.eval())
    try:
        with recorder.watching():
            result = call(model, example)
    finally:
        model.train(was)
    named = {
        recorder.numbers[id(p)]: n for n, p in model.named_parameters() if id(p) in recorder.numbers
    }
    return Calls(
        tuple(recorder.calls),
        tuple(recorder.number(t) for t in tensors_of(example)),
        tuple(recorder.number(t) for t in tensors_of(result)),
        named,
    )
