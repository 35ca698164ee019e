# SPDX-License-Identifier: Apache-2.0
"""Differences from a base: bit for bit, smaller where little moved, refused with another base."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.arrays import random_bits, same

from rarefy.errors import FileError
from rarefy.store.delta import read_delta, write_delta
from rarefy.store.rfy import write


@given(
    name=st.sampled_from(["float32", "float16", "int8", "uint16", "int64", "complex64"]),
    seed=st.integers(0, 50),
)
@settings(max_examples=30)
def test_any_bits_come_back(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    dtype, path = np.dtype(name), tmp_path_factory.mktemp("delta") / "d.rfy"
    base = {"a": random_bits(dtype, (5, 7), seed), "b": random_bits(dtype, (3,), seed + 1)}
    new = {"a": random_bits(dtype, (5, 7), seed + 2), "b": base["b"], "c": np.ones((2, 2))}
    write_delta(path, new, base)
    back = read_delta(path, base)
    assert list(back) == list(new)
    assert all(same(back[key], value) for key, value in new.items())


def test_a_small_step_takes_fewer_bytes_than_the_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(300, 300)).astype(np.float32)}
    new = {"w": base["w"] * (1 + np.float32(1e-5) * rng.normal(size=(300, 300)).astype(np.float32))}
    whole, moved = write(tmp_path / "w.rfy", new), write_delta(tmp_path / "d.rfy", new, base)
    assert moved < 0.4 * whole
    assert write_delta(tmp_path / "same.rfy", base, base) < 200


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = {"w": np.arange(6.0)}
    write_delta(tmp_path / "d.rfy", {"w": np.arange(6.0) + 1}, base)
    with pytest.raises(FileError, match="another base|differences from a base"):
        read_delta(tmp_path / "d.rfy", {"w": np.arange(6.0) + 2})
    write(tmp_path / "plain.rfy", base)
    with pytest.raises(FileError, match="no differences"):
        read_delta(tmp_path / "plain.rfy", base)
