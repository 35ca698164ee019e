# SPDX-License-Identifier: Apache-2.0
"""The blocks of a network that stand one behind the other, and how to pass over one of them."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, nearest
from rarefy.loops.modes import device_of, evaluating
from rarefy.task import Inputs, call, move, tensors_of

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Bypass(nn.Identity):
    """Hands its first input on and ignores the others, in place of a block that takes more than one.

    Args:
        outputs: entries of the tuple that the block returned; 0 if it returned a tensor.
    """

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first tensor, in a tuple filled up with None where the block returned a tuple."""
        first = tensors_of((args, kwargs))[0]
        return (first, *[None] * (self.outputs - 1)) if self.outputs else first


@dataclass(frozen=True)
class Block:
    """A module that can stand between two others.

    Attributes:
        name: its path.
        module: itself.
        given, gives: shape of its first input and of its first output.
        arguments: how many it is called with.
        outputs: entries of the tuple that it returns, 0 if it returns a tensor.
    """

    name: str
    module: nn.Module
    given: tuple[int, ...]
    gives: tuple[int, ...]
    arguments: int = 1
    outputs: int = 0

    @property
    def removable(self) -> bool:
        """Whether its output could be its input."""
        return self.given == self.gives

    def bypass(self) -> nn.Module:
        """What is put in its place."""
        return nn.Identity() if self.arguments == 1 and not self.outputs else Bypass(self.outputs)


@dataclass
class Seen:
    """One call of a module; tensors are held so that their identity means something."""

    args: Any
    output: Any


def blocks_of(
    model: nn.Module, example: Inputs, patterns: Iterable[str] | None = None
) -> list[Block]:
    """The blocks of a network, in the order in which they run.

    Without patterns these are the modules with layers inside that stand with others of their class in one
    container and read what one of those gives, or the other way round; of nested ones the innermost. A
    block that runs more than once in a pass is left out.

    Args:
        model: runs once in eval mode.
        example: a batch on any device.
        patterns: globs on paths, in place of looking for blocks.

    Raises:
        ModelError: a pattern matches no module that runs once.
    """
    modules = {path: m for path, m in model.named_modules() if path}
    wanted = list(modules) if patterns is not None else candidates(modules)
    calls = record(model, example, [modules[path] for path in wanted])
    once = {p: calls[modules[p]][0] for p in wanted if len(calls.get(modules[p], ())) == 1}
    usable = {
        p: seen for p, seen in once.items() if tensors_of(seen.args) and tensors_of(seen.output)
    }
    chosen = set(usable) if patterns is None else named(usable, patterns)
    if patterns is None:
        chosen = {p for p in chosen if is_chained(p, usable)}
        chosen = {p for p in chosen if not any(q.startswith(f"{p}.") for q in chosen)}
    order = {module: place for place, module in enumerate(calls)}
    ordered = sorted(chosen, key=lambda p: order[modules[p]])
    return [described(path, modules[path], usable[path]) for path in ordered]


def candidates(modules: dict[str, nn.Module]) -> list[str]:
    """Paths of the modules with layers inside that stand with others of their class in one container."""
    found = []
    for path, module in modules.items():
        if not isinstance(module, CONTAINERS):
            continue
        kinds: dict[type[nn.Module], list[str]] = {}
        for name, child in module.named_children():
            layered = any(True for _ in child.children()) and any(True for _ in child.parameters())
            if layered and not isinstance(child, CONTAINERS):
                kinds.setdefault(type(child), []).append(f"{path}.{name}")
        found += [p for paths in kinds.values() if len(paths) > 1 for p in paths]
    return found


def named(usable: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The paths that match and lie in no other that does; every pattern must match something."""
    chosen: set[str] = set()
    names = list(usable)
    for pattern in patterns:
        matching = {p for p in names if fnmatchcase(p, pattern)}
        if not matching:
            raise ModelError(
                f"'{pattern}' matches no block that runs once in a pass{nearest(pattern, names[:24])}"
            )
        chosen |= matching
    return {p for p in chosen if not any(p.startswith(f"{q}.") for q in chosen)}


def is_chained(path: str, usable: dict[str, Seen]) -> bool:
    """Whether a block reads what a sibling gives, or gives what a sibling reads."""
    parent = path.rpartition(".")[0]
    mine = usable[path]
    for other, seen in usable.items():
        if other == path or other.rpartition(".")[0] != parent:
            continue
        if tensors_of(mine.args)[0] is tensors_of(seen.output)[0]:
            return True
        if tensors_of(seen.args)[0] is tensors_of(mine.output)[0]:
            return True
    return False


def described(path: str, module: nn.Module, seen: Seen) -> Block:
    """What a block was seen to do."""
    args, kwargs = seen.args
    given, gives = (tuple(tensors_of(x)[0].shape) for x in (seen.args, seen.output))
    outputs = len(seen.output) if isinstance(seen.output, tuple) else 0
    return Block(path, module, given, gives, len(args) + len(kwargs), outputs)


@torch.no_grad()
def record(
    model: nn.Module, example: Inputs, modules: Iterable[nn.Module]
) -> dict[nn.Module, list[Seen]]:
    """The calls of some modules in one run, first finished first; no hook stays."""
    calls: dict[nn.Module, list[Seen]] = {}

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(module, []).append(Seen((args, kwargs), output))

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for module in modules:
            handle = module.register_forward_hook(after, with_kwargs=True)
            stack.callback(handle.remove)
        call(model, move(example, device_of(model)))
    return calls


def put_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of another."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@contextmanager
def bypassed(model: nn.Module, block: Block) -> Iterator[None]:
    """The network without a block, for a while."""
    put_module(model, block.name, block.bypass())
    try:
        yield
    finally:
        put_module(model, block.name, block.module)


def channel_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine between what goes into a block and what comes out, one for each example or token.

    Args:
        x, y: (B, C, *space) maps, compared as wholes; or (B, tokens, C) and (B, C), along the last axis.
    """
    if x.dim() > 3:
        x, y = x.flatten(1), y.flatten(1)
    return torch.cosine_similarity(x.double(), y.double(), dim=-1).flatten()
