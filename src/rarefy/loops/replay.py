# SPDX-License-Identifier: Apache-2.0
"""Running a network again and again from a point in its middle, without knowing its architecture.

While layer after layer is changed, everything before the layer at hand would be computed anew each time.
So the output of one finished module call, the cut, is kept for every batch, and the calls before it are
skipped: they return NaN of the right shape. A cut is used only after a trial has shown that the network's
answer does not depend on anything that was skipped (a skip connection around the cut would carry the NaN
to the end), so this works on any eager network and costs no more than plain runs where no cut is found.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rarefy.loops.modes import Place, evaluating, watching
from rarefy.task import Inputs, call


class Reached(Exception):
    """Ends a forward pass at the place where enough is known."""


@dataclass(frozen=True)
class Blank:
    """What remains of a tensor in a skipped output."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def poison(self) -> Tensor:
        """NaN of this shape: whoever uses it will show it."""
        return torch.full(self.shape, torch.nan, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Span:
    """A module's call: which, and between which two moments of the forward pass."""

    place: Place
    start: int
    end: int


@dataclass
class Kept:
    """Of one batch: the output at the cut, and the blanks of the calls before it."""

    place: Place | None = None
    output: Any = None
    blanks: dict[Place, Any] = field(default_factory=dict)

    def keep(self, skipped: set[Place], place: Place, output: Any) -> None:
        """Remembers what a call gave, if it is the cut or one of those to be skipped.

        Outputs that NaN can't stand for (integers, objects) are computed again each time.
        """
        leaves = pytree.tree_leaves(output)
        if place == self.place:
            self.output = output
        elif place in skipped and all(
            isinstance(x, Tensor) and x.is_floating_point() for x in leaves
        ):
            self.blanks[place] = pytree.tree_map(
                lambda t: Blank(t.shape, t.dtype, t.device), output
            )

    def answers(self) -> dict[Place, Callable[[], Any]]:
        """What the cut and the skipped calls return; nothing where the cut was not reached."""
        if self.place is None or self.output is None:
            return {}
        found = {p: partial(pytree.tree_map, Blank.poison, b) for p, b in self.blanks.items()}
        # clones, because what follows may work in place
        return {
            **found,
            self.place: partial(pytree.tree_map_only, Tensor, Tensor.clone, self.output),
        }


@contextmanager
def replaced(answers: dict[Place, Callable[[], Any]]) -> Iterator[None]:
    """Lets some calls of modules return something else than they would compute."""
    by_module: dict[nn.Module, dict[int, Callable[[], Any]]] = {}
    for (module, number), answer in answers.items():
        by_module.setdefault(module, {})[number] = answer
    with ExitStack() as stack:
        for module, by_number in by_module.items():
            stack.callback(put_forward, module, module.__dict__.get("forward"))
            module.forward = standing_in(module.forward, by_number)
        yield


def standing_in(
    original: Callable[..., Any], by_number: dict[int, Callable[[], Any]]
) -> Callable[..., Any]:
    """A forward that counts its calls and answers some of them from elsewhere."""
    numbers = itertools.count()

    def forward(*args: Any, **kwargs: Any) -> Any:
        answer = by_number.get(next(numbers))
        return original(*args, **kwargs) if answer is None else answer()

    return forward


def put_forward(module: nn.Module, own: Callable[..., Any] | None) -> None:
    """Gives a module the forward back that it had."""
    if own is None:
        del module.forward
    else:
        module.forward = own


class Replay:
    """Forward passes of a network that begin at the latest point from which they can.

    Args:
        model: its weights may change between the passes, not its structure.
        batches: inputs of the passes, on the model's device.
        probe: a small input on which cuts are tried.
        layers: modules that change; only calls of modules that hold one of them are worth skipping.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Inputs],
        probe: Inputs,
        layers: Sequence[nn.Module],
    ) -> None:
        self.model, self.batches, self.probe = model, batches, probe
        self.costly = [m for m in model.modules() if worth_skipping(m, model, set(layers))]
        self.kept = [Kept() for _ in batches]
        self.reach = -1  # the moment at which the present cut ends
        self.trials: dict[Place, bool] = {}
        self.spans = self.trace()

    def forward(self, number: int, plain: bool = False) -> None:
        """One pass over a batch, from the cut on unless `plain`; `Reached` may end it early."""
        answers = {} if plain else self.kept[number].answers()
        with evaluating(self.model), torch.no_grad(), replaced(answers), suppress(Reached):
            call(self.model, self.batches[number])

    def advance(self, layer: nn.Module) -> None:
        """Moves the cut as near to the first call of `layer` as can be; never back."""
        goal = min((s.start for s in self.spans if s.place[0] is layer), default=-1)
        for span in sorted(self.before(goal), key=lambda s: -s.end):
            if span.end <= self.reach:
                return
            if self.sound(span):
                self.move(span)
                return

    def before(self, moment: int) -> list[Span]:
        """The outermost calls that have ended before a moment."""
        done = [s for s in self.spans if s.end < moment]
        return [s for s in done if not any(t.start < s.start and s.end < t.end for t in done)]

    def trace(self) -> list[Span]:
        """All calls of the costly modules in one pass over the probe."""
        clock, spans = itertools.count(), []
        began: dict[Place, int] = {}

        def enter(place: Place) -> None:
            began[place] = next(clock)

        def leave(place: Place, _: Any) -> None:
            spans.append(Span(place, began[place], next(clock)))

        with evaluating(self.model), torch.no_grad(), watching(self.costly, enter, leave):
            call(self.model, self.probe)
        return spans

    def sound(self, span: Span) -> bool:
        """Whether the probe's answer stays the same, bit for bit, when all before is skipped."""
        if span.place not in self.trials:
            kept = Kept(span.place)
            skipped = {s.place for s in self.before(span.start)}
            with evaluating(self.model), torch.no_grad():
                with watching(self.costly, after=partial(kept.keep, skipped)):
                    expected = call(self.model, self.probe)
                try:
                    with replaced(kept.answers()):
                        found = call(self.model, self.probe)
                except (
                    Exception
                ):  # a network may do anything when it meets NaN: then this is no cut
                    found = None
            self.trials[span.place] = same(expected, found)
        return self.trials[span.place]

    def move(self, span: Span) -> None:
        """Computes the output at a later cut for all batches, from the present one on."""
        skipped = {s.place for s in self.before(span.start)}

        for number, old in enumerate(self.kept):
            new = Kept(span.place, blanks=dict(old.blanks))

            def leave(place: Place, output: Any, new: Kept = new) -> None:
                new.keep(skipped, place, output)
                if place == span.place:
                    raise Reached

            with watching(self.costly, after=leave):
                self.forward(number)
            self.kept[number] = new
        self.reach = span.end


def worth_skipping(module: nn.Module, model: nn.Module, layers: set[nn.Module]) -> bool:
    """Whether a module holds one of the layers and its calls can be answered from elsewhere."""
    inside = module is not model and not isinstance(module, torch.jit.ScriptModule)
    return inside and not layers.isdisjoint(module.modules())


def same(expected: Any, found: Any) -> bool:
    """Whether two answers consist of equal tensors, and of at least one."""
    ours, theirs = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    if len(ours) != len(theirs) or not any(isinstance(x, Tensor) for x in ours):
        return False
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(ours, theirs, strict=True)
    )
