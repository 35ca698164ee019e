# SPDX-License-Identifier: Apache-2.0
"""General compression: exact, headerless, with a dictionary, and never more than was asked for."""

import lzma
import random
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.dictionary import DICTIONARY
from rarefy.store.text import TextReader, compress, decompress

PROSE = "".join(
    random.Random(0).choices(["weight", "bias", "conv", ".", "_", "1", "2"], k=3000)
).encode()


@given(st.binary(max_size=500), st.binary(max_size=50), st.integers(1, 30))
def test_bytes_come_back(data: bytes, dictionary: bytes, times: int) -> None:
    whole = data * times
    packed = compress(whole, dictionary)
    assert decompress(packed, len(whole), dictionary) == whole
    assert len(packed) <= len(whole) + 1


def test_it_is_smaller_than_the_library_alone() -> None:
    packed = compress(PROSE)
    assert len(packed) < min(len(zlib.compress(PROSE, 9)), len(lzma.compress(PROSE, preset=9)))
    assert decompress(packed, len(PROSE)) == PROSE


def test_a_dictionary_pays_for_what_it_knows() -> None:
    known = b"\x05strides@\x01@\x01\xa0\x01\x07 layer1.0.conv1.weight running_mean"
    assert len(compress(known, DICTIONARY)) < 0.6 * len(compress(known))


def test_pieces_are_the_whole() -> None:
    for data in (PROSE, bytes(100_000), random.Random(1).randbytes(300)):
        reader = TextReader(compress(data), len(data))
        pieces = [reader.read(min(777, len(data) - start)) for start in range(0, len(data), 777)]
        assert b"".join(pieces) == data


def test_a_bomb_takes_no_more_than_the_size_it_states() -> None:
    packed = compress(bytes(5_000_000))
    assert len(packed) < 6_000
    for stated in (1_000, 100_000, 5_000_000):
        tracemalloc.start()
        assert decompress(packed, stated) == bytes(stated)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.2 * stated + 10 * len(packed) + 500_000


@pytest.mark.parametrize("data", [b"", b"\xff", b"\1\xff\xff", b"\2\xff\xff", b"\0ab", b"\5"])
def test_damage_is_told(data: bytes) -> None:
    with pytest.raises(FileError):
        decompress(data, 100)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 8), st.integers(0, 300))
def test_nothing_but_our_error_comes_out(data: bytes, method: int, size: int) -> None:
    with suppress(FileError):
        assert len(decompress(bytes([method]) + data, size)) == size
