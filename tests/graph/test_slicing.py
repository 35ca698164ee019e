# SPDX-License-Identifier: Apache-2.0
"""Slices in blocks are those of plain indexing."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rarefy.graph import slicing
from rarefy.graph.slicing import sliced


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    block=st.integers(1, 100),
    data=st.data(),
)
def test_every_axis_keeps_what_stays(
    sizes: list[int], block: int, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicing, "BLOCK", block)
    x = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
    axes = data.draw(st.sets(st.sampled_from(range(len(sizes)))))
    kept = {
        a: torch.tensor(data.draw(st.lists(st.integers(0, sizes[a] - 1), min_size=1)))
        for a in sorted(axes)
    }
    wanted = x
    for axis, stays in kept.items():
        wanted = wanted.movedim(axis, 0)[stays].movedim(0, axis)
    assert torch.equal(sliced(x, kept), wanted)
    assert kept.keys() == axes


def test_nothing_is_copied_where_all_stays() -> None:
    x = torch.randn(3, 4)
    assert sliced(x, {}) is x
