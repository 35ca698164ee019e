# SPDX-License-Identifier: Apache-2.0
"""Row han2015: the dropout rule, dead neurons taken out without a trace, rounds of pruning and retraining."""

import copy

import pytest
import torch

from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context


def test_the_system_prunes_connections_in_rounds(digits_network, digits_task):
    (step,) = load_recipe("han2015").steps
    context = Context(digits_task, digits_network, torch.device("cpu"), 0, {})
    found = step.apply(copy.deepcopy(digits_network), context)
    matrices = [layer.weight for layer in select(found)]
    zeros = sum(int((w == 0).sum()) for w in matrices)
    assert zeros > 0.3 * sum(w.numel() for w in matrices)
    before, after = (evaluate(net, digits_task).value for net in (digits_network, found))
    assert after >= before - 0.04


def test_dropout_rule():
    """A quarter of the connections left: half of the dropout (D_r = D_o sqrt(C_ir / C_io))."""
    from rarefy.prune.connections import adjusted_rate

    assert adjusted_rate(0.5, before=400, after=100) == pytest.approx(0.25)
