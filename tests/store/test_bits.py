# SPDX-License-Identifier: Apache-2.0
"""Bit packing: exact for every width and length, in exactly the bytes of the formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.bits import pack, pack_trits, packed_bytes, trit_bytes, unpack, unpack_trits


def bitwise(values: list[int], width: int) -> int:
    """The upper bits that do not fill bytes, one value after the other, by Python's integers."""
    return sum(value << place * width for place, value in enumerate(values))


@given(st.integers(0, 64), st.integers(0, 70), st.integers(0, 1000))
def test_every_width_and_length_comes_back(width: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << width, count, dtype=np.uint64, endpoint=not width)
    values &= np.uint64((1 << width) - 1)
    packed = pack(values, width)
    assert (
        len(packed)
        == packed_bytes(count, width)
        == -(-count * (width % 8) // 8) + count * (width // 8)
    )
    assert np.array_equal(unpack(packed, width, count).astype(np.uint64), values)


@given(st.integers(1, 24), st.lists(st.integers(0, (1 << 24) - 1), max_size=40), st.data())
def test_any_part_can_be_read_alone(width: int, values: list[int], data: st.DataObject) -> None:
    whole = np.array([value % (1 << width) for value in values], dtype=np.uint32)
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(start, whole.size))
    part = unpack(pack(whole, width), width, whole.size, start, stop)
    assert part.tolist() == whole[start:stop].tolist()


@given(st.integers(1, 7), st.lists(st.integers(0, 127), min_size=1, max_size=40))
def test_widths_below_a_byte_are_little_endian(width: int, values: list[int]) -> None:
    cut = [value % (1 << width) for value in values]
    packed = pack(np.array(cut, dtype=np.uint8), width)
    assert int.from_bytes(packed, "little") == bitwise(cut, width)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        pack(np.array([8]), 3)
    with pytest.raises(ValueError, match="do not fit"):
        pack(np.array([-1]), 8)


@given(st.lists(st.integers(0, 2), max_size=60), st.data())
def test_trits_take_five_a_byte(values: list[int], data: st.DataObject) -> None:
    packed = pack_trits(np.array(values, dtype=np.uint8))
    assert len(packed) == trit_bytes(len(values)) == -(-len(values) // 5)
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    assert unpack_trits(packed, len(values), start, stop).tolist() == values[start:stop]
    assert all(byte < 243 for byte in packed)


def test_damaged_packings_are_refused() -> None:
    with pytest.raises(FileError, match="can't be packed"):
        unpack(b"abc", 5, 9)
    with pytest.raises(FileError, match="can't be packed"):
        unpack_trits(b"abc", 5)
    with pytest.raises(FileError, match="no five ternary values"):
        unpack_trits(b"\xff", 5)
    with pytest.raises(ValueError, match="ternary values"):
        pack_trits(np.array([3]))
