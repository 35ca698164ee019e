# SPDX-License-Identifier: Apache-2.0
"""Many exponential-Golomb codes at once: ends are looked up, values are cut out together."""

import numpy as np
from numpy.typing import NDArray

from rarefy.store.compiled import loops

_WIDEST = 57
"""Bits that a word of 64 surely holds from any bit of its first byte on."""


def golomb_codes(data: bytes, place: int, count: int, order: int) -> tuple[list[int], int]:
    """Codes of one order from the bit `place` of `data` on, and the bit behind the last of them.

    Returns:
        `count` integers; fewer where the bytes end before or where a code is longer than 57 bits.
    """
    octets, fast = np.frombuffer(data, dtype=np.uint8), loops()
    if fast is not None:
        out = np.empty(min(count, 8 * octets.size), dtype=np.int64)
        found, place = fast.golombs(octets, place, order, _WIDEST, out)
        return out[:found].tolist(), place
    starts, ones = _chain(octets, place, count, order)
    sizes = ones - starts + (order + 1)
    if sizes.max(initial=0) > _WIDEST:
        short = int(np.argmax(sizes > _WIDEST))
        ones, sizes = ones[:short], sizes[:short]
    if not sizes.size:
        return [], place
    words = np.ndarray((octets.size,), ">u8", data + bytes(8), strides=(1,))[ones >> 3]
    bits = words.astype(np.uint64) << (ones & 7).astype(np.uint64)
    values = (bits >> (64 - sizes).astype(np.uint64)).astype(np.int64) - (1 << order)
    return values.tolist(), int(ones[-1] + sizes[-1])


def _chain(
    data: NDArray[np.uint8], place: int, count: int, order: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where codes start and where their first ones stand; the zeros between tell where each ends."""
    bits = np.unpackbits(data)
    positions = np.arange(bits.size, dtype=np.int32)
    ones = np.where(bits, positions, np.int32(bits.size))
    ones = np.minimum.accumulate(ones[::-1])[::-1]
    ends = (2 * ones - positions + (order + 1)).tolist()
    starts: list[int] = []
    limit, take = len(ends), starts.append
    for _ in range(count):
        if place >= limit or (end := ends[place]) > limit:
            break
        take(place)
        place = end
    begun = np.array(starts, dtype=np.int64)
    return begun, ones[begun].astype(np.int64)
