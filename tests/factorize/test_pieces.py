# SPDX-License-Identifier: Apache-2.0
"""Chains are exactly the layers with the composed kernels, whatever the geometry, and cost what is said."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.factorize.decompositions import DECOMPOSITIONS, decomposition_for
from rarefy.factorize.kernel import kernel_of, layer_kind, shape_of, weight_from
from rarefy.factorize.pieces import macs_of, whole
from rarefy.measure.counts import macs
from rarefy.select import Layer

torch.manual_seed(0)  # sweeps come as near as they do whatever ran before
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 20), (5, 3, 12)),
    "wide linear": (nn.Linear(96, 64, bias=False), (5, 96)),
    "1-d": (nn.Conv1d(6, 8, 5, stride=2, padding=3, dilation=2), (2, 6, 30)),
    "2-d groups": (
        nn.Conv2d(6, 9, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=3),
        (2, 6, 11, 17),
    ),
    "same": (nn.Conv2d(6, 8, (3, 4), padding="same", padding_mode="reflect"), (2, 6, 9, 9)),
    "valid": (nn.Conv2d(6, 8, 3, padding="valid", stride=2, bias=False), (2, 6, 9, 9)),
    "circular": (
        nn.Conv2d(6, 8, 3, padding=(1, 2), stride=2, padding_mode="circular"),
        (2, 6, 9, 9),
    ),
    "1 x 1": (nn.Conv2d(6, 8, 1, stride=2), (2, 6, 9, 9)),
    "3-d": (nn.Conv3d(4, 6, (3, 2, 3), stride=(1, 2, 2), padding=1, groups=2), (2, 4, 7, 8, 9)),
    "flat 3-d": (nn.Conv3d(4, 6, (1, 3, 3), stride=(2, 1, 1)), (1, 4, 5, 6, 7)),
    "transposed 1-d": (nn.ConvTranspose1d(6, 8, 4, stride=3, output_padding=1), (2, 6, 7)),
    "transposed 2-d": (
        nn.ConvTranspose2d(6, 9, (3, 4), (2, 3), (1, 0), (1, 2), groups=3, dilation=(1, 2)),
        (2, 6, 5, 7),
    ),
    "transposed 3-d": (nn.ConvTranspose3d(4, 6, (2, 3, 3), stride=2, groups=2), (1, 4, 3, 4, 5)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 6, 6)),
    "unbatched": (nn.Conv2d(3, 4, 3), (3, 6, 6)),
    "embedding": (nn.Embedding(30, 12, padding_idx=3), (4, 7)),
    "bag": (nn.EmbeddingBag(30, 12, mode="mean"), (4, 7)),
}
LOOSE = {"cp", "separable", "spatial-alternating"}  # components of full rank may nearly cancel


def input_for(module: nn.Module, size: tuple[int, ...]) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if layer_kind(module) == "embedding":
        return torch.randint(0, 30, size, generator=draw)
    return torch.randn(*size, generator=draw)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
@pytest.mark.parametrize("which", LAYERS)
@torch.no_grad()
def test_a_chain_is_its_composed_kernel(which: str, name: str) -> None:
    module, size = LAYERS[which]
    x = input_for(module, size)
    kernel = kernel_of(Layer("", module))
    assert torch.equal(weight_from(module, kernel), module.weight)  # type: ignore[arg-type]
    shape = shape_of(kernel)
    _, kind = decomposition_for(name, shape, isinstance(module, nn.Linear))
    made = kind(kernel.double(), sweeps=30)
    before = module(x)
    for share in (1.0, 0.5):
        ranks = made.at(share)
        weights = made.weights(ranks)
        pieces = made.pieces(ranks)
        for piece, w in zip(pieces, weights, strict=True):
            assert piece.size == tuple(w.shape)
            assert piece.parameters == w.numel()
        dense = made.dense(ranks, weights)
        error = float((dense - kernel).norm() / kernel.norm())
        assert error < 1e-5 if share == 1.0 else error < 1, "the full rank is exact"
        chain = made.build(module, ranks, weights, getattr(module, "bias", None))
        kept = module.weight.clone()  # type: ignore[operator]
        module.weight.copy_(weight_from(module, dense))  # type: ignore[operator]
        wanted = module(x)
        module.weight.copy_(kept)  # type: ignore[operator]
        found = chain(x)
        assert found.shape == before.shape
        off = float((found - wanted).norm() / wanted.norm())
        assert off < (1e-3 if name in LOOSE else 1e-5)
        if layer_kind(module) != "embedding" and which != "unbatched":
            call = [(x[:1].shape, before[:1].shape)]
            assert macs(chain, x) == macs_of(module, pieces, call)
            assert macs(module, x) == macs_of(module, whole(shape), call)


def test_a_padded_embedding_keeps_its_padding() -> None:
    module, _ = LAYERS["embedding"]
    made = decomposition_for("svd", shape_of(kernel_of(Layer("", module))), False)[1]
    found = made(kernel_of(Layer("", module)))
    chain = found.build(module, (4,), found.weights((4,)), None)
    assert chain[0].padding_idx == 3
    chain(torch.tensor([[3, 3, 1]])).sum().backward()
    assert not chain[0].weight.grad[3].any()
    assert chain[0].weight.grad[1].any()


def test_what_was_frozen_stays_frozen() -> None:
    module = nn.Conv2d(4, 4, 3).requires_grad_(False).double().eval()
    found = DECOMPOSITIONS["spatial"](kernel_of(Layer("", module)))
    chain = found.build(module, (2,), found.weights((2,)), module.bias)
    assert not any(p.requires_grad for p in chain.parameters())
    assert {p.dtype for p in chain.parameters()} == {torch.float64}
    assert not chain.training
