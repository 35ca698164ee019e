# SPDX-License-Identifier: Apache-2.0
"""Runs of symbols: every form comes back, the estimate holds, the cheapest form is taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import BitWriter, Cursor
from rarefy.store.frequencies import entropy
from rarefy.store.runs import BERNOULLI, FIXED, GEOMETRIC, LZ, open_run
from rarefy.store.symbols import plan_run, plans


def coded(symbols: np.ndarray, alphabet: int, coder: str = "auto", law: int | None = None) -> bytes:
    counts = np.bincount(symbols, minlength=alphabet)
    return plan_run(lambda: symbols, counts, coder, law).encode()


def decoded(data: bytes, count: int, alphabet: int) -> tuple[list[int], str]:
    cursor = Cursor(data + b"end")
    reader = open_run(cursor, count, alphabet)
    assert bytes(cursor.take(cursor.remaining)) == b"end"
    half = count // 2
    return reader.read(half).tolist() + reader.read(count - half).tolist(), reader.coding


@given(
    st.lists(st.integers(0, 299), max_size=120),
    st.integers(300, 400),
    st.sampled_from(["auto", "huffman", "ans"]),
    st.sampled_from([None, GEOMETRIC]),
)
def test_every_run_comes_back(message: list[int], alphabet: int, coder: str, law: int) -> None:
    symbols = np.array(message, dtype=np.uint16)
    data = coded(symbols, alphabet, coder, law)
    assert decoded(data, len(message), alphabet)[0] == message
    assert data or not message


@pytest.mark.parametrize(
    ("name", "symbols", "alphabet", "law"),
    [
        ("constant", np.full(500, 7), 9, None),
        ("fixed", np.random.default_rng(1).integers(100, 132, 4000), 200, None),
        ("ternary", np.random.default_rng(2).integers(250, 253, 4000), 253, None),
        ("ans", np.random.default_rng(0).geometric(0.3, 5000), 64, None),
        ("ans", np.random.default_rng(0).geometric(0.3, 5000), 64, GEOMETRIC),
        (
            "ans",
            (np.random.default_rng(0).random((900, 8)) < 0.1) @ (1 << np.arange(8)),
            256,
            BERNOULLI,
        ),
        ("lz", np.tile(np.random.default_rng(0).integers(0, 200, 700), 20), 256, None),
    ],
)
def test_each_kind_of_run_gets_its_form(
    name: str, symbols: np.ndarray, alphabet: int, law: int | None
) -> None:
    data = coded(symbols, alphabet, law=law)
    message, coding = decoded(data, symbols.size, alphabet)
    assert message == symbols.tolist()
    assert coding == name


def test_huffman_is_what_the_caller_asked_for() -> None:
    symbols = np.random.default_rng(0).geometric(0.3, 50_000)
    sizes = {}
    for coder in ("huffman", "ans"):
        data = coded(symbols, 64, coder)
        assert decoded(data, symbols.size, 64) == (symbols.tolist(), coder)
        sizes[coder] = len(data)
    assert sizes["ans"] < sizes["huffman"]


@pytest.mark.parametrize("law", [None, GEOMETRIC])
@pytest.mark.parametrize("count", [50, 1000, 30_000])
def test_estimates_are_exact_to_a_few_bytes(count: int, law: int | None) -> None:
    symbols = np.random.default_rng(count).geometric(0.2, count).clip(max=63)
    counts = np.bincount(symbols, minlength=64)
    plan = plan_run(lambda: symbols, counts, "auto", law)
    assert len(plan.encode()) == pytest.approx(plan.bits / 8, abs=8)
    assert plan.bits <= entropy(counts) * 1.02 + 8 * 40


def test_independent_bits_need_no_table() -> None:
    bits = np.random.default_rng(3).random((20_000, 8)) < 0.08
    octets = bits @ (1 << np.arange(8))
    share = bits.mean()
    bound = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) * bits.size / 8
    assert len(coded(octets, 256, law=BERNOULLI)) < 1.003 * bound + 8


def test_the_cheapest_plan_comes_first() -> None:
    for counts in ([5, 0, 1], [1000, 1], [7] * 32, [0, 0, 4]):
        bits = [plan.bits for plan in plans(np.array(counts))]
        assert bits == sorted(bits)


def test_damaged_runs_are_refused() -> None:
    writer = BitWriter()
    writer.write(FIXED, 3)
    writer.golomb(250)
    writer.write(4, 6)
    reader = open_run(Cursor(writer.to_bytes() + b"\xff" * 5), 10, 256)
    with pytest.raises(FileError, match="less than 256"):
        reader.read(10)
    for form in range(8):
        with pytest.raises(FileError):
            open_run(Cursor(bytes([form << 5])), 1000, 10).read(1000)
    writer = BitWriter()
    writer.write(LZ, 3)
    writer.number(2)
    with pytest.raises(FileError, match="ends after"):
        open_run(Cursor(writer.to_bytes() + b"\0a"), 5, 256).read(5)
