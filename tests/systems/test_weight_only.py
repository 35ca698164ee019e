# SPDX-License-Identifier: Apache-2.0
"""Row weight-only: 4 bits and a scale for every 32 weights, and hardly another answer."""

import rarefy as rf


def test_digits_in_four_bits(digits_network, digits_task):
    result = rf.compress(digits_network, digits_task, "weight-only")
    first, last = (result.measurements[i] for i in (0, -1))
    assert last["metric"]["value"] >= first["metric"]["value"] - 0.02
    assert last["bytes"]["rfy"] < 0.2 * first["bytes"]["safetensors"]
    assert result.document["parity"]["passed"]
