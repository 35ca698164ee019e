# SPDX-License-Identifier: Apache-2.0
"""Arrays to test codecs with: every dtype, odd shapes, every degree of sparsity and repetition."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from rarefy.store.keys import DTYPES, dtype_named, patterns

SMALL = {"bool": 1, "int2": 2, "int4": 4, "float4": 4, "float6": 6}
"""Bits that values of dtypes below a byte use of theirs."""


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and bool(np.array_equal(patterns(left), patterns(right)))
    )


def random_bits(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Values of any dtype with random bits: NaNs, infinities, subnormals, negative zeros."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape, dtype=np.int64))
    data = rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    small = next((bits for name, bits in SMALL.items() if name in dtype.name), 8)
    data &= (1 << small) - 1
    return data.view(dtype).reshape(shape)


def weights(shape: tuple[int, ...], keep: float, levels: int, seed: int = 0) -> NDArray[Any]:
    """Float32 weights like a network's: a share `keep` is not zero, `levels` values or (0) any."""
    rng = np.random.default_rng(seed)
    values = rng.normal(scale=0.05, size=shape).astype(np.float32)
    if levels:
        grid = np.linspace(-0.2, 0.2, levels).astype(np.float32)
        values = grid[
            np.clip(np.rint((values + 0.2) / 0.4 * (levels - 1)), 0, levels - 1).astype(int)
        ]
    return np.where(rng.random(shape) < keep, values, np.float32(0))


@st.composite
def arrays(draw: st.DrawFn, largest: int = 400) -> NDArray[Any]:
    """Any array that a file must hold: random bits, thinned out, quantised, or turned around."""
    dtype = dtype_named(draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 7), max_size=5).filter(lambda s: np.prod(s) <= largest))
    array = random_bits(dtype, tuple(shape), draw(st.integers(0, 1000)))
    if array.size and draw(st.booleans()):
        pool = array.reshape(-1)[: draw(st.integers(1, 9))]
        chosen = np.random.default_rng(array.size).integers(0, pool.size, array.shape)
        array = np.asarray(pool[chosen])
    if array.size and draw(st.booleans()):
        array = array.copy()
        array[np.random.default_rng(1).random(array.shape) < draw(st.floats(0, 1))] = 0
    return array.T if draw(st.booleans()) else array
