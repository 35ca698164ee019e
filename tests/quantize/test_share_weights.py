# SPDX-License-Identifier: Apache-2.0
"""Shared weights: how many values a layer has, which never move, and what a step may ask for."""

import copy

import pytest
import torch
from torch import nn

from rarefy.errors import ModelError, RecipeError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.codebook import Codebook
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import bake, find
from rarefy.prune.prune_weights import PruneWeights
from rarefy.quantize.share_weights import ShareWeights, share
from rarefy.step import Context
from rarefy.task import Task


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 20), nn.Linear(20, 10))


def context_of(task: Task, model: nn.Module) -> Context:
    return Context(task, copy.deepcopy(model), torch.device("cpu"))


def values(layer: nn.Module) -> int:
    return int(layer.weight.unique().numel())


@pytest.mark.parametrize("zeros", [0, 40])
@pytest.mark.parametrize("levels", [2, 3, 16])
def test_zeros_are_kept_and_counted(zeros, levels) -> None:
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    w.flatten()[:zeros] = 0
    form = share(w, levels, "exact")
    assert form is not None
    shared = form(form.right_inverse(w))
    assert torch.equal(shared == 0, w == 0)
    assert shared.unique().numel() == levels
    for value in shared.unique():
        assert torch.isclose(w[shared == value].mean(), value, atol=1e-6)


def test_a_layer_of_zeros_has_nothing_to_share(digits_task) -> None:
    assert share(torch.zeros(3, 3), 4) is None
    model = small()
    set_mask(model[2], torch.zeros_like(model[2].weight, dtype=torch.bool))
    ShareWeights(epochs=0).apply(model, context_of(digits_task, model))
    assert not bake(model)[2].weight.any()


def test_the_default_is_the_papers(digits_task) -> None:
    model = small()
    model.append(nn.Linear(10, 400))
    context = context_of(digits_task, model)
    ShareWeights(epochs=0, initialisation="exact").apply(model, context)
    # 72 weights of the convolution fit into 256 levels
    found = context.record["distinct_values"]
    assert found == {"0": 72, "2": 32, "3": 32, "4": 32}
    assert [values(model[i]) for i in (0, 2, 3, 4)] == [72, 32, 32, 32]


def test_the_last_matching_pattern_counts_and_others_stay(digits_task) -> None:
    model = small()
    untouched = model[0].weight.detach().clone()
    step = ShareWeights(bits={"type:Linear": 4, "last": 2}, epochs=0, initialisation="exact")
    step.apply(model, context_of(digits_task, model))
    assert (values(model[2]), values(model[3])) == (16, 4)
    assert torch.equal(model[0].weight, untouched)


def test_tied_weights_stay_tied(digits_task) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    ShareWeights(levels=8, epochs=1).apply(model, context_of(digits_task, model))
    first, second = (model[i].parametrizations.weight.original for i in (1, 3))
    assert first is second
    assert torch.equal(model[1].weight, model[3].weight)
    assert values(model[3]) <= 8


def test_training_moves_values_but_no_weight_to_another(digits) -> None:
    model, task = digits
    set_mask(model.fc1, model.fc1.weight.abs() > 0.02)
    pruned = model.fc1.weight == 0
    context = context_of(task, model)
    untrained = ShareWeights(levels=16, epochs=0).apply(copy.deepcopy(model), context)
    trained = ShareWeights(levels=16, epochs=1).apply(model, context_of(task, model))
    for name in ("conv1", "conv2", "fc1", "fc2"):
        before, after = (find(m.get_submodule(name), Codebook) for m in (untrained, trained))
        assert torch.equal(before.indices, after.indices)
        assert values(trained.get_submodule(name)) <= 16
    assert not torch.equal(untrained.fc1.weight, trained.fc1.weight)
    assert torch.equal(trained.fc1.weight == 0, pruned)
    baked = bake(copy.deepcopy(trained))
    assert torch.equal(baked.fc1.weight, trained.fc1.weight)


def test_random_starts_follow_the_seed(digits_task) -> None:
    def run(seed: int) -> torch.Tensor:
        model = small()
        context = Context(digits_task, model, torch.device("cpu"), seed)
        return (
            ShareWeights(levels=4, initialisation="random", epochs=0)
            .apply(model, context)[2]
            .weight
        )

    assert torch.equal(run(1), run(1))


def test_needs_data_only_to_train() -> None:
    assert ShareWeights().needs == {"train"}
    assert ShareWeights(epochs=0).needs == frozenset()


def test_bad_settings_end_in_a_sentence(digits_task) -> None:
    with pytest.raises(RecipeError, match="bits=4 and levels=8 say the same thing twice"):
        ShareWeights(bits=4, levels=8)
    with pytest.raises(RecipeError, match="bits=0 is not allowed"):
        ShareWeights(bits=0)
    model = small()
    with pytest.raises(RecipeError, match="'conv9' matches no layer"):
        ShareWeights(bits={"conv9": 3}, epochs=0).apply(model, context_of(digits_task, model))
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="weight of '2' holds NaN"):
        ShareWeights(epochs=0).apply(model, context_of(digits_task, model))


def test_a_recurrent_network_shares_after_it_was_pruned() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 8)
    task = Task("noise", x, train=[(x, torch.zeros(6, 5, 16))], loss=squared)
    model = Reading().eval()
    for step in (
        PruneWeights(sparsity=0.5, layers="type:LSTM"),
        ShareWeights(layers="type:LSTM", bits=3, epochs=2, initialisation="exact"),
    ):
        context = context_of(task, model)
        model = step.apply(model, context)
    assert set(context.record["distinct_values"]) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    dressed = copy.deepcopy(model)(x)
    bake(model)
    weights = [model.rnn.weight_ih_l0, model.rnn.weight_hh_l0]
    assert [int(w.unique().numel()) for w in weights] == [8, 8]
    assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() for w in weights) // 2
    assert torch.equal(model(x), dressed)
    assert torch.allclose(OnnxRuntime(export_onnx(model, x))(x), dressed, atol=1e-6)


class Reading(nn.Module):
    """What an LSTM says at every step, (B, T, 8) to (B, T, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean()
