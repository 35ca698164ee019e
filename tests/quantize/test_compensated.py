# SPDX-License-Identifier: Apache-2.0
"""Compensated codes: nearer in what the layer computes than nearest rounding, and never beyond 16 bits."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.pairs import overflows
from rarefy.loops.matrix import rows_of
from rarefy.loops.statistics import SecondMoment
from rarefy.quantize.compensated import compensate, compensated_codes, moments_of_layers
from rarefy.quantize.gptq import gptq_codes
from rarefy.quantize.int8_weights import Codes, coded_weight
from rarefy.select import Layer


def correlated(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return (x + 2 * x.mean(1, keepdim=True) + 1).relu()


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(48, 16),
        nn.Conv2d(6, 8, 3),
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1, groups=2),
    ],
    ids=["linear", "conv", "odd", "depthwise", "grouped"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_results_are_nearer_and_pairs_are_safe(module: nn.Module, bits: int) -> None:
    shares = []
    for seed in range(1, 9):
        torch.manual_seed(seed)
        nn.init.normal_(module.weight)
        linear = isinstance(module, nn.Linear)
        x = correlated(256, 48) if linear else correlated(8, module.in_channels, 9, 9)
        shares.append(share_of_error(module, x, bits))
    assert max(shares) <= 1.0001  # never further away
    assert sum(shares) / len(shares) < 0.95


def share_of_error(module: nn.Module, x: Tensor, bits: int) -> float:
    """The error of a layer's results that compensation leaves of that of the nearest codes."""
    layer = Layer("it", module)
    nearest = coded_weight([layer], {"it": 0.01}, bits)
    moment = SecondMoment()
    moment.update(rows_of(module, x))
    found = compensate(layer, nearest, moment.mean(), paired=bits == 8)
    exact = module(x).detach()

    def error(codes: Codes) -> float:
        with torch.no_grad():
            module.weight.copy_(codes.dequantised())
            return float((module(x) - exact).norm())

    assert found.codes.shape == module.weight.shape
    assert int(found.codes.int().abs().max()) <= 2 ** (bits - 1) - 1
    assert not overflows(found.codes, groups=getattr(module, "groups", 1))
    return error(found) / error(nearest)


def test_without_pairs_it_is_gptq() -> None:
    torch.manual_seed(0)
    W, x = torch.randn(1, 6, 80), correlated(300, 80)
    H, scale = (x.T @ x / 300).unsqueeze(0), W.abs().amax(-1) / 7
    from rarefy.forms.grid import Grid

    ours = compensated_codes(W, H, scale, 7)
    theirs = gptq_codes(W, H, scale, Grid(4, narrow=True), 0.01)
    assert (
        float((ours != theirs).float().mean()) < 0.02
    )  # sums in float32 fall the other way now and then


def test_moments_come_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(20, 5)
    layers = [Layer(name, model.get_submodule(name)) for name in ("0", "2")]
    seen = {layer.name: H for layer, H in moments_of_layers(model, layers, [x[:10], x[10:]])}
    assert seen["0"].count == seen["2"].count == 20
    found = {name: H.mean() for name, H in seen.items()}
    assert torch.allclose(found["0"], x.T @ x / 20, atol=1e-5)
    y = model[0](x).relu().detach()
    assert torch.allclose(found["2"], y.T @ y / 20, atol=1e-5)
