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


def test_a_layer_never_has_more_values_whatever_the_optimiser_does(digits):
    model, task = digits
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    ShareWeights(levels=8, epochs=0).apply(model, context)
    layers = [model.conv1, model.conv2, model.fc1, model.fc2]
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-2)
    for _, (x, y) in zip(range(8), task.train, strict=False):
        optimiser.zero_grad()
        task.loss(model(x), y).backward()
        before = model.fc1.weight.detach().clone()
        optimiser.step()
        assert not torch.equal(model.fc1.weight, before)
        assert all(len(torch.unique(layer.weight)) <= 8 for layer in layers)


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
