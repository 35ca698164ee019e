# SPDX-License-Identifier: Apache-2.0
"""Single bits: they come back, take their information, and end in no byte too many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.binary import ONE, BitDecoder, BitEncoder
from rarefy.store.fields import Cursor

decisions = st.lists(st.tuples(st.integers(0, 1), st.integers(1, ONE - 1)), max_size=300)


def message_of(decisions: list[tuple[int, int]]) -> bytes:
    """The bits coded under their chances."""
    coder = BitEncoder()
    for bit, chance in decisions:
        assert coder.code(bit, chance) == bit
    return coder.message()


@given(decisions)
def test_bits_come_back(decisions: list[tuple[int, int]]) -> None:
    message = message_of(decisions)
    decoder = BitDecoder(Cursor(message), len(message))
    assert [decoder.code(0, chance) for _, chance in decisions] == [bit for bit, _ in decisions]


@pytest.mark.parametrize("share", [0.5, 0.1, 0.003])
def test_a_message_takes_its_information(share: float) -> None:
    bits = (np.random.default_rng(0).random(20_000) < share).astype(int)
    information = -np.log2(np.where(bits, share, 1 - share)).sum() / 8
    size = len(message_of([(bit, round(share * ONE)) for bit in bits.tolist()]))
    assert information - 1 < size < 1.001 * information + 2


def test_likely_bits_cost_nothing_and_no_message_ends_in_zero() -> None:
    assert message_of([(0, 1)] * 50) in (b"", b"\x01")
    with pytest.raises(FileError, match="ends in bytes that no encoder writes"):
        BitDecoder(Cursor(b"ab\0"), 3)
