# SPDX-License-Identifier: Apache-2.0
"""Fixed-width packing: b bits a value for any b up to 64, and five ternary values a byte.

A width of b = 8 q + r bits is stored as q whole byte planes (lowest bits first), then the r upper
bits of eight values in r bytes, little-endian. The size is `packed_bytes(count, width)` exactly.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError

_PIECE = 1 << 17  # values packed together; eight of them fill whole bytes
_POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
_TRITS = (np.arange(256)[:, None] // _POWERS_OF_THREE.astype(np.int64) % 3).astype(np.uint8)


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `pack` needs for `count` values of `width` bits.

    Examples:
        >>> packed_bytes(11, 5)
        7
    """
    whole, odd = divmod(width, 8)
    return count * whole + (count * odd + 7) // 8


def pack(values: NDArray[Any], width: int) -> bytes:
    """Pack unsigned integers below `2**width`, one after the other without gaps.

    Args:
        values: shape (n,), any integer dtype.
        width: bits a value, 0 to 64.

    Raises:
        ValueError: a value does not fit into `width` bits.
    """
    fits = values.dtype.kind == "u" and 8 * values.dtype.itemsize <= width
    if values.size and not fits and (int(values.max()) >> width or int(values.min()) < 0):
        raise ValueError(f"values from {values.min()} to {values.max()} do not fit {width} bits")
    values = values.astype(unsigned_dtype(width), copy=False)
    whole, odd = divmod(width, 8)
    parts = [_byte_plane(values, plane).tobytes() for plane in range(whole)]
    if odd:
        upper = values.dtype.type(8 * whole)
        for start in range(0, values.size, _PIECE):
            parts.append(_pack_odd(values[start : start + _PIECE] >> upper, odd))
    return b"".join(parts)


def unpack(data: Any, width: int, count: int, start: int = 0, stop: int | None = None) -> Any:
    """Values `start` to `stop` of `count` packed ones, as the smallest unsigned dtype that fits.

    Raises:
        FileError: `data` is not `packed_bytes(count, width)` long.
    """
    stop = count if stop is None else stop
    if len(data) != packed_bytes(count, width):
        raise FileError(f"{count} values of {width} bits can't be packed in {len(data)} bytes")
    planes = np.frombuffer(data, dtype=np.uint8)
    whole, odd = divmod(width, 8)
    if whole == 1 and not odd:
        return planes[start:stop]
    out = np.zeros(stop - start, dtype=unsigned_dtype(width))
    for plane in range(whole):
        part = planes[plane * count + start : plane * count + stop].astype(out.dtype)
        out |= part << out.dtype.type(8 * plane)
    if odd:
        part = _unpack_odd(planes[whole * count :], odd, start, stop)
        out |= part.astype(out.dtype) << out.dtype.type(8 * whole)
    return out


def unsigned_dtype(width: int) -> np.dtype[Any]:
    """The smallest unsigned integer dtype that holds `width` bits."""
    return np.dtype(f"u{next(size for size in (1, 2, 4, 8) if width <= 8 * size)}")


def trit_bytes(count: int) -> int:
    """Bytes of `count` ternary values, five a byte (3**5 = 243 of 256 patterns; 1.6 bits each)."""
    return (count + 4) // 5


def pack_trits(values: NDArray[Any]) -> bytes:
    """Pack values 0, 1, 2 five a byte: the first value counts ones, the next threes and so on."""
    if values.size and int(values.max()) > 2:
        raise ValueError(f"ternary values are 0, 1 and 2, not {values.max()}")
    padded = np.zeros(5 * trit_bytes(values.size), dtype=np.uint8)
    padded[: values.size] = values
    return np.asarray(padded.reshape(-1, 5) @ _POWERS_OF_THREE, dtype=np.uint8).tobytes()


def unpack_trits(data: Any, count: int, start: int = 0, stop: int | None = None) -> Any:
    """Values `start` to `stop` of `count` ternary values.

    Raises:
        FileError: wrong length, or a byte above 242.
    """
    stop = count if stop is None else stop
    if len(data) != trit_bytes(count):
        raise FileError(f"{count} ternary values can't be packed in {len(data)} bytes")
    first = start // 5
    packed = np.frombuffer(data, dtype=np.uint8)[first : (stop + 4) // 5]
    if packed.size and packed.max() > 242:
        raise FileError(f"byte {packed.max()} holds no five ternary values")
    return _TRITS[packed].reshape(-1)[start - 5 * first : stop - 5 * first]


def _byte_plane(values: NDArray[Any], plane: int) -> NDArray[np.uint8]:
    if values.dtype.itemsize == 1:
        return values.view(np.uint8)
    contiguous = np.ascontiguousarray(values)
    if sys.byteorder == "little":
        return contiguous.view(np.uint8)[plane :: values.dtype.itemsize]
    return contiguous.view(np.uint8)[values.dtype.itemsize - 1 - plane :: values.dtype.itemsize]


def _pack_odd(values: NDArray[Any], width: int) -> bytes:
    """Eight values of `width` < 8 bits into `width` bytes."""
    octets = np.zeros((values.size + 7) // 8 * 8, dtype=np.uint8)
    octets[: values.size] = values
    joined = octets.view("<u8").astype(np.uint64, copy=False)
    for size, lane, low in reversed(_steps(width)):
        upper = joined >> np.uint64(size - lane)
        upper &= low << np.uint64(lane)
        joined &= low
        joined |= upper
    packed = joined.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width]
    return packed.tobytes()[: (values.size * width + 7) // 8]


def _unpack_odd(data: NDArray[np.uint8], width: int, start: int, stop: int) -> NDArray[np.uint8]:
    first, last = start // 8, (stop + 7) // 8
    span = data[first * width : last * width]
    filled = np.zeros((last - first) * width, dtype=np.uint8)
    filled[: span.size] = span
    octets = np.zeros((last - first, 8), dtype=np.uint8)
    octets[:, :width] = filled.reshape(-1, width)
    joined = octets.reshape(-1).view("<u8").astype(np.uint64)
    for size, lane, low in _steps(width):
        joined = (joined & low) | ((joined << np.uint64(size - lane)) & (low << np.uint64(size)))
    return joined.astype("<u8").view(np.uint8)[start - 8 * first : stop - 8 * first]


def _steps(width: int) -> list[tuple[int, int, np.uint64]]:
    """How eight values of `width` bits in one 64-bit word part, by halves, until each has a byte.

    Each step is (bits of a lane's new place, bits that are in use there, mask of the lower lanes).
    """
    steps = []
    for size, lane in ((32, 4 * width), (16, 2 * width), (8, width)):
        low = sum(((1 << lane) - 1) << place for place in range(0, 64, 2 * size))
        steps.append((size, lane, np.uint64(low)))
    return steps
