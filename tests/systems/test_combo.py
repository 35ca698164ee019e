# SPDX-License-Identifier: Apache-2.0
"""Pruning, distillation and quantisation in any order that can work; their gains multiply."""

import itertools
from pathlib import Path

import pytest
from torch import nn

from rarefy.compress import run_recipe
from rarefy.distill.distill import Distill
from rarefy.errors import RecipeError
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.prune.prune_weights import PruneWeights
from rarefy.quantize.share_weights import ShareWeights
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import Recipe, load_recipe
from rarefy.step import Step
from rarefy.task import Task

PRUNE, DISTILL, QUANTISE = (
    PruneWeights(sparsity=0.6), Distill(epochs=1, rate=0.005), StaticInt8(),
)  # fmt: skip
SHARE = ShareWeights(bits=4, epochs=1)
GENTLY = Distill(epochs=1, rate=1e-5)  # a shared value moves by the gradients of all its weights


def test_every_order_runs_or_says_which_one_does() -> None:
    for order in itertools.permutations((PRUNE, DISTILL, QUANTISE)):
        if order[-1] is QUANTISE:
            assert Recipe(order).steps == order
            continue
        with pytest.raises(RecipeError, match="put .* first") as caught:
            Recipe(order)
        assert "\n" not in str(caught.value)
    # shared weights go on learning, so that quantiser may stand before the distillation
    assert Recipe((PRUNE, SHARE, DISTILL)).steps


@pytest.mark.parametrize("order", [(PRUNE, DISTILL, QUANTISE), (PRUNE, SHARE, GENTLY)])
def test_an_order_gives_a_loadable_artefact(
    order: tuple[Step, ...], digits: tuple[nn.Module, Task], tmp_path: Path
) -> None:
    model, task = digits
    result = run_recipe(model, task, Recipe(order))
    result.save(tmp_path / "out")
    program = OnnxRuntime(tmp_path / "out" / "model.onnx")
    x, y = next(iter(task.batches("test")))
    answers = program(x)
    assert float((answers.argmax(1) == y).float().mean()) > 0.9
    weights = [m.weight for m in result.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    assert zeros >= 0.6 * total - 1  # what was pruned is still zero, whatever came after
    stages = result.measurements
    assert len(stages) == 5
    assert all("metric" in stage and "bytes" in stage for stage in stages)


def test_gains_multiply(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    document = run_recipe(model, task, load_recipe("combo")).document
    base, cut, _, quantised = document["stages"][:4]
    by_cut = cut["bytes"]["onnx"] / base["bytes"]["onnx"]
    whole = quantised["bytes"]["onnx"] / base["bytes"]["onnx"]
    assert by_cut < 0.45
    assert whole < 0.45 * by_cut  # a quarter, and what the file says about its tensors
    assert quantised["metric"]["value"] >= base["metric"]["value"] - 0.03
