# SPDX-License-Identifier: Apache-2.0
"""Losses on single pairs of features: zero for equal ones, and what they do not look at."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rarefy.distill.maps import (
    channel_loss,
    direction_loss,
    hint_loss,
    kernel_mean,
    selectivity_loss,
)
from rarefy.loops.losses import attention_loss

seeds = st.integers(0, 10**6)


def maps(seed: int, channels: int = 5, examples: int = 3) -> Tensor:
    return torch.randn(examples, channels, 4, 3, generator=torch.Generator().manual_seed(seed))


@given(seeds)
def test_equal_features_cost_nothing(seed: int) -> None:
    x = maps(seed)
    for loss in (hint_loss, attention_loss, selectivity_loss, channel_loss):
        assert float(loss(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(direction_loss(x.flatten(1), x.flatten(1))) == pytest.approx(0, abs=1e-6)


def test_hints_by_hand() -> None:
    s, t = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
    assert float(hint_loss(s, t)) == 0.5 * 4 / 2


@given(seeds, st.floats(0.1, 20))
def test_attention_ignores_scale_and_order_of_channels(seed: int, scale: float) -> None:
    x = maps(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert float(attention_loss(scale * x[:, order], x)) == pytest.approx(0, abs=1e-6)
    fewer = maps(seed + 1, channels=2)
    assert float(attention_loss(fewer, x)) > 0.01


def test_direction_asks_for_direction_and_length() -> None:
    t = torch.tensor([[3.0, 4.0]])
    assert float(direction_loss(2 * t, t)) == pytest.approx(0, abs=1e-6)  # longer is no fault
    assert float(direction_loss(0.5 * t, t)) == pytest.approx(0.5)
    assert float(direction_loss(-t, t)) == pytest.approx(2)
    assert float(direction_loss(torch.tensor([[-4.0, 3.0]]), t)) == pytest.approx(1)


def test_selectivity_is_a_discrepancy_of_channel_sets() -> None:
    x = maps(0)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert float(selectivity_loss(x[:, order], x)) == pytest.approx(0, abs=1e-6)
    doubled = torch.cat([x, x], 1)  # the same set of maps, each there twice
    assert float(selectivity_loss(doubled, x)) == pytest.approx(0, abs=1e-6)
    assert float(selectivity_loss(maps(1), x)) > 0.001
    a, b = torch.eye(2).unsqueeze(0), torch.tensor([[[1.0, 0.0]]])
    assert kernel_mean(a, b).tolist() == [0.5]


def test_channels_are_averaged_over_their_places() -> None:
    x = maps(0)
    assert float(channel_loss(x.flip(2), x)) == pytest.approx(0, abs=1e-9)
    assert float(channel_loss(x + 2, x)) == pytest.approx(4, rel=1e-5)
