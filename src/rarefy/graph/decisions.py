# SPDX-License-Identifier: Apache-2.0
"""Decisions that a network takes while it runs: which boxes to keep, what comes first, which expert to ask.

Two networks that agree may still decide differently where two values are as good as equal, and everything
behind is different then. One of them follows what the other has decided, if what they decide upon agrees.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Decision:
    """An operator that took real numbers and gave integers or truth values.

    Attributes:
        name: of the operator.
        upon: the real numbers.
        taken: what it gave, real numbers among it, as a sorting gives both.
    """

    name: str
    upon: tuple[Tensor, ...]
    taken: Any


def real(values: Any) -> tuple[Tensor, ...]:
    """The floating-point tensors in a structure."""
    return tuple(t for t in tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point())


def decides(args: Any, out: Any) -> bool:
    """Whether real numbers went in and integers or truth values came out."""
    given = out if isinstance(out, (tuple, list)) else (out,)
    whole = any(
        isinstance(t, Tensor) and not (t.is_floating_point() or t.is_complex()) for t in given
    )
    return whole and bool(real(args))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite if integers differ at all."""
    if not expected.is_floating_point() or not expected.numel():
        return 0.0 if torch.equal(found, expected) else float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


class Deciding(TorchDispatchMode):
    """Writes decisions down.

    Attributes:
        taken: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Decision] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not decides(args, out):
            return out
        return self.decided(func.overloadpacket.__name__, args, out)

    def decided(self, name: str, args: Any, out: Any) -> Any:
        """What an operator gives that decides."""
        upon = tuple(t.detach().clone() for t in real(args))
        copies = tree_map_only(Tensor, lambda t: t.detach().clone(), out)
        self.taken.append(Decision(name, upon, copies))
        return out


class Following(Deciding):
    """Decides as was decided before upon numbers that agree; real numbers are the network's own.

    Args:
        known: decisions of another network, in order.
        tolerance: how far the numbers may be apart, as a share of their range.
    """

    def __init__(self, known: list[Decision], tolerance: float) -> None:
        super().__init__()
        self.known, self.tolerance, self.place = known, tolerance, 0

    def decided(self, name: str, args: Any, out: Any) -> Any:
        if self.place >= len(self.known):
            return out
        before = self.known[self.place]
        self.place += 1
        upon = real(args)
        alike = before.name == name and [t.shape for t in upon] == [t.shape for t in before.upon]
        if not alike or not all(
            difference(a, b) <= self.tolerance for a, b in zip(upon, before.upon, strict=True)
        ):
            return out
        return followed(out, before.taken)


def followed(own: Any, taken: Any) -> Any:
    """What was decided, with real numbers of one's own."""
    if isinstance(own, (tuple, list)):
        return type(own)(followed(a, b) for a, b in zip(own, taken, strict=True))
    if isinstance(own, Tensor) and own.is_floating_point():
        return own
    return taken
