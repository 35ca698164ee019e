# SPDX-License-Identifier: Apache-2.0
"""The compiled loops against what they replace: the same symbols, values and places, damaged or not."""

import subprocess
import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rarefy.store import compiled, ladder
from rarefy.store.ans import AnsReader, encode
from rarefy.store.coding import encode_tensor
from rarefy.store.contexts import context_of
from rarefy.store.decoding import coding_name, decode_tensor
from rarefy.store.fields import Cursor
from rarefy.store.golomb import golomb_codes
from rarefy.store.scales import Scales
from rarefy.store.trellis import NEXT, integers_along

LOOPS = compiled.load()
assert LOOPS is not None, "numba is missing: install the extra `test`"


def plain() -> Any:
    """Nothing is compiled inside."""
    return mock.patch.object(compiled, "_read", -(1 << 60))


def fast() -> Any:
    """Everything is compiled inside."""
    return mock.patch.object(compiled, "_read", compiled.WORTH)


@given(st.binary(max_size=60), st.integers(2, 3000), st.integers(0, 1 << 30))
def test_any_bytes_are_the_same_symbols(data: bytes, alphabet: int, seed: int) -> None:
    data, rng = data.rstrip(b"\0"), np.random.default_rng(seed)
    table = rng.integers(1, 1 + rng.integers(1, 1000, alphabet) ** 2)
    found = []
    for way in (plain(), fast()):
        with way:
            reader = AnsReader(Cursor(data), len(data), table)
            found.append([reader.read(count).tolist() for count in (1, 50, 0, 7)])
    assert found[0] == found[1]


@pytest.mark.parametrize("spread", [0.4, 30.0, 900.0])
def test_a_long_message_comes_back(spread: float) -> None:
    symbols = np.abs(np.rint(np.random.default_rng(0).normal(scale=spread, size=60_000)))
    symbols = symbols.astype(np.int32)
    table = np.bincount(symbols) + 1
    data = encode(symbols, table)
    with fast():
        reader = AnsReader(Cursor(data), len(data), table)
        pieces = [reader.read(count) for count in (3, 20_000, 39_997)]
    assert np.array_equal(np.concatenate(pieces), symbols)


@given(st.data())
def test_symbols_find_the_places_of_their_contexts(data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    scales = Scales(*(rng.integers(-40, 41, size).astype(np.int8) for size in sizes))
    low, contexts = data.draw(st.integers(-60, 60)), data.draw(st.integers(1, 64))
    context = context_of(scales, low, contexts, 0, sizes[0])
    counts = np.bincount(context, minlength=contexts)
    coded = rng.integers(0, 1000, context.size).astype(np.int32)
    expected = np.empty_like(coded)
    expected[np.argsort(context, kind="stable")] = coded
    assert LOOPS.counted(*scales, low, contexts).tolist() == counts.tolist()
    found = LOOPS.placed(coded, counts.cumsum() - counts, *scales, low)
    assert np.array_equal(found, expected)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 200), st.integers(0, 1 << 30))
def test_a_trellis_is_followed(rows: int, width: int, largest: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(-largest, largest + 1, (rows, width))
    symbols = (2 * np.abs(indices) - (indices < 0)).astype(np.int32).reshape(-1)
    whole = np.arange(2 * largest + 1)
    whole = np.where(whole & 1, -(whole + 1 >> 1), whole >> 1)
    values = np.stack([2 * whole, 2 * whole - np.sign(whole)], 1).reshape(-1)
    found = LOOPS.along(symbols, width, NEXT, values)
    assert np.array_equal(found.reshape(rows, width), integers_along(indices))


@given(st.integers(1, 5), st.sampled_from([1, 2, 8, 128]), st.integers(1, 300), st.integers(0, 99))
def test_a_ladder_has_the_same_frequencies(
    contexts: int, length: int, magnitudes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rungs = rng.integers(-ladder.RUNGS, ladder.RUNGS + 1, (contexts, length))
    with plain():
        expected = ladder.ladder_frequencies(rungs, magnitudes)
    with fast():
        found = ladder.ladder_frequencies(rungs, magnitudes)
    assert np.array_equal(found, expected)


@given(st.binary(min_size=1, max_size=80), st.integers(0, 7), st.integers(0, 90), st.integers(0, 7))
def test_codes_end_where_they_ended(data: bytes, place: int, count: int, order: int) -> None:
    zeros = bytes(9)  # longer than any code that is read
    for octets in (data, data + zeros + data):
        with plain():
            expected = golomb_codes(octets, place, count, order)
        with fast():
            assert golomb_codes(octets, place, count, order) == expected


def _trellis(rng: np.random.Generator) -> NDArray[np.float32]:
    indices = np.rint(rng.normal(size=(60, 90)) * np.exp(rng.normal(size=(60, 1)))).astype(int)
    return integers_along(indices).astype(np.float32) * np.float32(0.01)


def _lattice(rng: np.random.Generator) -> NDArray[np.float32]:
    scales = np.exp(rng.normal(size=(64, 1, 1)) + rng.normal(size=(1, 40, 1)))
    return (np.rint(rng.normal(size=(64, 40, 9)) * scales) * 0.03).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "coding"), [(_trellis, "trellis"), (_lattice, "contexts"), (None, "planes")]
)
def test_a_tensor_is_the_same_bits(make: object, coding: str) -> None:
    rng = np.random.default_rng(0)
    array = make(rng) if callable(make) else rng.normal(size=(100, 80)).astype(np.float32)
    data = encode_tensor(array)
    assert coding in coding_name(data, array.dtype, array.shape)
    for way in (plain(), fast()):
        with way:
            assert np.array_equal(decode_tensor(data, array.dtype, array.shape), array)


def test_loops_are_compiled_once_enough_was_read() -> None:
    assert compiled.loops(compiled.WORTH - 1) is None
    assert compiled.loops() is None
    assert compiled.loops(1) is compiled.load()
    assert compiled.loops() is compiled.load()


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_without_numba_nothing_is_compiled() -> None:
    code = (
        "import sys; sys.modules['numba'] = None;"
        "from rarefy.store import compiled; print(compiled.loops(compiled.WORTH))"
    )
    assert printed(code) == "None"


def test_a_small_file_does_not_load_numba() -> None:
    code = (
        "import sys; from rarefy.store.decoding import decode_tensor;"
        "import numpy as np; from rarefy.store.coding import encode_tensor;"
        "a = np.arange(9000.).reshape(90, 100).round(-2);"
        "same = (decode_tensor(encode_tensor(a), a.dtype, a.shape) == a).all();"
        "print(same, 'numba' in sys.modules)"
    )
    assert printed(code) == "True False"
