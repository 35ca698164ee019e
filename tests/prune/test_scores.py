# SPDX-License-Identifier: Apache-2.0
"""Criteria against hand-made and closed forms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rarefy.loops.gradients import batch_gradients
from rarefy.prune.scores import (
    BY_GRADIENT,
    fisher,
    gradient,
    magnitude,
    mean_scores,
    sensitivity,
    taylor,
)
from rarefy.select import select


def test_by_hand() -> None:
    w, g = torch.tensor([-2.0, 0.5]), torch.tensor([0.25, -3.0])
    assert magnitude(w).tolist() == [2.0, 0.5]
    assert gradient(w, g).tolist() == [0.25, 3.0]
    assert sensitivity(w, g).tolist() == [0.5, 1.5]
    assert taylor(w, g).tolist() == [0.25, 2.25]
    assert fisher(w, g.square()).tolist() == [0.5 * 0.0625 * 4, 0.5 * 9 * 0.25]


def test_opposite_batches_do_not_cancel() -> None:
    w = [torch.ones(1)]
    batches = [[torch.tensor([3.0])], [torch.tensor([-1.0])]]
    assert float(mean_scores(gradient, w, batches)[0]) == 2.0
    assert float(mean_scores(taylor, w, batches)[0]) == 5.0


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_order_of_batches_does_not_matter(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    data = [(torch.randn(4, 5), torch.arange(4) % 3) for _ in range(6)]
    layers = select(model)
    weights = [layer.weight for layer in layers]
    scores = [
        mean_scores(BY_GRADIENT[name], weights, batch_gradients(model, d, layers, F.cross_entropy))
        for d in (data, data[::-1])
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-12, atol=0)
    assert scores[0][0].shape == (3, 5)


def test_sensitivity_is_exact_for_a_loss_linear_in_the_weights() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 1), torch.randn(8, 6)

    def loss(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return outputs.mean()

    layers = select(model)
    slopes = batch_gradients(model, [(x, x)], layers, loss)
    scores = mean_scores(sensitivity, [model.weight], slopes)[0][0]
    full = loss(model(x), x)
    for j in range(6):
        kept = model.weight.detach().clone()
        kept[0, j] = 0
        change = (full - loss(F.linear(x, kept, model.bias), x)).abs()
        torch.testing.assert_close(scores[j].float(), change, rtol=1e-4, atol=1e-6)
