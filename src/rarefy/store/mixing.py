# SPDX-License-Identifier: Apache-2.0
"""Chances of a bit from several contexts, mixed by weights that are learned while coding.

M. Mahoney, "Adaptive weighing of context models for lossless data compression", Florida Tech
CS-2005-16: every context keeps the chance of a 1 as it has found it so far; the chances are mixed in
the logistic domain, sum_i w_i ln(p_i / (1 - p_i)), and the weights follow the gradient of the code
length. Encoder and decoder do the same in integers, so that every machine finds the same chances.
"""

from collections.abc import Sequence
from functools import cache

from rarefy.store.binary import ONE, BitCoder

REACH = 2560
"""Logits are counted in 256ths and end at plus and minus ten."""

_FIRST, _PATIENCE, _RATE = 0.2, 255, 9


class Mixer:
    """A set of contexts for one kind of decision, and how far each is believed.

    Args:
        contexts: how many contexts every decision will name.
    """

    def __init__(self, contexts: int) -> None:
        self._weights = [int(_FIRST * ONE)] * contexts
        self._known: list[dict[int, list[int]]] = [{} for _ in range(contexts)]
        self._logits, self._chances = logits(), chances()

    def code(self, coder: BitCoder, bit: int, contexts: Sequence[int]) -> int:
        """Code one decision and learn from it.

        Args:
            coder: writes or reads.
            bit: the decision, if it is written.
            contexts: a number for each context.
        """
        states, inputs, total = [], [], 0
        for known, weight, number in zip(self._known, self._weights, contexts, strict=True):
            state = known.get(number)
            if state is None:
                state = known[number] = [ONE // 2, 0]
            states.append(state)
            logit = self._logits[state[0] >> 4]
            inputs.append(logit)
            total += weight * logit
        mixed = total >> 16
        mixed = REACH if mixed > REACH else -REACH if mixed < -REACH else mixed
        chance = self._chances[mixed + REACH]
        bit = coder.code(bit, chance)
        error = ((ONE if bit else 0) - chance) * _RATE
        weights = self._weights
        for place, logit in enumerate(inputs):
            weights[place] += logit * error + (1 << 17) >> 18
        target = ONE - 1 if bit else 0
        for state in states:
            seen = state[1]
            state[0] += 2 * (target - state[0]) // (2 * seen + 3)
            if seen < _PATIENCE:
                state[1] = seen + 1
        return bit


@cache
def chances() -> list[int]:
    """1 / (1 + exp(-x / 256)) in 65536ths, at least 1 and at most 65535, for x from -REACH to REACH."""
    unit = 1 << 60
    step = unit  # exp(1 / 256) by its series, in integers
    term = unit
    for place in range(1, 12):
        term //= 256 * place
        step += term
    upper, power = [ONE // 2], unit
    for _ in range(REACH):
        power = power * step >> 60
        upper.append(min((power << 16) // (power + unit), ONE - 1))
    return [max(ONE - chance, 1) for chance in reversed(upper[1:])] + upper


@cache
def logits() -> list[int]:
    """The logit in 256ths of every chance in 4096ths: the inverse of `chances`."""
    table, place, found = chances(), 0, []
    for chance in range(8, ONE, 16):
        while place < 2 * REACH and table[place] < chance:
            place += 1
        found.append(place - REACH)
    return found
