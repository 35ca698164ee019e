# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers whose weights may wear forms, and LSTMs that round what they read and their state."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError
from rarefy.forms.affine import Quantised
from rarefy.forms.dynamic import dynamic_quantize
from rarefy.forms.grid import from_codes
from rarefy.forms.shadow import find


@torch.library.custom_op("rarefy::dynamic_lstm", mutates_args=())
def dynamic_lstm(
    x: Tensor, h: Tensor, c: Tensor, codes: list[Tensor], scales: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of an LSTM with int8 weights; what it reads is rounded as a whole, its state step by step.

    Args:
        x: (T, B, inputs).
        h, c: (directions, B, hidden).
        codes: of the weights for inputs (4 hidden, inputs) and for states (4 hidden, hidden), for every
            direction; gates in torch's order (input, forget, cell, output).
        scales: (4 hidden,) of each of `codes`.
        biases: (4 hidden,) beside each of `codes`, or none.

    Returns:
        (T, B, directions * hidden), and the last h and c.
    """
    read = dynamic_quantize(x)
    outputs, states, cells = [], [], []
    for d in range(len(codes) // 2):
        W, R = (from_codes(codes[2 * d + i], scales[2 * d + i], torch.zeros(()), 0) for i in (0, 1))
        fed = read @ W.T + (biases[2 * d] + biases[2 * d + 1] if biases else 0)
        state, cell = h[d], c[d]
        steps: list[Tensor] = []
        for part in fed.flip(0) if d else fed:
            gates = part + dynamic_quantize(state) @ R.T
            i, f, g, o = gates.chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
            steps.append(state)
        passed = torch.stack(steps)
        outputs.append(passed.flip(0) if d else passed)
        states.append(state)
        cells.append(cell)
    return torch.cat(outputs, -1), torch.stack(states), torch.stack(cells)


@dynamic_lstm.register_fake
def _(
    x: Tensor, h: Tensor, c: Tensor, codes: list[Tensor], scales: list[Tensor], biases: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = x.new_empty(*x.shape[:2], h.shape[0] * h.shape[2])
    return outputs, torch.empty_like(h), torch.empty_like(c)


class Recurrent(nn.Module):
    """What an `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, from weights that may wear forms.

    Torch's own layers keep lists of their weights, which a form would not reach.

    Args:
        layer: gives its weights, which keep their names, and its settings.
        dynamic: whether inputs and states are rounded to 8 bits; of an LSTM only.

    Raises:
        ModelError: a layer that can't be taken over.
    """

    def __init__(self, layer: nn.RNNBase, dynamic: bool = False) -> None:
        super().__init__()
        self.kind = layer.mode.lower()
        self.input_size, self.hidden_size = layer.input_size, layer.hidden_size
        self.num_layers, self.bias = layer.num_layers, layer.bias
        self.batch_first, self.bidirectional = layer.batch_first, layer.bidirectional
        self.dropout = float(layer.dropout)
        self.projected = layer.proj_size
        self.dynamic = dynamic and self.kind == "lstm" and not self.projected
        self.names = [name for names in layer._all_weights for name in names]
        for name in self.names:
            self.register_parameter(name, getattr(layer, name))

    @property
    def directions(self) -> int:
        """1, or 2 if it also runs backwards."""
        return 2 if self.bidirectional else 1

    def weights(self) -> list[str]:
        """Names of the parameters that multiply."""
        return [name for name in self.names if name.startswith("weight")]

    def forward(self, x: Any, hx: Any = None) -> Any:
        """As torch's layer.

        Raises:
            ModelError: a packed sequence.
        """
        if not isinstance(x, Tensor):
            raise ModelError(
                f"a quantised {self.kind.upper()} takes tensors, not a {type(x).__name__}; pad the "
                "sequences and pass them as one tensor"
            )
        single = x.dim() == 2
        if single:
            x = x.unsqueeze(0 if self.batch_first else 1)
            hx = mapped(hx, lambda t: t.unsqueeze(1))
        if hx is None:
            hx = self.zeros(x)
        y, last = self.rounded(x, hx) if self.dynamic else self.floats(x, hx)
        if single:
            y, last = y.squeeze(0 if self.batch_first else 1), mapped(last, lambda t: t.squeeze(1))
        return y, last

    def zeros(self, x: Tensor) -> Any:
        """The state to start from."""
        batch = x.shape[0 if self.batch_first else 1]
        width = self.projected or self.hidden_size
        h = x.new_zeros(self.num_layers * self.directions, batch, width)
        if self.kind != "lstm":
            return h
        return h, x.new_zeros(self.num_layers * self.directions, batch, self.hidden_size)

    def floats(self, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        """Computed by torch's kernel."""
        run = getattr(torch._VF, self.kind)
        y, *last = run(
            x, hx, [getattr(self, name) for name in self.names], self.bias, self.num_layers,
            self.dropout, self.training, self.bidirectional, self.batch_first,
        )  # fmt: skip
        return y, tuple(last) if self.kind == "lstm" else last[0]

    def rounded(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        """An LSTM of codes."""
        y = x.transpose(0, 1) if self.batch_first else x
        h, c = hx
        states, cells = [], []
        for number in range(self.num_layers):
            if number:
                y = F.dropout(y, self.dropout, self.training)
            own = slice(number * self.directions, (number + 1) * self.directions)
            y, state, cell = dynamic_lstm(y, h[own], c[own], *self.layer(number))
            states.append(state)
            cells.append(cell)
        last = torch.cat(states), torch.cat(cells)
        return (y.transpose(0, 1) if self.batch_first else y), last

    def layer(self, number: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Codes, scales and biases of one layer, as `dynamic_lstm` takes them."""
        ends = [f"l{number}", f"l{number}_reverse"][: self.directions]
        names = [f"weight_{side}_{end}" for end in ends for side in ("ih", "hh")]
        held = [self.parametrizations[name].original for name in names]  # type: ignore[index, union-attr]
        forms: list[Any] = [find(self, Quantised, name) for name in names]
        biases = [n.replace("weight", "bias") for n in names] if self.bias else []
        return held, [form.scale for form in forms], [getattr(self, name) for name in biases]


def mapped(state: Any, change: Any) -> Any:
    """A state, or a pair of them, with each tensor changed."""
    if state is None:
        return None
    return tuple(change(t) for t in state) if isinstance(state, tuple) else change(state)
