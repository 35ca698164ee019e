# SPDX-License-Identifier: Apache-2.0
"""Several workers read what one reads, find the same damage, and share the work evenly."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store import compiled
from rarefy.store.parallel import read_parallel, shares
from rarefy.store.rfy import read, write

from .arrays import same, weights


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of several tensors."""
    made = tmp_path_factory.mktemp("parallel") / "a.rfy"
    tensors = {f"t{i}": weights((90, 40 * (i + 1)), 0.5, 0, seed=i) for i in range(5)}
    write(made, {**tensors, "half": np.float16([1, 2]), "none": np.zeros((0, 3))})
    return made


@pytest.fixture(params=["processes", "threads"])
def workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads are taken where the loops are compiled."""
    enough = compiled.WORTH if request.param == "threads" else -(1 << 60)
    with mock.patch.object(compiled, "_read", enough):
        yield


@pytest.mark.usefixtures("workers")
def test_workers_read_what_one_reads(path: Path) -> None:
    with read(path) as archive:
        alone = dict(archive)
    for least in (0, 1 << 24):
        found = read_parallel(path, workers=2, least=least)
        assert list(found) == list(alone)
        assert all(same(found[name], array) for name, array in alone.items())
    some = read_parallel(path, ["t3", "t0"], workers=2, least=0)
    assert list(some) == ["t3", "t0"]
    assert same(some["t0"], alone["t0"])
    with pytest.raises(KeyError, match="t9"):
        read_parallel(path, ["t9"])


@pytest.mark.usefixtures("workers")
def test_damage_that_a_worker_finds_is_told_in_one_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.rfy can't be opened"):
        read_parallel(tmp_path / "absent.rfy")
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    (tmp_path / "b.rfy").write_bytes(data)
    with pytest.raises(FileError, match="changed since it was written"):
        read_parallel(tmp_path / "b.rfy", workers=2, least=0)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000)), st.integers(1, 5))
def test_no_share_is_longer_than_dealing_in_turn_can_make_it(
    sizes: dict[str, int], workers: int
) -> None:
    parts = shares(sizes, workers)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    longest = max(sum(sizes[name] for name in part) for part in parts)
    largest, count = max(sizes.values(), default=0), len(parts)
    assert longest <= sum(sizes.values()) / count + (1 - 1 / count) * largest + 1e-9
