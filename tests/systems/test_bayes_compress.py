# SPDX-License-Identifier: Apache-2.0
"""Row bayes-compress: divergences against sampling, variances hide the rounding, noisy units are empty."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from rarefy.measure.quality import evaluate
from rarefy.quantize.bayesian import (
    GroupNoise,
    posterior_variance,
    scale_divergence,
    step_of,
    weight_divergence,
)
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def test_divergence_of_weights_is_exact() -> None:
    mu, log_variance = torch.randn(20), torch.randn(20)
    exact = kl_divergence(Normal(mu, torch.exp(0.5 * log_variance)), Normal(0.0, 1.0))
    assert torch.allclose(weight_divergence(mu, log_variance), exact, atol=1e-6)


@pytest.mark.parametrize("log_alpha", [-6.0, -3.0, -1.0, 0.0, 2.0])
def test_divergence_of_scales_follows_sampling(log_alpha: float) -> None:
    """KL = E_q[log |z|] - 1/2 log α + constant, which vanishes for large α."""
    z = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)).double()

    def sampled(value: float) -> float:
        drawn = 1 + math.exp(0.5 * value) * z
        return float(drawn.abs().log().mean()) - 0.5 * value

    found = float(scale_divergence(torch.tensor(log_alpha)))
    assert found == pytest.approx(sampled(log_alpha) - sampled(30.0), abs=0.02)


def test_variance_of_a_product_is_that_of_samples() -> None:
    torch.manual_seed(0)
    mu, log_v, z, log_z = (torch.tensor(x) for x in (0.7, -2.0, 1.3, -1.5))
    draws = (mu + torch.exp(0.5 * log_v) * torch.randn(400_000)) * (
        z + torch.exp(0.5 * log_z) * torch.randn(400_000)
    )
    assert float(draws.var()) == pytest.approx(
        float(posterior_variance(mu, log_v, z, log_z)), rel=0.02
    )


def test_the_form_draws_in_training_only_and_gives_the_mean() -> None:
    form, v = GroupNoise((4, 3), 0), torch.randn(4, 3)
    with torch.no_grad():
        form.z.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
    assert torch.equal(form.eval()(v), v * form.z.view(4, 1))
    assert not torch.equal(form.train()(v), form(v))
    assert torch.allclose(form.eval()(form.right_inverse(v)), v)


def test_half_a_step_hides_in_the_noise() -> None:
    for deviation in (0.003, 0.1, 0.7):
        step = 2.0 ** step_of(torch.full((9,), deviation**2), 1.0)
        assert step / 2 <= deviation or step <= 2 / 127
        assert step > deviation / 2 or step >= 1 / 127


def test_the_recipe_empties_units_and_saves_bits(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    (step,) = load_recipe("bayes-compress").steps
    found = step.apply(model, context)
    assert evaluate(found, task).value > before - 0.04
    kept = context.record["units"]
    assert sum(k for k, _ in kept.values()) < sum(n for _, n in kept.values())
    assert all(2 <= bits <= 8 for bits in context.record["bits"].values())
    for layer in select(found):
        w = layer.weight.detach().flatten(1)
        alive, units = kept[layer.name]
        assert len(w) == units
        assert int((w != 0).any(1).sum()) <= alive
        assert len(w.unique()) <= 2 ** context.record["bits"][layer.name]
