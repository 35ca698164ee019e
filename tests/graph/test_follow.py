# SPDX-License-Identifier: Apache-2.0
"""Networks are run as they are: loops, structures, shared layers, heads of training, and what fails."""

from dataclasses import dataclass

import pytest
import torch
from tests.graph.cuts import cut_half, halves_and_agrees, seen
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError
from rarefy.graph.coupling import couple

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


class Looping(nn.Module):
    """How often its layer runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        for _ in range(int(x.abs().sum()) % 3 + 1):
            y = self.b(y).relu()
        return self.c(y)


def test_control_flow_may_depend_on_the_data() -> None:
    model = Looping()
    whole = {"a.weight:0": 6, "a.bias:0": 6, "b.weight:0": 6, "b.weight:1": 6, "b.bias:0": 6,
             "c.weight:1": 6}  # fmt: skip
    many = next(ROW * k for k in range(1, 9) if int((ROW * k).abs().sum()) % 3 == 2)
    assert seen(model, many) == {"a": (6, whole)}
    halves_and_agrees(model, many)


class Two(nn.Module):
    """Two inputs by name or in order, outputs in a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        z = self.a(x) + self.b(y)
        return {"out": self.c(z.relu()), "inputs": (x, [y])}


def test_inputs_and_outputs_may_be_structures() -> None:
    for example in ({"x": ROW, "y": ROW[:, :4]}, (ROW, ROW[:, :4])):
        model = Two()
        ((size, touched),) = seen(model, example).values()
        assert (size, touched["b.weight:0"]) == (6, 6)
        _, outcome = cut_half(model, example)
        assert outcome.cut == {"a": 3}


def test_a_layer_that_runs_twice_ties_what_both_runs_read() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.s = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
            self.c = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            small, large = self.a(x), F.interpolate(self.b(x), scale_factor=2.0)
            y, z = self.c(self.s(small)), self.c(self.s(large))  # two sizes of image
            return y.mean((2, 3)) + z.mean((2, 3))

    model = Shared()
    assert seen(model, IMAGE) == {
        "a": (6, {"a.weight:0": 6, "a.bias:0": 6, "b.weight:0": 6, "b.bias:0": 6, "s.weight:1": 6}),
        "s": (5, {"s.weight:0": 5, "s.bias:0": 5, "c.weight:1": 5}),
    }
    halves_and_agrees(model, IMAGE)


def test_a_layer_that_runs_on_two_widths_is_left_alone_without_harm() -> None:
    class Widths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.norm = nn.PReLU(1), nn.LayerNorm([4, 4])
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(self.act(self.b(self.act(self.a(x))))))

    model = Widths()
    assert {name: size for name, (size, _) in seen(model, IMAGE).items()} == {"a": 6, "b": 4}
    halves_and_agrees(model, IMAGE)
    assert model.norm.normalized_shape == (4, 4)


class Auxiliary(nn.Module):
    """A second head that runs in training alone, as GoogLeNet has."""

    def __init__(self, fails: bool = False, late: bool = False) -> None:
        super().__init__()
        self.fails, self.late = fails, late
        self.a, self.norm, self.head = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 2)
        self.aux, self.last, self.drop = nn.Conv2d(6, 4, 1), nn.Linear(4, 2), nn.Dropout(0.5)
        self.pooled = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> object:
        y = self.norm(self.a(x)).relu()
        out = self.head(self.drop(y).mean((2, 3)))
        if not self.training:
            return out
        if self.fails:
            raise ValueError("targets, please")
        aux = self.aux(y)
        if self.late:
            raise ValueError("targets, please")
        return out, self.last(self.pooled(aux.relu().mean((2, 3), keepdim=True)).flatten(1))


def test_heads_that_run_in_training_alone_are_cut_too() -> None:
    model = Auxiliary().eval()
    statistics = model.norm.running_mean.clone()
    found = seen(model, IMAGE)
    assert torch.equal(model.norm.running_mean, statistics)
    assert int(model.norm.num_batches_tracked) == 0
    assert not any(m.training for m in model.modules())
    assert {name: size for name, (size, _) in found.items()} == {"a": 6, "aux": 4}
    assert found["a"][1]["aux.weight:1"] == 6
    halves_and_agrees(model, IMAGE)
    out, aux = model.train()(IMAGE)
    assert out.shape == aux.shape == (2, 2)
    assert model.aux.weight.shape == (2, 3, 1, 1)


def test_one_example_is_enough_for_norms_that_run_in_training_alone() -> None:
    model = Auxiliary()
    found = seen(model, IMAGE[:1])
    assert {name: size for name, (size, _) in found.items()} == {"a": 6, "aux": 4}
    halves_and_agrees(model, IMAGE[:1])
    assert model.train()(IMAGE)[1].shape == (2, 2)


def test_what_reads_before_a_head_fails_stays_whole() -> None:
    model = Auxiliary(late=True)
    assert seen(model, IMAGE) == {}
    model.late = False
    assert model.train()(IMAGE)[1].shape == (2, 2)


def test_a_head_that_asks_for_more_than_inputs_stays_whole() -> None:
    model = Auxiliary(fails=True)
    found = seen(model, IMAGE)
    assert {name: size for name, (size, _) in found.items()} == {"a": 6}
    assert model.training
    assert "aux.weight:0" not in found["a"][1]


def test_what_never_runs_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    model[0].idle = nn.Linear(6, 6)
    assert seen(model, ROW) == {"0": (6, {"0.weight:0": 6, "0.bias:0": 6, "1.weight:1": 6})}
    halves_and_agrees(model, ROW)
    assert model[0].idle.weight.shape == (6, 6)


class Failing(nn.Module):
    """Fails behind its first layer."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.a, self.error, self.width = nn.Linear(5, 6), error, 6

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("too\nlong"), "RuntimeError: too long"),
        (ValueError("too"), "ValueError: too"),
        (TypeError("too"), "TypeError: too"),
    ],
)
def test_a_network_that_fails_is_named_and_unharmed(error: Exception, told: str) -> None:
    model = Failing(error).train()
    model.a.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError, match=f"^the network can't be followed on the example: {told}$"):
        couple(model, ROW)
    assert type(model.width) is int
    assert (model.training, model.a.training) == (True, False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_looking_leaves_the_network_as_it_was() -> None:
    model = Auxiliary().train()
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    with torch.random.fork_rng():
        couple(model, IMAGE)
    for name, now in model.state_dict(keep_vars=True).items():
        assert now is before[name][0]
        assert torch.equal(now, before[name][1])
        assert now.grad is None
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()


@dataclass
class Answer:
    """What some networks return."""

    logits: Tensor


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.b(self.a(x)))


def test_outputs_in_a_dataclass_keep_their_channels() -> None:
    model = Wrapped()
    cut_half(model, ROW)
    assert model.a.weight.shape == (3, 5)
    assert model(ROW).logits.shape == (3, 4)


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> float:
        return float(self.a(x).sum())


def test_a_network_without_tensors_to_show_is_refused() -> None:
    with pytest.raises(ModelError, match="returns no tensor but a float"):
        couple(Nothing(), ROW)


class Cached(nn.Module):
    """Keeps a size that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: int | None = None
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.seen = self.seen or y.shape[-1]
        return self.b(y.reshape(-1, self.seen))


def test_what_the_network_keeps_is_plain() -> None:
    model = Cached()
    assert list(seen(model, ROW)) == ["a"]
    assert type(model.seen) is int
    halves_and_agrees(model, ROW)
    assert model.seen == 4


@pytest.mark.parametrize("error", [KeyError, AttributeError, ZeroDivisionError])
def test_whatever_the_network_raises_is_told(error: type[Exception]) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error("too bad")

    with pytest.raises(ModelError, match="can't be followed on the example: .*too bad"):
        couple(Failing(), ROW)


def test_networks_without_parameters_have_no_groups() -> None:
    coupling = couple(nn.ReLU(), ROW)
    assert coupling.groups == ()
    with pytest.raises(KeyError):
        coupling.group("a")
