# SPDX-License-Identifier: Apache-2.0
"""A captured graph is taken over exactly when nothing but values has changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rarefy.export import reuse
from rarefy.export.onnx import export_onnx

X = torch.randn(1, 3, 8, 8)


class Scaled(nn.Module):
    """A convolution times a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.factor, self.shape = 2.0, (-1, 4)
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mean((2, 3)) * self.factor + self.get_buffer("shift")
        return self.head(x.reshape(*self.shape))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that were traced."""
    seen: list[nn.Module] = []
    before = reuse.capture

    def capture(model: nn.Module, example: Tensor) -> object:
        seen.append(model)
        return before(model, example)

    monkeypatch.setattr(reuse, "capture", capture)
    monkeypatch.setattr(reuse, "LAST", reuse.Kept())
    return seen


def test_new_values_give_the_file_that_a_new_trace_gives(
    traces: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    first, second = Scaled().eval(), Scaled().eval()
    second.get_buffer("shift").mul_(3)
    before = export_onnx(first, X)
    reused = export_onnx(second, X)
    assert len(traces) == 1
    monkeypatch.setattr(reuse, "LAST", reuse.Kept())
    assert reused.SerializeToString() == export_onnx(second, X).SerializeToString()
    assert reused.SerializeToString() != before.SerializeToString()


def hooked(model: Scaled) -> None:
    model.conv.register_forward_hook(lambda module, inputs, output: output + 1)


def closed(model: Scaled) -> None:
    held = [1.0]
    model.function = lambda: held[0]  # type: ignore[assignment]


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "a number": lambda m: setattr(m, "factor", 3.0),
    "a tuple": lambda m: setattr(m, "shape", (1, 4)),
    "another class": lambda m: setattr(m, "norm", nn.InstanceNorm2d(4)),
    "a plain attribute of a layer": lambda m: setattr(m.norm, "eps", 0.1),
    "a shape": lambda m: setattr(m, "conv", nn.Conv2d(3, 4, 1)),
    "a type": lambda m: m.double(),
    "a hook": hooked,
    "a closure": closed,
    "a tensor beside the buffers": lambda m: setattr(m, "constant", torch.ones(1)),
    "a missing bias": lambda m: setattr(m, "head", nn.Linear(4, 2, bias=False)),
    "a shared weight": lambda m: setattr(m.norm, "weight", m.norm.bias),
}


def structure(model: nn.Module, example: object = X) -> object:
    """What decides whether a graph is taken over; never equal to itself where nothing can be compared."""
    try:
        return reuse.structure_of(model, example)  # type: ignore[arg-type]
    except reuse.Unknown:
        return object()


@pytest.mark.parametrize("change", CHANGES)
def test_everything_but_values_is_traced_anew(change: str) -> None:
    model = Scaled().eval()
    before = structure(model)
    assert structure(model) == structure(Scaled().eval()) == before
    CHANGES[change](model)
    assert structure(model) != before


def test_another_example_is_traced_anew() -> None:
    model = Scaled().eval()
    before = structure(model)
    for example in (torch.randn(1, 3, 10, 10), (X,), {"x": X}, X.double()):
        assert structure(model, example) != before


def test_the_kept_graph_holds_no_weights(traces: list[nn.Module]) -> None:
    model = Scaled().eval()
    graph = reuse.captured(model, X)
    held = reuse.LAST.graph.graph.initializers
    assert {name for name, _ in model.named_parameters()} <= held.keys()
    assert all(held[name].const_value is None for name in dict(model.named_parameters()))
    del graph.graph.initializers["conv.weight"]  # the copy is the caller's own
    assert "conv.weight" in held


def test_a_folded_parameter_is_never_taken_over(traces: list[nn.Module]) -> None:
    model = Scaled().eval()
    model.unused = nn.Parameter(torch.ones(1))
    reuse.captured(model, X)
    reuse.captured(model, X)
    assert len(traces) == 2
