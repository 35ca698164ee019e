# SPDX-License-Identifier: Apache-2.0
"""Runs a network once and lets labels and numbers travel with its tensors."""

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rarefy.errors import ModelError, described
from rarefy.graph import counts, normed, parts, products, reductions, shapes  # noqa: F401  # register rules
from rarefy.graph.book import Book, Key
from rarefy.graph.decisions import decides
from rarefy.graph.fields import Fields, replay
from rarefy.graph.masked import counts_positions, first_tensor
from rarefy.graph.numbers import Extent, Number, remembering
from rarefy.graph.operators import Run, spread
from rarefy.graph.sizes import CONSTRAINTS, Wired
from rarefy.graph.unfused import forget, unfused
from rarefy.task import Inputs, call, tensors_of


class Operators(TorchDispatchMode):
    """Applies the rule of every operator that runs."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.book.watching:
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.book.path = hash((self.book.path, name))
        self.book.labels.reason = name
        if counts_positions(name, func, args):
            self.book.ran += 1
            if fields := self.book.fields(first_tensor(args)):
                self.book.counted[self.book.ran] = name, fields
        if name in REFORMED:
            fields, shape = self.book.fields(args[0]), args[0].shape
            out = func(*args, **(kwargs or {}))
            self.reformed(name, args, fields, shape)
            return out
        operator = Run.of(func, args, kwargs)
        keys = [self.book.key(t) for t in operator.tensors]
        self.book.read.update(keys)
        operator.out = func(*args, **(kwargs or {}))
        self.note_decisions(operator, keys)
        spread(self.book, operator)
        return operator.out

    def note_decisions(self, operator: Run, keys: list[Key]) -> None:
        """Remembers what was decided, and whether somebody reads it."""
        book = self.book
        book.decides = book.decides or not book.decided.isdisjoint(keys)
        if not book.decides and decides(operator.tensors, operator.out):
            book.decided.update(book.key(t) for t in operator.results if not t.is_floating_point())

    def reformed(self, name: str, args: Any, fields: Fields, shape: torch.Size) -> None:
        """A tensor changed its shape or strides in place."""
        tensor = args[0]
        if tensor.shape == shape:
            self.book.put(tensor, fields)
            return
        moved = getattr(torch.ops.aten, name.removesuffix("_"))
        found = [replay(f, shape, lambda full: moved(full, *args[1:]))[0] for f in fields]
        self.book.put(tensor, found)


OUTPUT = "the network gives them"
UNREAD = "nothing that ran reads them"
REFORMED = {"as_strided_", "squeeze_", "unsqueeze_", "transpose_", "t_"}


class Functions(TorchFunctionMode):
    """Sees sizes as the network's code writes them, and which functions they go to."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book
        self.wired: list[Wired] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.book.watching = False
        try:
            return self.seen(func, args, kwargs or {})
        finally:
            self.book.watching = True

    def seen(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls a function; its sizes are remembered, and those that it tells are numbers."""
        name = getattr(func, "__name__", str(func))
        if func == SHAPE:
            return self.sizes(args[0], func(*args))
        if name == "size" and isinstance(args[0], Tensor):
            sizes = self.sizes(args[0], args[0].shape)
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return sizes if dim is None else sizes[dim]
        if name in ("numel", "nelement") and isinstance(args[0], Tensor):
            return math.prod(self.sizes(args[0], args[0].shape))
        constraint = CONSTRAINTS.get(name)
        if constraint is None:
            return self.book.run(func, args, kwargs)
        return constraint(self.book, self.wired, func, args, kwargs)

    def sizes(self, tensor: Tensor, shape: Any) -> Any:
        """A shape whose labelled axes are numbers."""
        fields = self.book.fields(tensor)
        if not fields:
            return shape
        return torch.Size(
            Number.of(n, Extent(fields, axis)) if any(f.shape[axis] > 1 for f in fields) else n
            for axis, n in enumerate(shape)
        )


SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


def follow(model: nn.Module, example: Inputs) -> tuple[Book, list[Wired], dict[int, Any]]:
    """Runs `model` once in eval mode, and once more as in training if some parameters did not take part.

    What its outputs carry is fixed, and so is what never ran.

    Returns:
        The book of labels, the sizes that the code writes down, and the objects whose attributes they are
        made of, by identity.
    """
    book = Book(model)
    functions = Functions(book)
    forget(model)
    with remembering(model) as places:
        book.shapes = [t.shape for t in run(model.eval(), example, functions)]
        path = book.path
        if unread(model, book):
            run_in_training(model, example, functions)
        book.path = path
    book.labels.reason = UNREAD
    for name in unread(model, book):
        for labels in book.parameters[name]:
            book.labels.fix(labels)
    return book, functions.wired, places


def run(model: nn.Module, example: Inputs, functions: Functions) -> list[Tensor]:
    """Runs a network once under the eyes of a book; its outputs."""
    with ExitStack() as stack:
        stack.enter_context(unfused(model))
        stack.enter_context(functions)
        stack.enter_context(Operators(functions.book))
        result = call(model, example)
    if not (outputs := tensors_of(result)):
        raise ModelError(
            f"the network returns no tensor but a {type(result).__name__}; return tensors, or tuples, "
            "dictionaries or dataclasses of them"
        )
    functions.book.labels.reason = OUTPUT
    functions.book.fix(*outputs)
    return outputs


def run_in_training(model: nn.Module, example: Inputs, functions: Functions) -> None:
    """Runs a network as in training, for heads that work only there; buffers and random state come back.

    Batch norms use what they know, since one example has no statistics. A network that needs more than inputs
    in training, labels say, keeps what did not run before.
    """
    state = {name: b.detach().clone() for name, b in model.named_buffers()}
    read = set(functions.book.read)
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        with torch.random.fork_rng():
            run(model, example, functions)
    except Exception as error:  # whatever the network's own code may raise
        functions.book.read = read
        functions.book.barriers[f"a run as in training, which fails ({described(error)})"] = 1
    finally:
        model.eval()
        for name, b in model.named_buffers():
            b.copy_(state[name])


def unread(model: nn.Module, book: Book) -> list[str]:
    """Parameters that no operator read."""
    return [name for name, p in model.named_parameters() if book.key(p) not in book.read]
