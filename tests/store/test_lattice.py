# SPDX-License-Identifier: Apache-2.0
"""Which codebooks are multiples of one step."""

import numpy as np
import pytest

from rarefy.store.keys import FLOAT, SIGNED, to_keys
from rarefy.store.lattice import integers_of


def keys_of(values: list[float], dtype: str) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    kind = FLOAT if "float" in dtype else SIGNED
    return np.sort(to_keys(array.view(f"u{array.dtype.itemsize}"), kind))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_multiples_of_a_step(dtype: str) -> None:
    found = integers_of(keys_of([0.0, 0.25, -0.25, 0.75, -1.0], dtype), FLOAT, np.dtype(dtype))
    assert found is not None
    assert found[1].tolist() == [0, 1, -1, 3, -4]


def test_one_magnitude_is_its_own_step() -> None:
    found = integers_of(keys_of([0.0, 0.3, -0.3], "float32"), FLOAT, np.dtype("float32"))
    assert found is not None
    assert found[1].tolist() == [0, 1, -1]
    assert found[0] == int(np.array([0.3], np.float32).view(np.uint32)[0])


def test_integers_are_themselves() -> None:
    found = integers_of(keys_of([0, -1, 1, -7], "int8"), SIGNED, np.dtype("int8"))
    assert found is not None
    assert found[1].tolist() == [0, -1, 1, -7]


@pytest.mark.parametrize(
    "values", [[0.0, -0.0, 1.0], [1.0, np.pi, 7.3, 9.9], [0.0, np.inf], [np.nan, 0]]
)
def test_others_have_no_step(values: list[float]) -> None:
    assert integers_of(keys_of(values, "float32"), FLOAT, np.dtype("float32")) is None
