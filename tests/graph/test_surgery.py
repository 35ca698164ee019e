# SPDX-License-Identifier: Apache-2.0
"""A cut changes what it must, tells the truth about it, and can be taken back bit for bit."""

import copy
from typing import Any

import pytest
import torch
from tests.graph.cuts import Cuts, cut_half, half, halves_and_agrees
from tests.graph.random_networks import RandomNet
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.proof import cut
from rarefy.graph.surgery import apply, plan

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def photograph(model: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The very objects that every module holds."""
    own = ("_parameters", "_buffers", "_modules")
    return [
        ({k: v for k, v in vars(m).items() if k not in own}, dict(m._parameters), dict(m._buffers))
        for m in model.modules()
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    """Whether both hold the very same objects."""
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(x[k] is y[k] for k in x)
        for left, right in zip(a, b, strict=True)
        for x, y in zip(left, right, strict=True)
    )


def provable(seed: int) -> tuple[nn.Module, Coupling, Cuts]:
    """A random network with a cut."""
    model = RandomNet(seed).eval()
    coupling = couple(model, IMAGE)
    return model, coupling, half(coupling)


@pytest.mark.parametrize("seed", range(6))
def test_every_size_is_the_number_of_positions_that_stay(seed: int) -> None:
    model, coupling, cuts = provable(seed)
    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    chosen, removed, values, spared = plan(coupling, cuts)
    assert not spared
    apply(model, coupling, removed, values)
    for name, now in model.state_dict().items():
        expected = before[name]
        for axis, labels in enumerate(coupling.book.parameters[name]):
            stays = [i for i, label in enumerate(labels.tolist()) if not removed[label]]
            assert now.shape[axis] == len(stays)
            expected = expected[(slice(None),) * axis + (stays,)]
        assert torch.equal(now, expected)
    for group, units in chosen:
        for member in group.members:
            gone = sum(int(u) in units.tolist() for u in member.units)
            whole = before[member.name].shape[member.axis]
            assert model.state_dict()[member.name].shape[member.axis] <= whole - gone


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_can_be_taken_back(seed: int) -> None:
    model, coupling, cuts = provable(seed)
    before, text, y = photograph(model), repr(model), model(IMAGE)
    _, removed, values, _ = plan(coupling, cuts)
    undo = apply(model, coupling, removed, values)
    assert not same(photograph(model), before)
    undo.back()
    assert same(photograph(model), before)
    assert repr(model) == text
    assert torch.equal(model(IMAGE), y)


def shapes_told(module: nn.Module) -> list[tuple[Any, Any]]:
    """What a module says about its sizes, and what is true."""
    w = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(w, Tensor):
        first, second = (1, 0) if module.transposed else (0, 1)
        factors = {first: module.groups if module.transposed else 1,
                   second: 1 if module.transposed else module.groups}  # fmt: skip
        return [(module.out_channels, w.shape[first] * factors[first]),
                (module.in_channels, w.shape[second] * factors[second])]  # fmt: skip
    if isinstance(module, nn.Linear):
        return [(module.out_features, w.shape[0]), (module.in_features, w.shape[1])]
    if isinstance(module, nn.GroupNorm):
        return [(module.num_channels, w.shape[0])]
    if isinstance(module, nn.LayerNorm):
        return [(module.normalized_shape, tuple(w.shape))]
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return [(module.num_features, w.shape[0])]
    if isinstance(module, nn.Embedding):
        return [(module.embedding_dim, w.shape[1])]
    return []


@pytest.mark.parametrize("seed", range(12))
def test_attributes_tell_the_truth(seed: int) -> None:
    model, coupling, cuts = provable(seed)
    outcome = cut(model, coupling, cuts, IMAGE)
    assert outcome.cut
    told = [pair for module in model.modules() for pair in shapes_told(module)]
    assert told
    assert all(said == true for said, true in told)
    assert all(type(said) in (int, tuple) for said, _ in told)


def test_the_printed_network_is_that_of_one_built_small() -> None:
    def build(n: int, m: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, n, 3), nn.BatchNorm2d(n), nn.PReLU(n), nn.Conv2d(n, n, 3, groups=n),
            nn.GroupNorm(n, n), nn.ConvTranspose2d(n, m, 2), nn.InstanceNorm2d(m, affine=True),
            nn.Conv2d(m, 2, 1, bias=False),
        )  # fmt: skip

    model = build(8, 6).eval()
    coupling = couple(model, IMAGE)
    assert cut(model, coupling, half(coupling), IMAGE).cut == {"0": 4, "5": 3}
    assert repr(model) == repr(build(4, 3))
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert shapes == {k: v.shape for k, v in build(4, 3).state_dict().items()}


def test_what_was_frozen_stays_frozen_and_the_rest_trains() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].requires_grad_(False)
    x = torch.randn(3, 5)
    coupling = couple(model, x)
    cut(model, coupling, half(coupling), x)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False, True, True]
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in model.parameters())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    optimiser.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, False, True, True]


def test_one_parameter_under_two_names_stays_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight
            self.register_buffer("scale", torch.rand(6))
            self.a.register_buffer("scale", self.scale)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * self.a.scale + self.b(x) * self.scale)

    model, x = Two(), torch.randn(3, 5)
    coupling = couple(model, x)
    assert cut(model, coupling, half(coupling), x).cut == {"a": 3}
    assert model.a.weight is model.b.weight
    assert model.a.scale is model.scale
    assert model.a.weight.shape == (3, 5)
    assert model.b.out_features == model.a.out_features == 3
    assert len(list(model.parameters())) == 5


class Squared(nn.Module):
    """A size that is a product of two attributes, and one that no attribute can make right."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power, self.n = power, 3
        self.a, self.b, self.c, self.d = (
            nn.Linear(5, 9),
            nn.Linear(9, 2),
            nn.Linear(5, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).reshape(-1, self.n * self.n if self.power == 2 else 3 * self.n)
        return self.b(y) + self.d(self.c(x))


def test_a_size_that_cannot_be_made_right_spares_its_group_alone() -> None:
    x = torch.randn(3, 5)
    model = Squared(2)
    coupling = couple(model, x)
    cuts = [(coupling.group("a"), torch.arange(4)), (coupling.group("c"), torch.arange(3))]
    chosen, _, _, spared = plan(coupling, cuts)
    assert [g.name for g, _ in chosen] == ["c"]
    assert [g.name for g in spared] == ["a"]
    outcome = cut(model, coupling, cuts, x)
    assert outcome.cut == {"c": 3}
    assert outcome.spared == {"a": "a size that the code computes can't be made right"}
    assert model.n == 3


@pytest.mark.parametrize(("taken", "n"), [(3, 2), (6, 1)])
def test_an_attribute_is_solved_for(taken: int, n: int) -> None:
    model, x = Squared(1), torch.randn(3, 5)
    coupling = couple(model, x)
    outcome = cut(model, coupling, [(coupling.group("a"), torch.arange(taken))], x)
    assert outcome.cut == {"a": taken}
    assert model.n == n
    assert type(model.n) is int


def test_an_attribute_under_a_square() -> None:
    model, x = Squared(2), torch.randn(3, 5)
    coupling = couple(model, x)
    assert cut(model, coupling, [(coupling.group("a"), torch.arange(5))], x).cut == {"a": 5}
    assert model.n == 2
    assert model.a.weight.shape == (4, 5)


def test_nothing_is_cut_of_nothing() -> None:
    model, coupling, cuts = provable(0)
    before = photograph(model)
    none = [(g, units[:0]) for g, units in cuts]
    assert cut(model, coupling, none, IMAGE).cut == {}
    assert cut(model, coupling, [], IMAGE).cut == {}
    assert same(photograph(model), before)


def test_all_units_named_twice_are_all_units() -> None:
    model, coupling, _ = provable(0)
    group = coupling.groups[0]
    every = torch.arange(group.size).repeat(2)
    with pytest.raises(ModelError, match=f"all {group.size} units of '{group.name}' would go"):
        plan(coupling, [(group, every)])
    copied = copy.deepcopy(model)
    assert torch.equal(copied(IMAGE), model(IMAGE))


class Config:
    """What several networks are made from."""

    width = 8

    def __init__(self) -> None:
        self.width = 8


class Configured(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.a, self.b = config, nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, self.config.width))


def test_a_configuration_that_others_hold_is_not_changed() -> None:
    config = Config()
    first, second = Configured(config), Configured(config)
    cut_half(first, torch.randn(3, 5))
    assert (first.config.width, config.width) == (4, 8)
    assert second(torch.randn(3, 5)).shape == (3, 2)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_tell_their_sizes(kind: type[nn.RNNBase]) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r, self.b = nn.Linear(5, 6), kind(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.r(self.a(x))[0])

    model = Read()
    halves_and_agrees(model, torch.randn(7, 2, 5))
    assert (model.r.input_size, model.r.hidden_size) == (3, 2)


def test_cells_tell_their_sizes() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.b = nn.Linear(5, 6), nn.GRUCell(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.c(self.a(x)))

    model = Read()
    halves_and_agrees(model, torch.randn(3, 5))
    assert (model.c.input_size, model.c.hidden_size) == (3, 2)


def test_weight_norm_loses_filters() -> None:
    first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 1))
    outcome = cut_half(nn.Sequential(first, nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 6, 6))[1]
    assert list(outcome.cut.values()) == [3]
