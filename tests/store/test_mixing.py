# SPDX-License-Identifier: Apache-2.0
"""Mixed chances: tables that every machine finds, contexts that are believed when they know."""

import numpy as np
import pytest

from rarefy.store.binary import ONE, BitEncoder
from rarefy.store.mixing import REACH, Mixer, chances, logits


def test_the_tables_are_the_logistic_function_and_its_inverse() -> None:
    x = np.arange(-REACH, REACH + 1) / 256
    assert np.abs(np.array(chances()) - ONE / (1 + np.exp(-x))).max() < 1.5
    middle = (np.arange(4096) * 16 + 8) / ONE
    exact = np.clip(256 * np.log(middle / (1 - middle)), -REACH, REACH)
    assert np.abs(np.array(logits()) - exact)[16:-16].max() < 3


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_bits_without_contexts_take_nearly_their_entropy(share: float) -> None:
    bits = (np.random.default_rng(1).random(8000) < share).astype(int)
    coder, mixer = BitEncoder(), Mixer(1)
    for bit in bits.tolist():
        mixer.code(coder, bit, [0])
    p = bits.mean()
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * bits.size / 8
    assert len(coder.message()) < 1.02 * entropy + 8


def test_the_context_that_knows_is_found_among_those_that_do_not() -> None:
    rng = np.random.default_rng(2)
    said = rng.integers(0, 2, 4000)
    noise = rng.integers(0, 50, (4000, 3))
    coder, mixer = BitEncoder(), Mixer(4)
    for bit, others in zip(said.tolist(), noise.tolist(), strict=True):
        mixer.code(coder, bit, [*others, bit])
    assert len(coder.message()) < 0.06 * 4000 / 8
