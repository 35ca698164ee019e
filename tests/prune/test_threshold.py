# SPDX-License-Identifier: Apache-2.0
"""Selection without sorting agrees with torch's selection and with sorting, whatever the ties."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rarefy.prune import threshold
from rarefy.prune.threshold import each, keep_most, kth_smallest

DTYPES = (torch.float32, torch.float64, torch.float16)


@pytest.fixture(params=[1, 5, 1 << 18])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are cut into small pieces, so that every way through the digits is taken."""
    monkeypatch.setattr(threshold, "PIECE", request.param)


@st.composite
def layers(draw: st.DrawFn) -> list[Tensor]:
    """Tensors of one dtype: any floats, or few values that come again and again."""
    dtype = draw(st.sampled_from(DTYPES))
    bits = 8 * dtype.itemsize
    few = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-10, -1.0, 3e-5, float("inf")])
    values = draw(st.sampled_from([few, st.floats(width=bits, allow_nan=False)]))
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    return [
        torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=dtype) for n in sizes
    ]


@pytest.mark.usefixtures("piece")
@given(parts=layers(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_kth_smallest_is_torchs(parts: list[Tensor], data: st.DataObject) -> None:
    joined = torch.cat(parts)
    k = data.draw(st.integers(1, len(joined)))
    found = kth_smallest(parts, k)
    assert found == joined.sort().values[k - 1]
    if joined.dtype != torch.float16:
        assert found == joined.kthvalue(k).values


@pytest.mark.usefixtures("piece")
@given(parts=layers(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_largest_are_kept_and_ties_go_to_the_earlier(
    parts: list[Tensor], data: st.DataObject
) -> None:
    values = torch.cat(parts).tolist()
    keep = data.draw(st.integers(0, len(values)))
    masks = keep_most(parts, keep)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    found = torch.cat(masks).nonzero().flatten().tolist()
    assert set(found) == set(order[:keep])
    assert [m.shape for m in masks] == [p.shape for p in parts]


@pytest.mark.usefixtures("piece")
def test_nan_counts_as_the_largest_whatever_its_sign() -> None:
    values = torch.tensor([float("nan"), -float("nan"), 2.0, float("inf"), -1.0])
    assert [kth_smallest([values], k).item() for k in (1, 2, 3)] == [-1.0, 2.0, float("inf")]
    assert all(kth_smallest([values], k).isnan() for k in (4, 5))


def test_every_digit_decides() -> None:
    """A million neighbours in the last digits: no histogram but the last tells them apart."""
    values = (torch.arange(1 << 20, dtype=torch.int32) + 0x3F800000).view(torch.float32)
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    for k in (1, 77_777, 1 << 20):
        assert kth_smallest(list(shuffled.split(300_000)), k) == values[k - 1]


@pytest.mark.parametrize("k", [0, 4])
def test_no_such_value(k: int) -> None:
    with pytest.raises(ValueError, match="of 3 values"):
        kth_smallest([torch.zeros(3)], k)


def test_tensors_are_made_one_at_a_time_and_anew() -> None:
    made = itertools.count()
    lazy = each(lambda x: x + next(made), [torch.tensor(1), torch.tensor(2), torch.tensor(3)])
    assert next(made) == 0
    assert [t.item() for t in lazy] == [2, 4, 6]
    assert len(lazy) == 3
    assert lazy[-1].item() == 7
    assert [t.item() for t in lazy[1:]] == [7, 9]
    with pytest.raises(IndexError, match="none at place 3"):
        lazy[3]
