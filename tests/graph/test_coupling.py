# SPDX-License-Identifier: Apache-2.0
"""Networks whose groups are known by thought: what goes together, what stays, and what is said about it."""

import copy

import pytest
import torch
from tests.graph.cuts import axes, cut_half, half, halves_and_agrees, seen
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.forms.mask import set_mask
from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ROW = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A sum of a shortcut and two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.b, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.b(self.a(y).relu())
        return self.head(y.mean((2, 3)))


def test_what_is_added_is_one_group_and_what_is_between_another() -> None:
    model = Residual()
    assert seen(model, IMAGE) == {
        "stem": (6, {"stem.weight:0": 6, "stem.bias:0": 6, "a.weight:1": 6, "b.weight:0": 6,
                     "b.bias:0": 6, "head.weight:1": 6}),
        "a": (4, {"a.weight:0": 4, "a.bias:0": 4, "b.weight:1": 4}),
    }  # fmt: skip
    roles = {(m.name, m.axis): m.role for g in couple(model, IMAGE).groups for m in g.members}
    assert roles["stem.weight", 0] == roles["b.weight", 0] == roles["a.weight", 0] == "out"
    assert roles["a.weight", 1] == roles["head.weight", 1] == roles["b.weight", 1] == "in"
    assert roles["stem.bias", 0] == roles["b.bias", 0] == "along"
    halves_and_agrees(model, IMAGE)


class Dense(nn.Module):
    """Features side by side, with a norm over both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.norm, self.c = nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.c(self.norm(torch.cat([self.b(a), a], 1)))


def test_what_stands_side_by_side_keeps_its_place() -> None:
    model = Dense()
    coupling = couple(model, IMAGE)
    statistics = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    for name, places in {"a": [3, 4, 5, 6], "b": [0, 1, 2]}.items():
        group = coupling.group(name)
        touched = {m.name: m.places.tolist() for m in group.members if m.name in statistics}
        assert touched == dict.fromkeys(statistics, places)
        assert axes(group)["c.weight:1"] == len(places)
    halves_and_agrees(model, IMAGE)
    assert model.norm.running_mean.shape == (4,)


class Squeezed(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        scale = self.up(self.down(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()
        return self.last(y * scale)


def test_gates_of_channels_go_with_them() -> None:
    model = Squeezed()
    assert seen(model, IMAGE) == {
        "conv": (8, {"conv.weight:0": 8, "conv.bias:0": 8, "down.weight:1": 8, "up.weight:0": 8,
                     "up.bias:0": 8, "last.weight:1": 8}),
        "down": (4, {"down.weight:0": 4, "down.bias:0": 4, "up.weight:1": 4}),
    }  # fmt: skip
    halves_and_agrees(model, IMAGE)


class Shuffled(nn.Module):
    """Channels of two groups change places, as ShuffleNet writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.groups = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(y)


def test_a_shuffle_is_followed_position_by_position() -> None:
    model = Shuffled()
    coupling = couple(model, IMAGE)
    (group,) = coupling.groups
    where = {m.name: m for m in group.members}
    given, read = where["a.weight"], where["b.weight"]
    for unit in range(group.size):
        mine = given.places[given.units == unit].tolist()
        assert read.places[read.units == unit].tolist() == sorted(
            2 * (p % 4) + p // 4 for p in mine
        )
    halves_and_agrees(model, IMAGE)


class Tokens(nn.Module):
    """Patches with a class token and a position table, a norm, and a layer scale that starts at 1e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 3, stride=3)
        self.token, self.table = (
            nn.Parameter(torch.randn(1, 1, 8)),
            nn.Parameter(torch.randn(1, 5, 8)),
        )
        self.norm, self.layer, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.gamma = nn.Parameter(torch.full((8,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.table
        return self.head((y + self.gamma * self.layer(self.norm(y)))[:, 0])


def test_raw_parameters_carry_labels_like_any_other() -> None:
    model = Tokens()
    ((size, touched),) = seen(model, IMAGE).values()
    assert size == 8
    names = {"token:2", "table:2", "gamma:0", "embed.weight:0", "embed.bias:0", "norm.weight:0",
             "norm.bias:0", "layer.weight:0", "layer.weight:1", "layer.bias:0", "head.weight:1"}  # fmt: skip
    assert set(touched) == names
    _, outcome = cut_half(model, IMAGE)
    assert outcome.cut == {"embed": 4}
    assert model.token.shape == (1, 1, 4)
    assert model.table.shape == (1, 5, 4)
    assert model.gamma.shape == (4,)


class Buffered(nn.Module):
    """A buffer that scales channels, and one that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.register_buffer("scale", torch.rand(6, 1, 1))
        self.register_buffer("other", torch.rand(6))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.scale)


def test_buffers_shrink_with_what_they_multiply() -> None:
    model = Buffered()
    ((_, touched),) = seen(model, IMAGE).values()
    assert touched["scale:0"] == 6
    assert "other:0" not in touched
    halves_and_agrees(model, IMAGE)
    assert model.scale.shape == (3, 1, 1)
    assert model.other.shape == (6,)


def test_a_mask_shrinks_with_the_weight_that_it_stands_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    set_mask(model[0], torch.rand(6, 3, 1, 1) > 0.3)
    weight = model[0].weight.detach().clone()
    coupling, outcome = cut_half(model, IMAGE)
    assert list(outcome.cut.values()) == [3]
    assert model[0].weight.shape == (3, 3, 1, 1)
    assert all(any(torch.equal(row, old) for old in weight) for row in model[0].weight)
    assert model[0].parametrizations.weight[0].keep.shape[0] == 3


class Recurrent(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.cell = kind(5, 4, **options)  # type: ignore[call-arg, arg-type]
        self.head = nn.Linear(8 if self.cell.bidirectional else 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "batch_first": True}, {"bidirectional": True, "num_layers": 2}],
    ids=["one", "stacked", "both ways"],
)
def test_hidden_units_of_recurrent_layers_go(
    kind: type[nn.RNNBase], options: dict[str, object]
) -> None:
    model, x = Recurrent(kind, **options), torch.randn(7, 2, 5)
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    ((size, touched),) = seen(model, x).values()
    assert size == 4
    for name, p in model.cell.named_parameters():
        assert touched[f"cell.{name}:0"] == p.shape[0] == 4 * gates
        if p.dim() == 2 and p.shape[1] != 5:
            assert touched[f"cell.{name}:1"] == p.shape[1]
    assert touched["head.weight:1"] == model.head.in_features
    halves_and_agrees(model, x)
    assert model.cell.hidden_size == 2
    assert model.cell.weight_ih_l0.shape == (2 * gates, 5)
    assert model.cell.weight_hh_l0.shape == (2 * gates, 2)
    again = copy.deepcopy(model).train()  # the weights are still those that the layer runs with
    again(x).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_outputs_keep_their_channels_also_inner_ones() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x).relu()
            return y, self.c(self.b(y))

    assert seen(Features(), IMAGE) == {"b": (4, {"b.weight:0": 4, "b.bias:0": 4, "c.weight:1": 4})}
    assert seen(nn.Conv2d(3, 6, 1), IMAGE) == {}


@pytest.mark.parametrize(
    ("keep", "left"),
    [([], ["stem", "a"]), (["a"], ["stem"]), (["a.weight"], ["stem"]), (["b"], ["a"]),
     (["head"], ["stem", "a"]), (["st*"], ["a"]), (["*"], [])],
)  # fmt: skip
def test_layers_that_are_kept_keep_what_they_give(keep: list[str], left: list[str]) -> None:
    assert list(seen(Residual(), IMAGE, keep=keep)) == left


@torch.library.custom_op("rarefy_tests::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """An operator that nobody knows."""
    return x.flip(1).clone()


def test_an_unknown_operator_keeps_what_it_reads_and_is_named_once() -> None:
    class Twisted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(twist(twist(self.a(x)))))

    model = Twisted()
    coupling = couple(model, IMAGE)
    assert [g.name for g in coupling.groups] == ["b"]
    assert coupling.barriers == {"twist": 1}  # behind the first nothing is left to keep
    halves_and_agrees(model, IMAGE)
    assert model.a.weight.shape[0] == 6


def test_groups_can_be_cut_again_and_again() -> None:
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    for sizes in ((6, 4), (3, 2), (2, 1), (1, 1)):
        coupling, _ = cut_half(model, ROW)
        assert (model[0].out_features, model[2].out_features) == sizes
    assert couple(model, ROW).groups == ()


def test_names_tell_groups_of_one_layer_apart() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes, self.a = [2, 4], nn.Linear(5, 6)
            self.b, self.c = nn.Linear(2, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, z = self.a(x).split(self.sizes, 1)
            return self.b(y) + self.c(z)

    coupling = couple(Forked(), ROW)
    assert [g.name for g in coupling.groups] == ["a", "a#1"]
    assert coupling.group("a#1").size == 4


def test_half_precision_and_double() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
        coupling = couple(model, ROW.to(dtype))
        outcome = cut(model, coupling, half(coupling), ROW.to(dtype))
        assert outcome.cut == {"0": 4}
        assert model[0].weight.dtype is dtype


class Ranked(nn.Module):
    """Sorts along the channels of its first layer, looks at none of the second's, and gives the third's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).sort(-1).values + self.b(x)
        return self.d(self.c(y).relu())


def test_kernels_are_no_reason_to_call_a_layer_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Conv2d(4, 2, 3)
    )
    assert couple(model, torch.randn(2, 3, 9, 9)).whole == {}


def test_layers_that_are_kept_whole_are_told_with_the_reason() -> None:
    found = couple(Ranked(), torch.randn(2, 5), keep=["c"])
    assert found.groups == ()
    assert found.whole == {
        "a.weight": "sort needs them all",
        "b.weight": "add needs them all",
        "c.weight": "the settings keep them",
    }
    assert "all channels of a.weight stay: sort needs them all" in found.barrier_lines
    assert couple(Ranked(), torch.randn(2, 5)).whole.keys() == {"a.weight", "b.weight"}
