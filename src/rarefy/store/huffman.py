# SPDX-License-Identifier: Apache-2.0
"""Canonical, length-limited Huffman codes with a table-driven decoder over interleaved lanes.

D. A. Huffman, "A method for the construction of minimum-redundancy codes", Proc. IRE 1952;
lengths by package-merge: L. Larmore, D. Hirschberg, "A fast algorithm for optimal length-limited
Huffman codes", J. ACM 1990. Only the code lengths are stored.

Symbol i belongs to lane i mod K; every lane is one run of bits, and the runs follow each other
without gaps. A decoder takes one symbol from each lane at a time, so that numpy does K look-ups at
once; a short message has one lane and pays nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.bits import pack, packed_bytes, unpack
from rarefy.store.fields import Cursor, varint

LIMIT = 15
"""Longest code in a file, in bits: the decoder's table has 2**15 entries at most."""

_SYMBOLS_A_LANE = 512
_MOST_LANES = 1 << 13


def code_lengths(counts: NDArray[Any], limit: int = LIMIT) -> NDArray[np.uint8]:
    """Lengths of an optimal prefix code none of whose words is longer than `limit` bits.

    Args:
        counts: shape (alphabet,), how often each symbol occurs; 0 gives length 0 (no code).
        limit: longest code word in bits.

    Returns:
        Shape (alphabet,). The lengths l of used symbols satisfy Kraft's equality
        sum(2**-l) = 1, except that a lone symbol has length 1.

    Raises:
        ValueError: more than `2**limit` symbols occur.
    """
    lengths = np.zeros(counts.size, dtype=np.uint8)
    used = np.flatnonzero(counts)
    if used.size > 1 << limit:
        raise ValueError(f"{used.size} symbols have no code of at most {limit} bits")
    if used.size < 2:
        lengths[used] = 1
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    weights = counts[order].astype(np.int64)
    merged, leaf_flags = weights, [np.ones(weights.size, dtype=bool)]
    for _ in range(min(limit, used.size - 1) - 1):  # no code of n words needs n bits
        pairs = merged[: merged.size // 2 * 2].reshape(-1, 2).sum(axis=1)
        both = np.concatenate([weights, pairs])
        rank = np.argsort(both, kind="stable")
        merged = both[rank]
        leaf_flags.append(rank < weights.size)
    taken = 2 * used.size - 2
    for leaves in reversed(leaf_flags):
        chosen = int(np.count_nonzero(leaves[:taken]))
        lengths[order[:chosen]] += 1
        taken = 2 * (taken - chosen)
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Code words from lengths: ordered by length, then by symbol, each one above the last.

    Examples:
        >>> canonical_codes(np.array([2, 1, 3, 3], dtype=np.uint8)).tolist()
        [2, 0, 6, 7]
    """
    codes = np.zeros(lengths.size, dtype=np.uint32)
    order = [int(s) for s in np.argsort(lengths, kind="stable") if lengths[s]]
    code, last = 0, 0
    for symbol in order:
        length = int(lengths[symbol])
        code <<= length - last
        codes[symbol] = code
        code, last = code + 1, length
    return codes


def lane_count(count: int) -> int:
    """Lanes of a message of `count` symbols: one below 8192 symbols, then one for every 512."""
    return 1 if count < 16 * _SYMBOLS_A_LANE else min(count // _SYMBOLS_A_LANE, _MOST_LANES)


def encoded_bytes(counts: NDArray[Any], lengths: NDArray[np.uint8]) -> float:
    """Bytes that `encode` yields, the lanes' table estimated at nine bits a lane."""
    lanes = lane_count(int(counts.sum()))
    return float(counts @ lengths.astype(np.int64)) / 8 + 3 + (lanes > 1) * (9 * lanes / 8 + 3)


def encode(symbols: NDArray[Any], lengths: NDArray[np.uint8]) -> bytes:
    """Code words of all symbols, preceded by the number of bits of each lane.

    Args:
        symbols: shape (n,), n > 0, each with a non-zero entry in `lengths`.
        lengths: as `code_lengths` gives them, at most `LIMIT`.
    """
    lanes = lane_count(symbols.size)
    steps = -(-symbols.size // lanes)
    order = np.arange(steps * lanes).reshape(steps, lanes).T.reshape(-1)
    ordered = symbols[order[order < symbols.size]] if lanes > 1 else symbols
    widths = lengths[ordered].astype(np.int64)
    ends = np.cumsum(widths)
    full = np.arange(lanes) < symbols.size - (steps - 1) * lanes
    borders = ends[np.cumsum(np.where(full, steps, steps - 1)) - 1]
    table = varint(int(ends[-1]))
    if lanes > 1:
        bits = np.diff(borders, prepend=0)
        extra = bits - bits.min()
        width = int(extra.max()).bit_length()
        table += varint(int(bits.min())) + varint(width) + pack(extra, width)
    return table + _write_codes(canonical_codes(lengths)[ordered], widths, ends)


def _write_codes(codes: NDArray[np.uint32], widths: NDArray[np.int64], ends: Any) -> bytes:
    """Join code words of at most 15 bits: each starts in one 32-bit word and may reach the next."""
    starts = ends - widths
    words = starts >> 5
    shifts = (64 - (starts & 31) - widths).astype(np.uint64)
    firsts = np.flatnonzero(np.diff(words, prepend=-1))
    joined = np.add.reduceat(codes.astype(np.uint64) << shifts, firsts)
    out = np.zeros(int(words[-1]) + 2, dtype=np.uint64)
    out[:-1] = joined >> np.uint64(32)
    out[1:] += joined & np.uint64(0xFFFFFFFF)
    return out.astype(">u4").tobytes()[: (int(ends[-1]) + 7) // 8]


class HuffmanReader:
    """Yields the symbols of one `encode`d message in their order, any number at a time."""

    coding = "huffman"

    def __init__(self, cursor: Cursor, count: int, lengths: NDArray[np.uint8]) -> None:
        """Take the message of `count` > 0 symbols from the cursor.

        Raises:
            FileError: lengths that are no complete prefix code, or lanes that do not fill the bits.
        """
        used = lengths[lengths > 0].astype(np.int64)
        kraft = int((1 << (LIMIT - used)).sum()) if used.max(initial=0) <= LIMIT else 0
        if kraft != 1 << LIMIT and used.tolist() != [1]:
            raise FileError("Huffman code lengths do not form a complete prefix code")
        self._depth = int(used.max())
        self._symbols, self._lengths = _look_up(lengths, self._depth)
        bits = cursor.varint(8 * cursor.remaining)
        self._lanes = lane_count(count)
        self._left, self._ready = count, np.zeros(0, dtype=np.uint16)
        self._positions = _lane_starts(cursor, self._lanes, bits)
        data = np.frombuffer(bytes(cursor.take((bits + 7) // 8)) + bytes(4), dtype=np.uint8)
        self._windows = data[:-3].astype(np.uint32)
        for following in range(1, 4):
            self._windows <<= np.uint32(8)
            self._windows |= data[following : data.size - 3 + following]

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` symbols, dtype uint16."""
        pieces, have = [self._ready], self._ready.size
        while have < count:
            pieces.append(self._one_lane(count - have) if self._lanes == 1 else self._step())
            have += pieces[-1].size
        joined = np.concatenate(pieces)
        self._ready = joined[count:]
        return joined[:count]

    def _step(self) -> NDArray[np.uint16]:
        """Up to 64 symbols from each lane."""
        steps = min(64, -(-self._left // self._lanes))
        out = np.empty((steps, self._lanes), dtype=np.uint16)
        position, mask = self._positions, np.uint32((1 << self._depth) - 1)
        for row in out:
            window = self._windows.take(position >> 3, mode="clip")
            window >>= (32 - self._depth - (position & 7)).astype(np.uint32)
            window &= mask
            self._symbols.take(window, out=row)
            position += self._lengths.take(window)
        count = min(self._left, out.size)
        self._left -= count
        return out.reshape(-1)[:count]

    def _one_lane(self, count: int) -> NDArray[np.uint16]:
        depth, mask = self._depth, (1 << self._depth) - 1
        # Python's own lists: one numpy scalar look-up costs more than the whole step.
        windows, symbols, lengths = (
            table.tolist() for table in (self._windows, self._symbols, self._lengths)
        )
        position, last = int(self._positions[0]), len(windows) - 1
        out = []
        for _ in range(count):
            window = windows[min(position >> 3, last)] >> (32 - depth - (position & 7)) & mask
            out.append(symbols[window])
            position += lengths[window]
        self._positions[0] = position
        return np.array(out, dtype=np.uint16)


def _lane_starts(cursor: Cursor, lanes: int, bits: int) -> NDArray[np.int64]:
    if lanes == 1:
        return np.zeros(1, dtype=np.int64)
    least = cursor.varint(bits)
    width = cursor.varint(32)
    extra = unpack(cursor.take(packed_bytes(lanes, width)), width, lanes).astype(np.int64)
    if int(extra.sum()) + lanes * least != bits:
        raise FileError(f"{lanes} Huffman lanes do not add up to {bits} bits")
    return np.concatenate([[0], np.cumsum(extra[:-1] + least)])


def _look_up(lengths: NDArray[np.uint8], depth: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Symbol and code length for every possible run of `depth` bits."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    repeats = 1 << (depth - lengths[order].astype(np.int64))
    symbols = np.repeat(order, repeats).astype(np.uint16)
    widths = np.repeat(lengths[order], repeats).astype(np.int64)
    return np.resize(symbols, 1 << depth), np.resize(widths, 1 << depth)
