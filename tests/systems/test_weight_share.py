# SPDX-License-Identifier: Apache-2.0
"""Row weight-share: the same hash in every process, K values, summed signed gradients."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.shadow import dress
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.quantize.hashed_weights import Hashed, HashWeights
from rarefy.step import Context

CODE = """
from rarefy.quantize.hashed_weights import coefficients, signed_buckets
print(signed_buckets(30, 40, 50, coefficients('7/fc')).tolist())
"""


def test_hash_is_the_same_in_another_process():
    runs = {
        subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_gradient_is_the_signed_sum_over_the_bucket():
    torch.manual_seed(0)
    layer, plain = torch.nn.Linear(12, 10), torch.nn.Linear(12, 10)
    form = Hashed((10, 12), 6, "0/layer")
    dress(layer, "weight", form)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    x = torch.randn(4, 12)
    layer(x).square().sum().backward()
    plain(x).square().sum().backward()
    signed = form.buckets().long()
    total = torch.zeros(12).index_add_(0, signed, plain.weight.grad.flatten())
    found = layer.parametrizations.weight.original.grad.flatten()
    assert torch.allclose(found, total[:6] - total[6:], atol=1e-3)
    assert len(torch.unique(layer.weight.abs())) <= 6


def test_parameter_count_is_k_in_every_layer(digits):
    model, task = digits
    context = Context(task, model, torch.device("cpu"), 0, {})
    found = HashWeights(ratio=0.125, epochs=0, layers="fc1").apply(model, context)
    assert found.fc1.parametrizations.weight.original.numel() == round(0.125 * 64 * 512)
    assert found.fc1.weight.shape == (64, 512)


class Hidden(nn.Module):
    """64-width-10."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.mark.parametrize("seed", [0, 1])
def test_hashed_beats_thin_at_equal_parameters(seed, digits_task):
    """A wide network with few shared values against a thin one; the difference is some ten points here."""
    torch.manual_seed(seed)
    wide = Hidden(200)
    context = Context(digits_task, wide, torch.device("cpu"), seed, {})
    hashed = HashWeights(ratio=1 / 32, epochs=12, rate=3e-3).apply(wide, context)
    trained = sum(p.numel() for p in hashed.parameters() if p.requires_grad)
    width = 1 + (trained - 10) // 75  # a little more than the hashed network has
    thin = Hidden(width)
    assert sum(p.numel() for p in thin.parameters()) >= trained
    fit(thin, digits_task, Training(12, 3e-3, "adam", weight_decay=0.0), seed=seed)
    assert evaluate(hashed, digits_task).value > evaluate(thin, digits_task).value + 0.02
