# SPDX-License-Identifier: Apache-2.0
"""A model of the energy of one inference; it is arithmetic, not a measurement.

Energies of operations in 45 nm at 0.9 V as given by Horowitz: Computing's energy problem, ISSCC 2014
(float32 multiply 3.7 pJ, add 0.9 pJ; 32 bits from DRAM 640 pJ). Every weight is read from DRAM once.
"""

MULTIPLY_ADD = 3.7 + 0.9  # pJ, float32
DRAM_BYTE = 640 / 4  # pJ


def inference_energy(macs: int | None, weight_bytes: int) -> float | None:
    """Microjoules of one inference: multiply-accumulates plus one read of all stored weights.

    Args:
        macs: for one example; None if unknown, then the energy is unknown too.
        weight_bytes: of the file that the runtime loads.

    Examples:
        >>> round(inference_energy(1_000_000, 4_000_000), 1)
        644.6
    """
    return None if macs is None else (macs * MULTIPLY_ADD + weight_bytes * DRAM_BYTE) * 1e-6
