# SPDX-License-Identifier: Apache-2.0
"""Row sws: the mixture's likelihood, merging, few values in the whole network, little lost."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from rarefy.measure.quality import evaluate
from rarefy.quantize.soft_weight_sharing import Mixture, SoftWeightSharing, merged
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.store.coding import encode_tensor
from rarefy.task import Task


def test_likelihood_is_that_of_a_mixture_of_normals() -> None:
    torch.manual_seed(0)
    mixture, w = Mixture(5, 1.0, 0.9).double(), torch.randn(50).double()
    with torch.no_grad():
        mixture.variances += torch.randn(6).double() * 0.05
        mixture.shares += torch.randn(5)
    shares = Categorical(probs=mixture.log_shares().exp())
    normals = Normal(mixture.centres(), torch.exp(-0.5 * mixture.log_precisions()))
    direct = MixtureSameFamily(shares, normals).log_prob(w)
    assert torch.allclose(mixture.log_joint(w).logsumexp(1), direct)
    assert float(mixture.log_shares().exp().sum().detach()) == pytest.approx(1)
    assert float(mixture.log_shares()[0].exp().detach()) == pytest.approx(0.9)


def test_components_on_top_of_each_other_are_one() -> None:
    centres = torch.tensor([0.0, 0.001, 0.5, 0.501, 0.9])
    into = merged(centres, torch.full((5,), 1e4), torch.tensor([0.9, 0.01, 0.02, 0.04, 0.03]), 1.0)
    assert into.tolist() == [0, 0, 3, 3, 4]
    apart = merged(centres, torch.full((5,), 1e8), torch.ones(5), 1.0)
    assert apart.tolist() == [0, 1, 2, 3, 4]


def test_the_recipe_leaves_few_values_in_the_whole_network(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    (step,) = load_recipe("sws").steps
    assert isinstance(step, SoftWeightSharing)
    before = evaluate(model, task).value
    plain = sum(x.weight.numel() * 4 for x in select(model))
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    found = step.apply(copy.deepcopy(model), context)
    values = torch.cat([x.weight.detach().flatten() for x in select(found)]).unique()
    assert (values != 0).sum() <= 16
    assert context.record["distinct_values"] == (values != 0).sum() + 1
    assert not hasattr(found, "mixture")
    assert sum(len(encode_tensor(x.weight.detach().numpy())) for x in select(found)) < plain / 40
    assert evaluate(found, task).value >= before - 0.04
    losses = [row["loss"] for row in context.record["training"]]
    assert losses[-1] < losses[0]
