# SPDX-License-Identifier: Apache-2.0
"""A run of small integers in its cheapest form: constant, fixed width, ternary, Huffman, ANS or LZ.

The encoder computes from the histogram what every form costs; short runs are coded in all forms and
the shortest is kept. A run is self-contained: three bits for the form, its parameters, then the
coded symbols. A run of no symbols, or over an alphabet of one, takes no bytes at all.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.store import ans, frequencies, huffman
from rarefy.store.bits import pack, pack_trits, trit_bytes
from rarefy.store.fields import BitWriter
from rarefy.store.runs import (
    ANS,
    BERNOULLI,
    CONSTANT,
    FIXED,
    GEOMETRIC,
    HUFFMAN,
    LZ,
    TERNARY,
)
from rarefy.store.smooth import smooth
from rarefy.store.text import compress

CODERS = ("auto", "huffman", "ans", "raw", "mixing")
"""What a caller may ask for; "raw" stores the bytes of a tensor as they are, "mixing" is slow."""

_SHORT, _FEW = 1 << 12, 1 << 8
_DOUBT = 16
"""Bits by which the estimates of two forms may err against each other."""

_SAMPLE = 1 << 13


@dataclass(frozen=True)
class Plan:
    """One way to write a run: its cost in bits, its parameters, its coded symbols."""

    form: int
    bits: float
    head: Callable[[BitWriter], None]
    body: Callable[[NDArray[Any]], bytes]


def plans(counts: NDArray[np.int64], coder: str = "auto", law: int | None = None) -> list[Plan]:
    """Every form that the coder allows, cheapest first.

    Args:
        counts: shape (alphabet,), how often each symbol occurs; at least one is positive.
        coder: "auto", "huffman" or "ans".
        law: `GEOMETRIC` or `BERNOULLI` where the symbols may follow such a law.
    """
    used = counts.nonzero()[0]
    first, last, total = int(used[0]), int(used[-1]), int(counts.sum())
    if first == last:
        return [Plan(CONSTANT, 12, lambda writer: writer.golomb(first, 4), lambda symbols: b"")]
    found = [_fixed(first, last, total)]
    if last - first == 2:
        found.append(_ternary(first, total))
    dense = counts[first : last + 1]
    # Bits of a table at the very least: counts that differ take two or more each.
    table = 40 + (max(dense.size, 2 * used.size) if law is None else 0)
    information = frequencies.entropy(counts)
    if max(information + table, 1.002 * information) >= min(plan.bits for plan in found):
        return sorted(found, key=lambda plan: plan.bits)
    if dense.size <= frequencies.MOST_SYMBOLS:
        # Huffman codes win over ANS by a shorter table only, so not in long runs.
        if coder == "huffman" or (coder == "auto" and total <= _FEW and dense.size <= 64):
            found.append(_huffman(dense, first))
        if coder in ("auto", "ans"):
            found.append(_ans(dense, first))
            found += [_one_parameter(counts, law)] if law is not None else []
    return sorted(found, key=lambda plan: plan.bits)


@dataclass(frozen=True)
class Coded:
    """What something will cost, in bits, and its bytes on demand, piece by piece."""

    bits: float
    pieces: Callable[[], Iterable[bytes]]

    def encode(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces())


def plan_run(
    symbols: Callable[[], NDArray[Any]],
    counts: NDArray[np.int64],
    coder: str,
    law: int | None = None,
) -> Coded:
    """Plan a run in its cheapest form; `runs.open_run` reads it.

    Args:
        symbols: gives the run, shape (n,), non-negative integers below the alphabet's size.
        counts: its histogram over the alphabet, shape (alphabet,).
        coder: "auto", "huffman" or "ans".
        law: as in `plans`.
    """
    total = int(counts.sum())
    if not total or counts.size == 1:
        return Coded(0, lambda: [])
    candidates = plans(counts, coder, law)
    close = candidates[0].bits + (_DOUBT if total <= _SHORT else 0)

    def encode() -> list[bytes]:
        run = symbols()
        tried = [plan for plan in candidates if plan.bits <= close]
        if coder == "auto" and counts.size <= 256 and _repeats(run, candidates[0].bits):
            tried = [*tried, _lz()]
        return min((_write(plan, run) for plan in tried), key=lambda parts: sum(map(len, parts)))

    return Coded(candidates[0].bits, encode)


def plan_fixed(symbols: Callable[[], NDArray[Any]], width: int, total: int) -> Coded:
    """Plan a run of `total` symbols in `width` bits each, where no other form would pay."""
    plan = _fixed(0, (1 << width) - 1, total)
    return Coded(plan.bits, lambda: _write(plan, symbols()))


def _write(plan: Plan, symbols: NDArray[Any]) -> list[bytes]:
    body, writer = plan.body(symbols), BitWriter()
    writer.write(plan.form, 3)
    plan.head(writer)
    if plan.form in (ANS, GEOMETRIC, BERNOULLI, LZ):
        writer.number(len(body))
    return [writer.to_bytes(), body]


def _fixed(first: int, last: int, total: int) -> Plan:
    width = (last - first).bit_length()

    def head(writer: BitWriter) -> None:
        writer.golomb(first)
        writer.write(width, 6)

    return Plan(FIXED, 16 + total * width, head, lambda symbols: pack(symbols - first, width))


def _ternary(first: int, total: int) -> Plan:
    return Plan(
        TERNARY,
        12 + 8 * trit_bytes(total),
        lambda writer: writer.golomb(first),
        lambda symbols: pack_trits(symbols - first),
    )


def _huffman(counts: NDArray[np.int64], first: int) -> Plan:
    lengths = huffman.code_lengths(counts)
    table = smooth(lengths.astype(np.int64))

    def head(writer: BitWriter) -> None:
        writer.golomb(first)
        writer.golomb(counts.size - 1, 4)
        table.write(writer)

    bits = 16 + table.bits + 8 * huffman.encoded_bytes(counts, lengths)
    return Plan(HUFFMAN, bits, head, lambda symbols: huffman.encode(symbols - first, lengths))


def _ans(counts: NDArray[np.int64], first: int) -> Plan:
    table = frequencies.counted(counts)

    def head(writer: BitWriter) -> None:
        writer.golomb(first)
        writer.golomb(counts.size - 1, 4)
        table.write(writer)

    return Plan(
        ANS, 56 + table.bits, head, lambda symbols: ans.encode(symbols - first, table.frequencies)
    )


def _one_parameter(counts: NDArray[np.int64], law: int) -> Plan:
    """Gaps that are independent (the last symbol is the escape), or bytes of independent bits."""
    places = np.arange(counts.size)
    if law == GEOMETRIC:
        ended = int(counts[:-1].sum())
        parameter = _sixteen_bits(ended, ended + int(counts @ places))
        table = frequencies.geometric(parameter, counts.size)
    else:
        width = counts.size.bit_length() - 1
        ones = int(counts @ np.array([int(place).bit_count() for place in places]))
        parameter = _sixteen_bits(ones, int(counts.sum()) * width)
        table = frequencies.bernoulli(parameter, width)
    return Plan(
        law,
        72 + frequencies.information(counts, table),
        lambda writer: writer.write(parameter, 16),
        lambda symbols: ans.encode(symbols, table),
    )


def _sixteen_bits(part: int, whole: int) -> int:
    return min(max(round(65536 * part / max(whole, 1)), 1), 65535)


def _lz() -> Plan:
    def body(symbols: NDArray[Any]) -> bytes:
        return compress(symbols.astype(np.uint8).tobytes())

    return Plan(LZ, 0.0, lambda writer: None, body)


def _repeats(symbols: NDArray[Any], bits: float) -> bool:
    """Whether a sample from the middle is worth compressing as bytes that repeat."""
    length = min(max(symbols.size >> 5, _SAMPLE), 8 * _SAMPLE)
    start = max((symbols.size - length) // 2, 0)
    sample = symbols[start : start + length].astype(np.uint8).tobytes()
    share = bits / 8 * len(sample) / symbols.size
    return len(sample) >= 64 and len(zlib.compress(sample, 1)) < 0.8 * share
