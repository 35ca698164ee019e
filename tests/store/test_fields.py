# SPDX-License-Identifier: Apache-2.0
"""Integers of variable length, cursors and bit strings: exact, and never past the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import (
    BitReader,
    BitWriter,
    Cursor,
    read_increasing,
    unzigzag,
    varint,
    write_increasing,
    zigzag,
)

FIELDS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, (1 << 40) - 1), st.just(40)),
        st.tuples(st.just("golomb"), st.integers(0, 1 << 50), st.integers(0, 20)),
        st.tuples(st.just("number"), st.integers(0, (1 << 62) - 1), st.just(0)),
    ),
    max_size=60,
)


@given(st.integers(0, (1 << 62) - 1))
def test_a_varint_takes_seven_bits_a_byte(value: int) -> None:
    cursor = Cursor(varint(value) + b"rest")
    assert cursor.varint() == value
    assert bytes(cursor.take(cursor.remaining)) == b"rest"
    assert len(varint(value)) == max(1, -(-value.bit_length() // 7))


@given(st.integers(-(1 << 60), 1 << 60))
def test_zigzag_folds_by_magnitude(value: int) -> None:
    assert unzigzag(zigzag(value)) == value
    assert zigzag(value) // 2 == (value if value >= 0 else -value - 1)


@given(FIELDS)
def test_bit_fields_come_back_in_order(fields: list[tuple[str, int, int]]) -> None:
    writer = BitWriter()
    for kind, value, size in fields:
        getattr(writer, kind)(*(value, size)[: 1 if kind == "number" else 2])
    cursor = Cursor(b"xy" + writer.to_bytes() + b"z")
    cursor.take(2)
    reader = BitReader(cursor)
    for kind, value, size in fields:
        got = getattr(reader, "read" if kind == "write" else kind)(*([size] if size else []))
        assert got == value
    reader.close()
    assert bytes(cursor.take(1)) == b"z"


@given(st.integers(0, 1 << 40), st.integers(0, 30))
def test_golomb_codes_have_the_stated_length(value: int, order: int) -> None:
    writer = BitWriter()
    writer.golomb(value, order)
    bits = 2 * (value + (1 << order)).bit_length() - 1 - order
    assert len(writer.to_bytes()) == -(-bits // 8)


@given(st.lists(st.integers(0, 1 << 45), max_size=200), st.integers(0, 12), st.integers(0, 20))
def test_many_codes_are_the_same_bits_as_one_by_one(
    values: list[int], order: int, ahead: int
) -> None:
    many, single = BitWriter(), BitWriter()
    for writer in (many, single):
        writer.write(1, ahead + 1)
    many.golombs(values, order)
    for value in values:
        single.golomb(value, order)
    data = many.to_bytes()
    assert data == single.to_bytes()
    cursor = Cursor(data + b"z")
    reader = BitReader(cursor)
    reader.read(ahead + 1)
    assert reader.golombs(len(values), order) == values
    reader.close()
    assert bytes(cursor.take(cursor.remaining)) == b"z"


@given(st.sets(st.integers(0, (1 << 60) - 1), min_size=1, max_size=50))
def test_increasing_integers_come_back(values: set[int]) -> None:
    writer = BitWriter()
    write_increasing(writer, sorted(values))
    assert read_increasing(BitReader(Cursor(writer.to_bytes())), len(values)) == sorted(values)


def test_a_run_without_holes_costs_next_to_nothing() -> None:
    writer = BitWriter()
    write_increasing(writer, list(range(7, 263)))
    assert len(writer.to_bytes()) == 1


def test_nothing_is_read_past_the_end() -> None:
    with pytest.raises(FileError, match="5 bytes are announced where 3 are left"):
        Cursor(b"abc").take(5)
    with pytest.raises(FileError, match="announced"):
        Cursor(b"").byte()
    with pytest.raises(FileError, match="announced"):
        Cursor(b"\xff\xff").varint()
    with pytest.raises(FileError, match="no end"):
        Cursor(b"\xff" * 20).varint()
    with pytest.raises(FileError, match="at most 4"):
        Cursor(varint(5)).varint(4)
    with pytest.raises(FileError, match="over the end"):
        BitReader(Cursor(b"a")).read(9)
    with pytest.raises(FileError, match="no end"):
        BitReader(Cursor(bytes(20))).golomb()
    writer = BitWriter()
    writer.number(10)
    with pytest.raises(FileError, match="at most 9"):
        BitReader(Cursor(writer.to_bytes())).number(9)
    with pytest.raises(ValueError, match="not -1"):
        varint(-1)
