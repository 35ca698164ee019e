# SPDX-License-Identifier: Apache-2.0
"""Optimisers whose states take a byte for each value in place of four.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, 2022, arXiv 2110.02861:
moments are kept as dynamic tree codes in blocks of 2,048, each with its own scale, and made float for one
parameter at a time.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rarefy.forms.dynamic_tree import from_tree_codes, to_tree_codes

LEAST = 4096  # values; smaller tensors keep float states, as in the paper


class Coded:
    """Reads and writes the states of one parameter, coded where it is large enough.

    Args:
        state: of the optimiser for one parameter.
        p: the parameter.
    """

    def __init__(self, state: dict[str, Any], p: Tensor) -> None:
        self.state, self.p = state, p

    def get(self, name: str, signed: bool = True) -> Tensor:
        """A moment in float32; zeros before the first step."""
        if name in self.state:
            return self.state[name]
        if f"{name}_codes" not in self.state:
            return torch.zeros_like(self.p, dtype=torch.float32)
        codes, reach = self.state[f"{name}_codes"], self.state[f"{name}_reach"]
        return from_tree_codes(codes, reach, self.p.shape, signed)

    def put(self, name: str, value: Tensor, signed: bool = True) -> None:
        """Keeps a moment."""
        if self.p.numel() < LEAST:
            self.state[name] = value
            return
        self.state[f"{name}_codes"], self.state[f"{name}_reach"] = to_tree_codes(value, signed)


class CodedOptimiser(torch.optim.Optimizer):
    """What both have in common: every parameter is stepped by itself."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad.float(), group, Coded(self.state[p], p))
        return loss

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], coded: Coded) -> None:
        """One step of one parameter."""
        raise TypeError(f"{type(self).__name__} defines no move")


class EightBitSGD(CodedOptimiser):
    """SGD with Nesterov momentum, as `torch.optim.SGD` with ``nesterov=True``."""

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], coded: Coded) -> None:
        g = g.add(p, alpha=group["weight_decay"])
        mu = group["momentum"]
        if mu == 0:
            p.add_(g.to(p.dtype), alpha=-group["lr"])
            return
        m = coded.get("momentum").mul_(mu).add_(g)
        coded.put("momentum", m)
        p.add_(g.add(m, alpha=mu).to(p.dtype), alpha=-group["lr"])


class EightBitAdam(CodedOptimiser):
    """Adam; with `decoupled` weight decay AdamW, as in `torch.optim`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        fields = {"betas": betas, "eps": 1e-8, "decoupled": decoupled}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **fields})

    def move(self, p: Tensor, g: Tensor, group: dict[str, Any], coded: Coded) -> None:
        (b1, b2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
        t = coded.state["step"] = coded.state.get("step", 0) + 1
        if group["decoupled"]:
            p.mul_(1 - rate * decay)
        else:
            g = g.add(p, alpha=decay)
        m = coded.get("mean").lerp_(g, 1 - b1)
        v = coded.get("square", signed=False).mul_(b2).addcmul_(g, g, value=1 - b2)
        coded.put("mean", m)
        coded.put("square", v, signed=False)
        spread = v.div(1 - b2**t).sqrt_().add_(group["eps"])
        # where a coded square vanished beside a large one, Adam's own bound (Kingma, Ba, section 2.1) holds
        most = max(1.0, (1 - b1) / (1 - b2) ** 0.5)
        change = (m.div(1 - b1**t) / spread).clamp_(-most, most)
        p.add_(change.to(p.dtype), alpha=-rate)


def state_bytes(optimiser: torch.optim.Optimizer) -> int:
    """What an optimiser's states take."""
    held = [value for state in optimiser.state.values() for value in state.values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))
