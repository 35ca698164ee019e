# SPDX-License-Identifier: Apache-2.0
"""Hashed weights: a hash that is even and the same everywhere, and values that are all that is kept."""

import copy

import pytest
import torch
from torch import nn

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.shadow import bake, dress
from rarefy.quantize.hashed_weights import (
    PRIME,
    Hashed,
    HashWeights,
    coefficients,
    signed_buckets,
)
from rarefy.step import Context


def test_the_hash_is_its_polynomial() -> None:
    c = [int(v) for v in coefficients("a layer")]
    found = signed_buckets(5, 7, 11, coefficients("a layer"))
    for i in range(5):
        for j in range(7):
            x = (c[0] * i + j) % PRIME
            value = (((c[1] * x + c[2]) * x + c[3]) * x + c[4]) % PRIME
            assert int(found[i, j]) == value % 22


def test_buckets_and_signs_are_even() -> None:
    K, n = 100, 200 * 300
    found = signed_buckets(200, 300, K, coefficients("even")).flatten()
    counts = torch.bincount(found, minlength=2 * K).double()
    expected = n / (2 * K)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - (2 * K - 1)) < 5 * (2 * (2 * K - 1)) ** 0.5
    assert not torch.equal(found, signed_buckets(200, 300, K, coefficients("odd")).flatten())


def test_every_weight_is_a_signed_value_of_its_bucket() -> None:
    form = Hashed((6, 5, 2), 9, "s")
    theta = torch.randn(1, 9)
    h = signed_buckets(6, 10, 9, form.function)
    expected = torch.where(h < 9, theta[0, h % 9], -theta[0, h % 9]).view(6, 5, 2)
    assert torch.equal(form(theta), expected)


def test_projection_is_the_least_squares_fit() -> None:
    form, w = Hashed((8, 12), 10, "p"), torch.randn(8, 12)
    design = torch.stack([form(row.unsqueeze(0)).flatten() for row in torch.eye(10)], 1)
    best = torch.linalg.lstsq(design.double(), w.flatten().double()[:, None]).solution.flatten()
    assert torch.allclose(form.right_inverse(w).double().flatten(), best, atol=1e-5)


def test_only_shared_values_are_stored_and_the_file_shrinks_with_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
    x = torch.randn(3, 64)
    dense = len(export_onnx(model, x).SerializeToString())
    for i in (0, 2):
        shape = tuple(model[i].weight.shape)
        dress(model[i], "weight", Hashed(shape, model[i].weight.numel() // 8, f"{i}"))
    bake(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2400 + 375 + 310
    program = export_onnx(model, x)
    assert len(program.SerializeToString()) < 0.3 * dense
    assert torch.allclose(OnnxRuntime(program)(x), model(x), atol=1e-5)


@pytest.mark.parametrize("start", ["random", "projected"])
def test_a_step_keeps_the_spread_of_the_weights(start, digits) -> None:
    model, task = digits
    spread = {n: float(model.get_submodule(n).weight.std()) for n in ("fc1", "fc2")}
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), seed=3)
    hashed = HashWeights(ratio=0.1, start=start, epochs=0).apply(model, context)
    assert context.record["shared_values"] == {"fc1": 3277, "fc2": 64}
    for name, std in spread.items():
        theta = hashed.get_submodule(name).parametrizations.weight.original
        assert float(theta.std()) == pytest.approx(std, rel=1e-4)
    copied = copy.deepcopy(hashed)
    assert torch.equal(copied(task.example), hashed(task.example))
    assert HashWeights().needs == {"train"}
    assert HashWeights(epochs=0).needs == frozenset()
