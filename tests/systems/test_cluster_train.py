# SPDX-License-Identifier: Apache-2.0
"""Row cluster-train: summed gradients, few values at all times, indices that stay."""

import copy

import torch

from rarefy.forms.codebook import Codebook
from rarefy.forms.shadow import dress
from rarefy.measure.quality import evaluate
from rarefy.quantize.share_weights import ShareWeights
from rarefy.step import Context


def test_gradient_of_a_level_is_the_sum_over_its_weights():
    torch.manual_seed(0)
    layer = torch.nn.Linear(9, 7)
    indices = torch.randint(0, 4, (7, 9))
    plain = torch.nn.Linear(9, 7)
    dress(layer, "weight", Codebook(indices, 4))
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    x = torch.randn(5, 9)
    layer(x).square().sum().backward()
    plain(x).square().sum().backward()
    expected = torch.zeros(4).index_add_(0, indices.flatten(), plain.weight.grad.flatten())
    assert torch.allclose(layer.parametrizations.weight.original.grad, expected, atol=1e-4)


def test_sixteen_values_lose_little_and_keep_their_places(digits_network, digits_task):
    context = Context(digits_task, digits_network, torch.device("cpu"), 0, {})
    plain = ShareWeights(bits=4, epochs=0).apply(copy.deepcopy(digits_network), context)
    places = plain.fc1.parametrizations.weight[0].indices
    found = ShareWeights(bits=4, epochs=2).apply(copy.deepcopy(digits_network), context)
    assert torch.equal(found.fc1.parametrizations.weight[0].indices, places)
    assert all(
        len(torch.unique(m.weight)) <= 16 for m in (found.conv1, found.conv2, found.fc1, found.fc2)
    )
    assert evaluate(found, digits_task).value >= evaluate(digits_network, digits_task).value - 0.02
