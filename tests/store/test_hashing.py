# SPDX-License-Identifier: Apache-2.0
"""Hashes: those of the standard, the same for the same content only."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.hashing import hash_bytes, hash_file, hash_tensors

from .arrays import arrays


def test_bytes_and_files_agree_with_the_standard(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == hash_bytes(data) == hashlib.sha256(data).hexdigest()
    assert hash_bytes(b"abc").startswith("ba7816bf8f01cfea")


@given(st.dictionaries(st.text(), arrays(30), max_size=4))
def test_the_order_of_tensors_and_memory_does_not_matter(tensors: dict[str, np.ndarray]) -> None:
    turned = {name: tensors[name].copy("F") for name in reversed(list(tensors))}
    assert hash_tensors(turned) == hash_tensors(tensors)


def test_every_difference_shows() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.arange(3)}
    others = [
        {"a": base["a"]},
        {**base, "c": np.zeros(0)},
        {"b": base["a"], "a": base["b"]},
        {**base, "a": np.zeros((3, 2), np.float32)},
        {**base, "a": np.zeros((2, 3), np.int32)},
        {**base, "a": -base["a"]},
        {**base, "b": np.array([0, 1, 3])},
    ]
    hashes = {hash_tensors(tensors) for tensors in [base, *others]}
    assert len(hashes) == 1 + len(others)
    big = {**base, "b": base["b"].astype(">i8")}
    assert hash_tensors(big) == hash_tensors(base)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="absent can't be read: No such file"):
        hash_file(tmp_path / "absent")
