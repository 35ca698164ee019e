# SPDX-License-Identifier: Apache-2.0
"""Quantisers in the making: what they stand for, what freezes them, what follows the data."""

import pytest
import torch

from rarefy.forms.grid import Grid
from rarefy.forms.operators import fake_quantize
from rarefy.quantize.training_quantizers import (
    LearnedClip,
    LearnedRange,
    LearnedStep,
    MovingRange,
    TrainedQuantizer,
)

UNSIGNED = Grid(4, signed=False, symmetric=False)
QUANTIZERS = {
    "step": lambda: LearnedStep(torch.tensor(0.2), torch.tensor(3, dtype=torch.uint8), UNSIGNED),
    "clip": lambda: LearnedClip(torch.tensor(2.5), UNSIGNED),
    "range": lambda: LearnedRange(torch.tensor(-0.5), torch.tensor(2.0), UNSIGNED),
    "moving": lambda: MovingRange(torch.tensor(-0.5), torch.tensor(2.0), UNSIGNED),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantiser_rounds_to_the_grid_that_it_names(kind: str) -> None:
    quantizer: TrainedQuantizer = QUANTIZERS[kind]().eval()
    x = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)) * 2
    scale, zero_point = quantizer.affine()
    assert torch.allclose(quantizer(x), fake_quantize(x, scale, zero_point, -1, 0, 15), atol=1e-6)
    quantizer.waiting = True
    assert torch.equal(quantizer(x), x)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_frozen_quantiser_learns_nothing(kind: str) -> None:
    quantizer: TrainedQuantizer = QUANTIZERS[kind]().train()
    x = torch.randn(8, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quantizer.frozen = True
    before = [t.clone() for t in quantizer.state_dict().values()]
    quantizer(x * 9).sum().backward()
    assert all(p.grad is None for p in quantizer.parameters())
    after = quantizer.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    quantizer.frozen = False
    quantizer(x * 9).sum().backward()
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert any(changed) or all(p.grad is not None for p in quantizer.parameters())


def test_moving_ends_forget_the_past() -> None:
    quantizer = MovingRange(torch.tensor(0.0), torch.tensor(1.0), UNSIGNED, momentum=0.9).train()
    for _ in range(3):
        quantizer(torch.tensor([-1.0, 2.0]))
    assert float(quantizer.low) == pytest.approx(-(1 - 0.9**3))
    assert float(quantizer.high) == pytest.approx(2 - 0.9**3)


def test_what_the_optimiser_spoils_is_made_valid() -> None:
    step, ends = QUANTIZERS["step"](), QUANTIZERS["range"]()
    with torch.no_grad():
        step.scale.fill_(-1)
        ends.low.fill_(0.3)
        ends.high.fill_(-0.2)
    step.keep_valid()
    ends.keep_valid()
    assert float(step.affine()[0]) > 0
    assert ends.low.item() <= 0 <= ends.high.item()
    assert float(ends.affine()[0]) > 0
    assert QUANTIZERS["clip"]().cost().item() == 6.25
