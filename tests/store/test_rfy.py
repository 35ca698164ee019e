# SPDX-License-Identifier: Apache-2.0
"""Files: everything comes back bit for bit, the same bytes twice, one tensor at a time."""

import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.rfy import Archive, read, write

from .arrays import arrays, same, weights

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(st.characters()), arrays(60), max_size=5),
    st.binary(max_size=200),
    st.sampled_from(["tensors", "onnx", "safetensors"]),
    st.none() | st.dictionaries(st.text(), JSON, max_size=4),
    st.sampled_from(["auto", "huffman", "ans", "raw", "mixing"]),
)
def test_everything_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, np.ndarray],
    program: bytes,
    kind: str,
    info: dict[str, Any] | None,
    coder: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.rfy"
    size = write(path, tensors, program=program, kind=kind, info=info, coder=coder)
    assert size == path.stat().st_size
    with read(path) as archive:
        assert list(archive) == list(tensors)
        assert all(same(archive[name], array) for name, array in tensors.items())
        assert (archive.program, archive.kind) == (program, kind)
        assert archive.info == (info or {})
    data = path.read_bytes()
    write(path, tensors, program=program, kind=kind, info=info, coder=coder)
    assert path.read_bytes() == data


def test_a_file_costs_little_beside_its_payloads(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    assert write(path, {}) <= 13
    assert write(path, {"w": np.zeros((1000, 1000), np.float32)}) <= 22
    tensors = {f"layer{i}.weight": weights((100, 100), 0.2, 16, seed=i) for i in range(20)}
    write(path, tensors)
    with read(path) as archive:
        payloads = sum(row["bytes"] for row in archive.describe())
    assert path.stat().st_size - payloads < 24 + 6 * len(tensors)


def test_the_description_is_true(tmp_path: Path) -> None:
    tensors = {"sparse": weights((200, 300), 0.1, 16), "bias": np.array([0, -0.0, 1], np.float32)}
    size = write(tmp_path / "a.rfy", tensors, info={"by": "test"})
    with read(tmp_path / "a.rfy") as archive:
        rows = archive.describe()
        assert archive.layout() == [("sparse", "float32", (200, 300)), ("bias", "float32", (3,))]
    assert json.loads(json.dumps(rows)) == rows
    sparse, bias = rows
    assert sparse["name"] == "sparse"
    assert sparse["dtype"] == "float32"
    assert sparse["shape"] == [200, 300]
    assert sparse["values"] == 60_000
    assert sparse["nonzero"] == np.count_nonzero(tensors["sparse"])
    assert sparse["distinct"] == np.unique(tensors["sparse"]).size
    assert "codebook" in sparse["coding"]
    assert 0.9 * size < sparse["bytes"] < size
    assert (bias["nonzero"], bias["distinct"], bias["coding"]) == (1, 3, "raw")


def test_one_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    tensors = {f"t{i}": weights((200, 200), 1, 0, seed=i) for i in range(10)}
    size = write(path, tensors)
    archive = read(path, verify=False)
    taken = 0

    def counting(start: int, count: int) -> bytes:
        nonlocal taken
        taken += count
        return Archive._take(archive, start, count)

    archive._take = counting  # type: ignore[method-assign]
    assert same(archive["t7"], tensors["t7"])
    assert 0 < taken < size / 9
    assert "t7" in archive
    assert "t8" in archive
    assert "x" not in archive
    assert taken < size / 9
    archive.close()


def test_damage_elsewhere_does_not_hurt_one_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    tensors = {f"t{i}": weights((100, 100), 1, 0, seed=i) for i in range(3)}
    write(path, tensors)
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # inside t0
    path.write_bytes(data)
    with pytest.raises(FileError, match="changed since it was written"):
        read(path)
    with read(path, verify=False) as archive:
        assert same(archive["t2"], tensors["t2"])
        with pytest.raises(FileError, match=r"damaged tensor 't0': its checksum"):
            archive["t0"]


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    class Made(Mapping[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            return weights((500, 500), 1, 0, seed=int(name))

        def __iter__(self) -> Iterator[str]:
            return iter(str(i) for i in range(12))

        def __len__(self) -> int:
            return 12

    write(tmp_path / "a.rfy", {"0": Made()["0"]})
    tracemalloc.start()
    write(tmp_path / "a.rfy", Made())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    with read(tmp_path / "a.rfy") as archive:
        assert all(array.shape == (500, 500) for array in archive.values())
    read_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 1_000_000
    assert read_peak < 5 * 1_000_000


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    write(path, {"a": np.arange(3)})
    old = path.read_bytes()
    with pytest.raises(FileError, match=r"tensor 'b' has dtype object.*convert it to one of bool"):
        write(path, {"a": np.arange(4), "b": np.array([None])})
    with pytest.raises(FileError, match=r"info can't be stored as JSON.*plain values"):
        write(path, {}, info={"x": np.float32(1)})
    with pytest.raises(FileError, match="'zip'; known: ans, auto, huffman, mixing, raw"):
        write(path, {}, coder="zip")
    with pytest.raises(FileError, match="written with 'onxx'; did you mean 'onnx'"):
        write(path, {}, kind="onxx")
    with pytest.raises(FileError, match="can't be written: No such file"):
        write(tmp_path / "absent" / "a.rfy", {})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
