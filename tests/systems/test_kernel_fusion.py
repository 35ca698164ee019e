# SPDX-License-Identifier: Apache-2.0
"""Row kernel-fusion: fewer operators and the same outputs; buffers that live together never overlap."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.export.onnx import export_onnx
from rarefy.graph.fold import fold_batch_norms
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.store.buffers import Life, lives_of, most_alive, plan_buffers
from rarefy.task import Task

LIVES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 8)), max_size=25
).map(lambda rows: [Life(str(i), s, f, f + n) for i, (s, f, n) in enumerate(rows)])


@given(lives=LIVES, alignment=st.sampled_from([1, 16, 64]))
@settings(max_examples=80)
def test_no_two_living_buffers_overlap(lives: list[Life], alignment: int) -> None:
    plan = plan_buffers(lives, alignment)
    for one in lives:
        start, end = plan.addresses[one.name], plan.addresses[one.name] + one.size
        assert start % alignment == 0
        assert end <= plan.size
        for other in lives:
            if other is not one and one.meets(other):
                begin = plan.addresses[other.name]
                assert end <= begin or begin + other.size <= start
    assert most_alive(lives) <= plan.size
    assert plan.size <= sum(-(-life.size // alignment) * alignment for life in lives)


class Normed(nn.Module):
    """Two normed convolutions, a residual sum, a layer nobody reads, a constant; for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.unread, self.fc = nn.Linear(8, 8), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = x + self.norm2(self.conv2(x)).relu() * (torch.ones(1) + 1)
        return self.fc(x.flatten(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = Normed()
    for norm in (model.norm1, model.norm2):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.running_mean, -1, 1)
    return model.eval()


def test_folding_drops_operators_and_keeps_outputs(network: nn.Module) -> None:
    x = torch.randn(4, 1, 8, 8)
    plain = export_onnx(network, x)
    folded = copy.deepcopy(network)
    assert len(fold_batch_norms(folded, x)) == 2
    fused = export_onnx(folded, x)
    assert len(fused.graph.node) <= len(plain.graph.node) - 2
    assert not any(node.op_type == "BatchNormalization" for node in fused.graph.node)
    assert not any("unread" in item.name for item in fused.graph.initializer)
    with torch.no_grad():
        assert torch.allclose(network(x), folded(x), atol=1e-5)


def test_a_programs_buffers_fit_into_less_than_all_of_them(network: nn.Module) -> None:
    lives = lives_of(export_onnx(network, torch.randn(1, 1, 8, 8)))
    sizes = {life.name: life.size for life in lives}
    assert max(sizes.values()) == 8 * 8 * 8 * 4
    plan = plan_buffers(lives)
    assert most_alive(lives) <= plan.size < 0.7 * sum(sizes.values())


def test_the_recipe_folds_and_keeps_the_answers(network: nn.Module, digits_task: Task) -> None:
    (step,) = load_recipe("kernel-fusion").steps
    context = Context(digits_task, copy.deepcopy(network), torch.device("cpu"), 0, {})
    found, _ = apply_step(step, copy.deepcopy(network), context)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
    x = next(iter(digits_task.batches("test")))[0]
    with torch.no_grad():
        before, after = network(x).numpy(), found(x).numpy()
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
