# SPDX-License-Identifier: Apache-2.0
"""Small files: few bytes beside the payloads, every bit guarded, no memory for lies."""

import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.compact import FRONT, SMALL, read_small, write_small
from rarefy.store.fields import varint
from rarefy.store.header import Entry, Header
from rarefy.store.keys import DTYPES, dtype_named
from rarefy.store.rfy import read, write

from .arrays import same, weights

LENET = [(20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with several tensors, a program and notes."""
    path = tmp_path_factory.mktemp("small") / "a.rfy"
    tensors = {f"layer{i}.weight": weights((20, 30), 0.3, 9, seed=i) for i in range(3)}
    write(path, {**tensors, "ids": np.arange(300)}, program=b"program" * 9, info={"note": "text"})
    data = path.read_bytes()
    assert data.startswith(FRONT)
    return data


def sealed(payloads: bytes, block: bytes) -> bytes:
    """A file whose checksum is right, whatever its header says."""
    data = FRONT + payloads + block + varint(len(block))[::-1]
    return data + zlib.crc32(data).to_bytes(4, "little")


entries = st.lists(
    st.tuples(
        st.text(max_size=9),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 1 << 12), max_size=5),
        st.binary(max_size=30),
    ),
    max_size=6,
    unique_by=lambda entry: entry[0],
)


@given(entries, st.binary(max_size=40), st.binary(max_size=300), st.booleans())
def test_headers_come_back(
    given_entries: list[tuple[str, str, list[int], bytes]],
    notes: bytes,
    program: bytes,
    numbered: bool,
) -> None:
    items = []
    for place, (name, dtype, shape, payload) in enumerate(given_entries):
        name = str(place) if numbered else name
        kind = dtype_named(dtype)
        items.append(Entry(name, kind, tuple(shape), 0, len(payload), 0, payload))
    payloads = b"".join(payload for *_, payload in given_entries)
    found = read_small(write_small(Header("onnx", items, notes, program), payloads))
    assert (found.kind, found.notes, found.program) == ("onnx", notes, program)
    assert [e[:3] for e in found.entries] == [e[:3] for e in items]
    assert [e.inline for e in found.entries] == [e.inline for e in items]


def test_a_network_of_eight_tensors_takes_some_thirty_bytes(tmp_path: Path) -> None:
    tensors = {
        str(i): weights(shape, 0.02 if shape == (500, 800) else 0.3, 9, seed=i)
        for i, shape in enumerate(LENET)
    }
    size = write(tmp_path / "a.rfy", tensors)
    with read(tmp_path / "a.rfy") as archive:
        assert size - sum(archive.sizes().values()) <= 36
        assert all(same(archive[name], array) for name, array in tensors.items())


def test_every_bit_and_every_length_is_protected(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    for place in range(len(sample)):
        damaged = bytearray(sample)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"a\.rfy"):
            read(path, verify=False)
    for data in (*(sample[:length] for length in range(len(sample))), sample + b"\0"):
        path.write_bytes(data)
        with pytest.raises(FileError):
            read(path, verify=False)
    path.write_bytes(FRONT + bytes(SMALL))
    with pytest.raises(FileError, match="65540 bytes are too many"):
        read(path)


def test_larger_files_take_the_other_form(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    forms = set()
    for count in (SMALL - 40, SMALL - 20, SMALL - 8, SMALL, SMALL + 9):
        tensors = {"w": np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)}
        size = write(path, tensors, coder="raw")
        assert size == path.stat().st_size
        small = path.read_bytes().startswith(FRONT)
        assert small == (size <= SMALL)
        forms.add(small)
        with read(path) as archive:
            assert same(archive["w"], tensors["w"])
    assert forms == {True, False}


@settings(max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=100))
def test_invented_headers_take_no_memory(block: bytes, payloads: bytes) -> None:
    data = sealed(payloads, block)
    tracemalloc.start()
    with suppress(FileError):
        header = read_small(data)
        assert sum(entry.size for entry in header.entries) == len(payloads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * len(data) + (1 << 20)


@settings(max_examples=100)
@given(st.data())
def test_damage_behind_a_right_checksum_is_survived(
    sample: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(sample[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "forged-small.rfy"
    path.write_bytes(damaged + zlib.crc32(damaged).to_bytes(4, "little"))
    with suppress(FileError), read(path) as archive:
        for name, dtype, shape in archive.layout():
            if np.prod(shape, dtype=float) < 1 << 20:
                with suppress(FileError):
                    found = archive[name]
                    assert (found.dtype.name, found.shape) == (dtype, shape)
        with suppress(FileError):
            assert isinstance(archive.info, dict)
