# SPDX-License-Identifier: Apache-2.0
"""Fixed point: codes, scales and errors in closed form."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.forms.affine import OnGrid, Quantised
from rarefy.forms.grid import along
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import bake, find
from rarefy.quantize.fixed_point import FixedPoint, fixed_point, max_abs, shift_of
from rarefy.step import Context

floats = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


@settings(deadline=None)
@given(floats, st.integers(2, 16), st.booleans())
def test_no_weight_is_off_by_more_than_allowed(numbers, bits, power_of_two) -> None:
    w = torch.tensor(numbers, dtype=torch.float64)
    codes, scale = fixed_point(w, bits, None, power_of_two)
    Q, alpha = 2 ** (bits - 1) - 1, float(w.abs().max())
    assert int(codes.abs().max()) <= Q
    error = float((codes * scale - w).abs().max())
    if not power_of_two:
        assert error <= alpha / (2 * Q) * (1 + 1e-9)
        if alpha > 0:
            assert int(codes.abs().max()) == Q
    else:
        assert error <= float(scale) * (1 + 1e-9)
        assert math.log2(float(scale)).is_integer()


def test_shifts_by_hand() -> None:
    alpha = torch.tensor([0.3, 0.5, 0.51, 1.0, 1.7, 8.0, 0.0])
    # f = 7 - ceil(log2 alpha)
    assert shift_of(alpha, 8).tolist() == [8, 8, 7, 7, 6, 4, 0]


def test_channels_have_their_own_scale() -> None:
    w = torch.tensor([[1.0, -2.0], [0.1, 0.05], [0.0, 0.0]])
    codes, scale = fixed_point(w, 8, axis=0)
    assert max_abs(w, 0).tolist() == pytest.approx([2.0, 0.1, 0.0])
    assert scale.tolist() == pytest.approx([2 / 127, 0.1 / 127, 1.0])
    assert codes.tolist() == [[64, -127], [127, 64], [0, 0]]
    across, scales = fixed_point(w, 8, axis=1)
    assert torch.allclose(across * along(scales, 1, 2), w, atol=2 / 254)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scale", ["real", "power-of-two"])
def test_a_step_stores_what_the_formula_gives(granularity, scale, digits) -> None:
    model, task = digits
    set_mask(model.fc1, model.fc1.weight.abs() > 0.05)
    before = copy.deepcopy(model)
    step = FixedPoint(bits=6, granularity=granularity, scale=scale, exclude="conv1")
    step.apply(model, Context(task, before, torch.device("cpu")))
    assert torch.equal(model.conv1.weight, before.conv1.weight)
    axis = 0 if granularity == "channel" else None
    codes, s = fixed_point(before.fc1.weight, 6, axis, scale == "power-of-two")
    assert torch.allclose(model.fc1.weight, codes * along(s, axis, 2), atol=1e-6)
    model.fc1.weight.sum().backward()
    assert model.fc1.parametrizations.weight.original.grad.abs().sum() > 0
    assert find(model.fc1, OnGrid) is not None
    shown = model(task.example)
    bake(model)
    assert find(model.fc1, Quantised) is not None
    assert torch.equal(model.fc1.parametrizations.weight.original, codes.to(torch.int8))
    assert torch.allclose(model(task.example), shown, atol=1e-5)
    assert torch.equal(model.fc1.weight == 0, codes == 0)
    assert torch.all(model.fc1.weight[before.fc1.weight == 0] == 0)
