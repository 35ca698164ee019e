# SPDX-License-Identifier: Apache-2.0
"""Row dettmers8: the table, its round trip, less error than a linear one, training as with floats."""

import copy
from dataclasses import replace

import pytest
import torch

from rarefy.forms.dynamic_tree import from_tree_codes, nearest_codes, to_tree_codes, tree_values
from rarefy.measure.quality import evaluate
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


def test_the_table_and_its_round_trip() -> None:
    values = tree_values()
    assert len(values) == 256
    assert len(values.unique()) == 255
    assert {-1.0, 0.0, 1.0} <= set(values.tolist())
    assert torch.equal(values[nearest_codes(values).long()], values)


def test_the_relative_error_is_lower_than_with_a_linear_table() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).exp()
    codes, reach = to_tree_codes(x)
    tree = from_tree_codes(codes, reach, x.shape)
    blocks = x[: 2048 * 9].view(9, 2048)
    step = blocks.amax(1, keepdim=True) / 127
    linear = ((blocks / step).round() * step).flatten()
    exact = blocks.flatten()
    ours = ((tree[: len(exact)] - exact) / exact).abs().mean()
    assert float(ours) < 0.5 * float(((linear - exact) / exact).abs().mean())


def test_training_with_8_bit_gradients_and_states_is_as_good(digits_task: Task) -> None:
    task, found = replace(digits_task, validation=None), {}
    (recipe,) = load_recipe("dettmers8").steps
    assert isinstance(recipe, QuantizationAwareTraining)
    ours = replace(recipe, epochs=6, rate=0.05, alpha=0.0)
    plain = replace(ours, gradient_grid="uniform", state_bits=32)
    for name, step in (("ours", ours), ("plain", plain)):
        torch.manual_seed(0)
        model = DigitsNet()
        context = Context(task, copy.deepcopy(model), torch.device("cpu"))
        found[name] = evaluate(step.apply(model, context), task).value
    assert found["plain"] >= 0.85
    assert found["ours"] == pytest.approx(found["plain"], abs=0.025)
