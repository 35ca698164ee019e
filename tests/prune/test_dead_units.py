# SPDX-License-Identifier: Apache-2.0
"""Dead units: what is taken out, and that the answers stay."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.mask import mask_of, set_mask
from rarefy.prune.dead_units import Removed, remove_dead_units
from rarefy.select import select


class Network(nn.Module):
    """Convolutions with a residual connection, batch norm and a linear head."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=padding)
        self.conv2 = nn.Conv2d(6, 8, 3, groups=2, padding=padding)
        self.norm = nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 8, 1)
        self.fc1 = nn.Linear(8, 10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv2(self.conv1(x).relu())).relu()
        x = (x + self.side(x)).relu().mean((2, 3))
        return self.fc2(self.fc1(x).relu())


def network(padding: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = Network(padding)
    nn.init.normal_(model.norm.running_mean)  # type: ignore[arg-type]
    return model.eval()


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 1, 9, 9, generator=generator) for _ in range(2)]


def cut(module: nn.Module, outputs: list[int] = [], inputs: list[int] = []) -> None:  # noqa: B006
    """Prunes all weights into some units and out of others."""
    keep = mask_of(module).clone()
    keep[outputs] = False
    keep[:, inputs] = False
    set_mask(module, keep)


def test_unheard_units_leave_answers_bit_equal() -> None:
    model, x = network(), images()
    cut(model.fc2, inputs=[1, 4])  # type: ignore[arg-type]
    before = [model(one) for one in x]
    assert remove_dead_units(model, select(model), x) == Removed(constant=0, unheard=2)
    assert not mask_of(model.fc1)[[1, 4]].any()  # type: ignore[arg-type]
    assert not model.fc1.bias[[1, 4]].any()  # type: ignore[index]
    assert mask_of(model.fc1).sum() == 8 * 8  # type: ignore[arg-type]
    assert all(torch.equal(model(one), y) for one, y in zip(x, before, strict=True))


def test_a_constant_of_zero_leaves_answers_bit_equal() -> None:
    model, x = network(padding=1), images()
    cut(model.conv1, outputs=[2])  # type: ignore[arg-type]
    with torch.no_grad():
        model.conv1.bias[2] = -0.5  # relu makes it 0  # type: ignore[index]
    before = [model(one) for one in x]
    assert remove_dead_units(model, select(model), x) == Removed(constant=1, unheard=1)
    keep = mask_of(model.conv2)  # type: ignore[arg-type]
    assert not keep[:4, 2].any()  # the group that reads channel 2
    assert keep[4:].all()
    assert model.conv1.bias[2].item() == 0  # type: ignore[index]
    assert all(torch.equal(model(one), y) for one, y in zip(x, before, strict=True))


def test_a_constant_moves_into_the_bias() -> None:
    model, x = network(), images()
    cut(model.conv1, outputs=[5])  # type: ignore[arg-type]
    cut(model.fc1, outputs=[0, 3])  # type: ignore[arg-type]
    with torch.no_grad():
        model.conv1.bias[5] = 0.7  # type: ignore[index]
        model.fc1.bias[0] = 0.3  # type: ignore[index]
        model.fc1.bias[3] = -0.3  # type: ignore[index]
    biases = model.conv2.bias.clone(), model.fc2.bias.clone()  # type: ignore[operator, union-attr]
    before = [model(one) for one in x]
    assert remove_dead_units(model, select(model), x) == Removed(constant=3, unheard=3)
    moved = 0.7 * model.conv2.parametrizations.weight.original[4:, 2].sum((1, 2))  # type: ignore[index, union-attr]
    torch.testing.assert_close(model.conv2.bias[4:] - biases[0][4:], moved)  # type: ignore[index]
    assert torch.equal(model.conv2.bias[:4], biases[0][:4])  # type: ignore[index]
    torch.testing.assert_close(
        model.fc2.bias - biases[1],  # type: ignore[operator]
        0.3 * model.fc2.parametrizations.weight.original[:, 0],  # type: ignore[index, union-attr]
    )
    for one, y in zip(x, before, strict=True):
        torch.testing.assert_close(model(one), y, rtol=1e-5, atol=1e-6)


def test_a_constant_behind_padding_stays() -> None:
    """At the border padding has its own zeros, so no single bias can take the constant over."""
    model, x = network(padding=1), images()
    cut(model.conv1, outputs=[5])  # type: ignore[arg-type]
    with torch.no_grad():
        model.conv1.bias[5] = 0.7  # type: ignore[index]
    before = [model(one) for one in x]
    assert remove_dead_units(model, select(model), x) == Removed()
    assert mask_of(model.conv2).all()  # type: ignore[arg-type]
    assert all(torch.equal(model(one), y) for one, y in zip(x, before, strict=True))


def test_a_residual_connection_keeps_units_alive() -> None:
    """Channel 3 of conv2 is not read by `side`, but goes around it."""
    model, x = network(), images()
    cut(model.side, inputs=[3])  # type: ignore[arg-type]
    assert remove_dead_units(model, select(model), x) == Removed()
    cut(model.side, outputs=[3])  # type: ignore[arg-type]
    assert remove_dead_units(model, select(model), x) == Removed()  # still heard around `side`
    cut(model.fc1, inputs=[3])  # type: ignore[arg-type]
    before = [model(one) for one in x]
    assert remove_dead_units(model, select(model), x) == Removed(unheard=2)  # conv2's and side's
    assert not mask_of(model.conv2)[3].any()  # type: ignore[arg-type]
    assert all(torch.equal(model(one), y) for one, y in zip(x, before, strict=True))


def test_a_relu_that_is_silent_on_this_data_is_no_dead_unit() -> None:
    model, x = network(), images()
    with torch.no_grad():
        model.fc1.bias[2] = -1e3  # type: ignore[index]
    assert remove_dead_units(model, select(model), x) == Removed()


def test_death_spreads_through_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    cut(model[2], inputs=[0])  # unit 0 of the first layer is unheard
    cut(model[2], outputs=[1])  # unit 1 of the second is constant
    x = [torch.randn(6, 4)]
    before = model(x[0])
    removed = remove_dead_units(model, select(model), x)
    assert removed.unheard == 2
    assert removed.constant == 1
    torch.testing.assert_close(model(x[0]), before)
    zeros = [int((layer.weight == 0).sum()) for layer in select(model)]
    assert zeros == [4, 5 + 5 - 1, 2]
    assert remove_dead_units(model, select(model), x) == Removed()


def test_a_comparison_that_swallows_nan_is_found_out() -> None:
    class Swallows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc1(x)
            return self.fc2(torch.where(y > 0, y, torch.zeros_like(y)))  # NaN > 0 is False

    torch.manual_seed(0)
    model, x = Swallows(), [torch.randn(6, 4)]
    before = model(x[0])
    assert remove_dead_units(model, select(model), x) == Removed()
    assert torch.equal(model(x[0]), before)
    assert all(mask_of(layer.module).all() for layer in select(model))


@pytest.mark.parametrize("kind", [nn.ConvTranspose2d, nn.Conv2d])
def test_grouped_and_transposed_layers(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        kind(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Flatten(1)
    )
    keep = mask_of(model[2]).clone()
    keep[4] = False  # channel 4 is unheard
    set_mask(model[2], keep)
    x = [torch.randn(2, 4, 5, 5)]
    before = model(x[0])
    assert remove_dead_units(model, select(model), x) == Removed(unheard=1)
    assert torch.equal(model(x[0]), before)
    zeros = (select(model)[0].weight == 0).sum()
    assert int(zeros) == 2 * 9  # two inputs of the group, nine taps
