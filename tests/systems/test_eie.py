# SPDX-License-Identifier: Apache-2.0
"""Row eie: the engine's products are those of the decoded weights, and its counts are what they claim."""

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rarefy.compress import apply_step
from rarefy.forms.shadow import bake
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.store.eie import LONGEST_RUN, decoded, engine_of, layers_of, multiply
from rarefy.task import Task


def thinned(keep: float, rows: int = 96, columns: int = 64) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    levels = np.linspace(-1, 1, 15).astype(np.float32)
    levels = levels[levels != 0]
    return np.where(rng.random((rows, columns)) < keep, rng.choice(levels, (rows, columns)), 0)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("elements", [1, 4, 7])
def test_products_are_those_of_the_dense_matrix(keep: float, elements: int) -> None:
    matrix, rng = thinned(keep), np.random.default_rng(1)
    activations = np.maximum(rng.normal(size=64), 0)
    engine = engine_of(matrix, elements)
    assert np.array_equal(decoded(engine), matrix)
    assert np.allclose(multiply(engine, activations).output, matrix @ activations, atol=1e-6)


def test_work_is_that_of_active_columns_and_padding_is_counted() -> None:
    matrix = np.zeros((100, 3), np.float32)
    matrix[[0, 40, 99], [0, 1, 2]] = 1
    engine = engine_of(matrix, 1)
    runs = [0, 40, 99]
    assert engine.padding == sum(run // (LONGEST_RUN + 1) for run in runs)
    assert engine.pairs == engine.padding + 3
    run = multiply(engine, np.array([1.0, 0.0, 1.0]))
    assert run.work.tolist() == [1 + 1 + 99 // 16]
    assert multiply(engine, np.zeros(3)).cycles == 0


def test_more_elements_take_fewer_cycles_and_deeper_queues_balance() -> None:
    matrix, activations = thinned(0.1, 512, 256), np.ones(256)
    cycles = [multiply(engine_of(matrix, n), activations).cycles for n in (1, 4, 16)]
    assert cycles[0] > 3 * cycles[1] > 6 * cycles[2]
    engine = engine_of(matrix, 16)
    shallow, deep = (multiply(engine, activations, depth) for depth in (1, 64))
    assert deep.cycles < shallow.cycles
    assert deep.cycles >= deep.work.max()
    assert 0.5 < deep.balance <= 1


def test_what_is_no_matrix_or_does_not_fit_is_refused() -> None:
    for matrix, elements in ((np.ones(3), 2), (np.ones((2, 2)), 0), (np.full((2, 2), np.nan), 1)):
        with pytest.raises(ValueError, match=r"give one or more|NaN or infinity"):
            engine_of(matrix, elements)
    engine = engine_of(np.eye(4, dtype=np.float32), 2)
    for activations in (np.ones(3), np.ones(5), np.ones((4, 1))):
        with pytest.raises(ValueError, match="do not fit a matrix"):
            multiply(engine, activations)


def test_too_many_values_are_refused() -> None:
    with pytest.raises(ValueError, match="40 distinct values"):
        engine_of(np.arange(1, 41, dtype=np.float32).reshape(5, 8), 2)


def test_layers_of_the_recipe_run_on_the_engine(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    for step in load_recipe("eie").steps:
        model, _ = apply_step(step, model, context)
    assert evaluate(model, task).value > before - 0.03
    bake(model)
    weights = {n: p.detach().numpy() for n, p in model.named_parameters() if n.startswith("fc")}
    engines = dict(layers_of(weights, 8))
    assert engines.keys() == {"fc1.weight", "fc2.weight"}
    inputs = next(iter(task.batches("test")))[0][:1]
    held: list[torch.Tensor] = []
    model.fc1.register_forward_pre_hook(lambda _, args: held.append(args[0][0]))
    hidden: list[torch.Tensor] = []
    model.fc1.register_forward_hook(lambda _, __, out: hidden.append(out[0]))
    with torch.no_grad():
        model(inputs)
    x = held[0].double().numpy()
    run = multiply(engines["fc1.weight"], x)
    expected = hidden[0].double().numpy() - weights["fc1.bias"]
    assert np.allclose(run.output, expected, atol=1e-4)
    dense = engines["fc1.weight"].shape[0] * np.count_nonzero(x)
    assert run.work.sum() < 0.35 * dense
    assert engines["fc1.weight"].bits < 32 * weights["fc1.weight"].size / 8
