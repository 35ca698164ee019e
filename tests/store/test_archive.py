# SPDX-License-Identifier: Apache-2.0
"""Damaged, cut, changed and invented files: one sentence of ours, and no memory for their lies."""

import hashlib
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.archive import DIGEST, MAGIC, TRAILER, VERSION
from rarefy.store.dictionary import DICTIONARY
from rarefy.store.fields import varint
from rarefy.store.keys import DTYPES
from rarefy.store.rfy import read, write
from rarefy.store.text import compress

from .arrays import weights


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A large file with tensors in many codings, a program and notes."""
    path = tmp_path_factory.mktemp("sample") / "a.rfy"
    tensors = {
        "sparse": weights((60, 70), 0.1, 16),
        "float": weights((40, 500), 1, 0),
        "bytes": np.tile(np.arange(250, dtype=np.uint8), 20),
        "ternary": np.sign(weights((30, 30), 0.6, 5)).astype(np.int8),
        "range": np.arange(3000),
        "zero": np.zeros((500, 500)),
        "one": np.float16(3),
    }
    write(path, tensors, program=b"program" * 30, info={"note": "text"})
    return path.read_bytes()


def sealed(payload: bytes, plain: bytes) -> bytes:
    """A file whose checksums are right, whatever its header says."""
    block = varint(len(plain)) + compress(plain, DICTIONARY)
    data = MAGIC + bytes([VERSION]) + payload + block
    data += TRAILER.pack(len(block), zlib.crc32(block))
    return data + hashlib.sha256(data).digest()[:DIGEST]


def opened(path: Path, data: bytes, verify: bool = True) -> int:
    """Read everything from `data`; gives the bytes that its header states, -1 if refused."""
    path.write_bytes(data)
    stated = -1
    with suppress(FileError), read(path, verify=verify) as archive:
        stated = sum(entry.decoded for entry in archive._entries.values())
        stated += len(archive.program) + len(archive._notes)
        for name in archive:
            with suppress(FileError):
                assert archive[name].nbytes == archive._entries[name].decoded
        assert isinstance(archive.info, dict)
    return stated


@pytest.mark.parametrize("step", [71])
def test_every_bit_is_protected(sample: bytes, tmp_path: Path, step: int) -> None:
    for place in range(0, len(sample), step):
        damaged = bytearray(sample)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a.rfy").write_bytes(damaged)
        with pytest.raises(FileError) as caught:
            read(tmp_path / "a.rfy")
        assert "a.rfy" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_length_is_protected(sample: bytes, tmp_path: Path) -> None:
    for length in [*range(60), *range(60, len(sample), 997), len(sample) - 1]:
        (tmp_path / "a.rfy").write_bytes(sample[:length])
        with pytest.raises(FileError):
            read(tmp_path / "a.rfy", verify=False)
    (tmp_path / "a.rfy").write_bytes(sample + b"x")
    with pytest.raises(FileError):
        read(tmp_path / "a.rfy", verify=False)


def test_the_sentences_name_the_way_out(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    cases = {
        b"PK\x03\x04" + sample[4:]: "no .rfy file: it does not begin with b'RFY1'",
        b"": "no .rfy file",
        sample[:20]: "cut short: it has only 20 bytes; fetch it again",
        sample[:4] + b"\x02" + sample[5:]: "format 2 and this version of rarefy reads 1; update",
        sample[:1000] + sample[1001:]: "changed since it was written; fetch it again",
        sample[:-30]: "damaged or cut short; fetch it again",
    }
    for data, sentence in cases.items():
        path.write_bytes(data)
        with pytest.raises(FileError, match=sentence.replace("(", r"\(")):
            read(path)
    with pytest.raises(FileError, match=r"absent.rfy can't be opened: No such file"):
        read(tmp_path / "absent.rfy")
    with pytest.raises(FileError, match="can't be opened: Is a directory"):
        read(tmp_path)


@settings(max_examples=150)
@given(st.data())
def test_damage_behind_right_checksums_is_survived(
    sample: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """An attacker repairs the checksums: payloads and header are hostile, nothing may crash."""
    damaged = bytearray(sample[: -TRAILER.size - DIGEST])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(5, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    length = TRAILER.unpack_from(sample, len(sample) - TRAILER.size - DIGEST)[0]
    forged = bytes(damaged) + TRAILER.pack(length, zlib.crc32(damaged[-length:]))
    forged += hashlib.sha256(forged).digest()[:DIGEST]
    opened(tmp_path_factory.getbasetemp() / "forged.rfy", forged)


def header(draw: st.DrawFn) -> bytes:
    """A header of plausible form and arbitrary content."""
    count = draw(st.integers(0, 4))
    sizes = st.integers(0, 200) | st.sampled_from([1 << 20, 1 << 40, (1 << 62) - 1])
    ranks = [draw(st.integers(0, 4)) for _ in range(count)]
    lengths = [draw(st.integers(0, 9)) for _ in range(count)]
    parts = [
        bytes([draw(st.integers(0, 3))]),
        varint(draw(st.sampled_from([count, count, count, count + 1, 1 << 30]))),
        bytes(draw(st.integers(0, len(DTYPES))) for _ in range(count)),
        bytes(ranks),
        b"".join(varint(draw(sizes)) for rank in ranks for _ in range(rank)),
        b"".join(varint(draw(sizes)) for _ in range(count)),
        b"".join(varint(length) for length in lengths),
        varint(draw(st.integers(0, 5))),
        draw(st.binary(max_size=300)),
    ]
    return b"".join(parts)


@settings(max_examples=150)
@given(st.composite(header)(), st.binary(max_size=300))
def test_invented_headers_take_no_more_memory_than_they_state(
    tmp_path_factory: pytest.TempPathFactory, plain: bytes, payload: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "invented.rfy"
    data = sealed(payload, plain)
    tracemalloc.start()
    stated = opened(path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if stated < 1 << 32:
        assert peak < 10 * len(data) + max(stated, 0) + (1 << 20)


@settings(max_examples=60)
@given(st.data())
def test_forged_payloads_take_no_more_memory_than_stated(
    sample: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "greedy.rfy"
    shape = data.draw(st.sampled_from([(1_000_000,), (1000, 1000), (250_000, 4)]))
    dtype = data.draw(st.sampled_from(["int8", "float32", "bool", "complex64"]))
    payload = data.draw(st.binary(min_size=65, max_size=400))
    plain = b"".join([
        b"\0\1", bytes([DTYPES.index(dtype)]), bytes([len(shape)]),
        b"".join(varint(length) for length in shape), varint(2 * len(payload)), varint(1),
        varint(0), zlib.crc32(payload).to_bytes(4, "little"), b"a",
    ])  # fmt: skip
    forged = sealed(payload, plain)
    tracemalloc.start()
    stated = opened(path, forged)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stated == np.prod(shape) * np.dtype(dtype).itemsize
    assert peak < 10 * len(forged) + stated + (1 << 21)


def test_a_tensor_larger_than_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    payload = bytes(70)
    plain = b"\0\1" + bytes([DTYPES.index("float64"), 1]) + varint(1 << 55) + varint(140)
    plain += varint(1) + varint(0) + zlib.crc32(payload).to_bytes(4, "little") + b"a"
    (tmp_path / "a.rfy").write_bytes(sealed(payload, plain))
    with (
        read(tmp_path / "a.rfy") as archive,
        pytest.raises(FileError, match=r"for tensor 'a', more than this machine's memory"),
    ):
        archive["a"]


def test_a_header_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rfy").write_bytes(sealed(b"", bytes(3_000_000)))
    tracemalloc.start()
    with pytest.raises(FileError, match="impossible header: a field states 3000000"):
        read(tmp_path / "a.rfy")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
