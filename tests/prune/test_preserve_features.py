# SPDX-License-Identifier: Apache-2.0
"""Features are compared whatever the number of channels; a cut network learns from them without labels."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rarefy.loops.features import features
from rarefy.loops.losses import alike_loss, attention, similarity
from rarefy.prune.preserve_features import PreserveFeatures, cut_layers
from rarefy.prune.prune_channels import PruneChannels
from rarefy.step import Context
from rarefy.task import Task

space = st.integers(1, 4)
vectors = st.tuples(st.integers(2, 5), st.integers(1, 6))
maps = st.tuples(st.integers(2, 4), st.integers(1, 5), space, space)
shapes = st.one_of(vectors, maps)


@given(shapes, st.integers(0, 10**6), st.floats(0.1, 9))
def test_the_loss_is_zero_for_the_same_features_at_any_scale(
    shape: tuple[int, ...], seed: int, scale: float
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert float(alike_loss(x, x)) == 0
    assert float(alike_loss(scale * x, x)) == pytest.approx(0, abs=1e-9)


def test_views_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])  # (1, 2, 1, 2): squares add up to 5 and 4
    assert torch.allclose(attention(x), torch.tensor([[5.0, 4.0]]) / 41**0.5)
    rows = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert torch.allclose(similarity(rows), torch.tensor([[0.6, 0.8], [0.6, 0.8]]))
    wide, narrow = torch.randn(3, 8, 4, 4), torch.randn(3, 5, 4, 4)
    assert 0 < float(alike_loss(narrow, wide)) < 4
    twice = torch.cat([narrow, narrow], 1)  # a channel that is there twice changes no map
    assert float(alike_loss(twice, narrow)) == pytest.approx(0, abs=1e-9)


def cut_half(model: nn.Module, task: Task) -> tuple[nn.Module, Context]:
    ctx = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))
    return PruneChannels(sparsity=0.5, allocation="local").apply(copy.deepcopy(model), ctx), ctx


def test_the_layers_are_those_that_lost_channels(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    small, ctx = cut_half(model, task)
    assert cut_layers(small, ctx.teacher, task.example) == ["conv1", "conv2", "pool", "fc1"]
    assert cut_layers(model, ctx.teacher, task.example) == []


def gap(small: nn.Module, teacher: nn.Module, task: Task) -> float:
    names = cut_layers(small, teacher, task.example)
    x = next(iter(task.batches("validation")))[0]
    with torch.no_grad(), features(small, names) as mine, features(teacher, names) as theirs:
        small(x), teacher(x)
        return sum(float(alike_loss(mine[n], theirs[n])) for n in names) / len(names)


def test_features_come_nearer_without_labels(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    small, ctx = cut_half(model, task)
    bare = dataclasses.replace(
        task,
        train=[x for x, _ in task.batches("train")],
        validation=None,
        test=None,
        labelled=False,
    )
    found = {}
    for strength in (0.0, 5.0):
        unlabelled = Context(bare, ctx.teacher, torch.device("cpu"))
        step = PreserveFeatures(strength=strength, epochs=2, rate=0.02)
        result = step.apply(copy.deepcopy(small), unlabelled)
        assert unlabelled.record["layers"]
        found[strength] = gap(result, ctx.teacher, task)
        x = next(iter(task.batches("validation")))[0]
        assert (result(x).argmax(1) == ctx.teacher(x).argmax(1)).float().mean() > 0.85
    assert found[5.0] < 0.7 * found[0.0]
    assert found[5.0] < gap(small, ctx.teacher, task)
    assert not any(m._forward_hooks for m in ctx.teacher.modules())


def test_a_whole_network_learns_from_answers_alone(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))
    PreserveFeatures(epochs=1).apply(model, ctx)
    assert ctx.record["layers"] == []
    assert len(ctx.record["training"]) == 1
