# SPDX-License-Identifier: Apache-2.0
"""The relative index of Deep Compression: gaps of a fixed width, filled up with zeros.

S. Han, H. Mao, W. J. Dally, "Deep Compression", ICLR 2016 (arXiv:1510.00149), figure 2: the
difference of positions takes b bits; where it exceeds 2**b, a zero is stored as a filler. The paper
uses 8 bits in convolutions and 5 in fully connected layers. In `.rfy` files gaps are entropy-coded
with an escape instead, see `positions`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.store.bits import packed_bytes, unsigned_dtype


@dataclass(frozen=True)
class RelativeIndex:
    """Entries of one flat tensor: a gap and a value each, fillers included."""

    count: int  # values of the dense tensor
    bits: int  # width of a gap
    gaps: NDArray[Any]  # (entries,), zeros in front of the entry, at most 2**bits - 1
    values: NDArray[Any]  # (entries,), 0 for a filler

    @property
    def nbytes(self) -> int:
        """Bytes with packed gaps: values * itemsize + ceil(entries * bits / 8)."""
        return self.values.nbytes + packed_bytes(self.gaps.size, self.bits)

    def to_dense(self) -> NDArray[Any]:
        """The flat tensor, shape (count,)."""
        out = np.zeros(self.count, dtype=self.values.dtype)
        out[np.cumsum(self.gaps.astype(np.int64) + 1) - 1] = self.values
        return out


def relative_index(flat: NDArray[Any], bits: int) -> RelativeIndex:
    """Code the non-zeros of a flat tensor with `bits`-bit gaps.

    Examples:
        >>> index = relative_index(np.array([0, 5, 0, 0, 0, 0, 0, 7]), 2)
        >>> index.gaps.tolist(), index.values.tolist()
        ([1, 3, 1], [5, 0, 7])
    """
    span = 1 << bits
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=-1) - 1
    fillers = gaps // span
    ends = np.cumsum(fillers + 1) - 1
    entries = int(ends[-1]) + 1 if places.size else 0
    coded = np.full(entries, span - 1, dtype=unsigned_dtype(bits))
    coded[ends] = gaps % span
    values = np.zeros(entries, dtype=flat.dtype)
    values[ends] = flat[places]
    return RelativeIndex(flat.size, bits, coded, values)
