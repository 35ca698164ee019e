# SPDX-License-Identifier: Apache-2.0
"""Packed weights: any width bit-exact in the bytes of the formula, in a file that guards itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rarefy.errors import FileError
from rarefy.store.bits import pack, pack_trits, packed_bytes, trit_bytes, unpack, unpack_trits
from rarefy.store.rfy import read, write


@pytest.mark.parametrize("width", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1001])
def test_codes_of_any_width(width: int, count: int) -> None:
    codes = np.random.default_rng(width).integers(0, 1 << width, count)
    packed = pack(codes, width)
    assert len(packed) == packed_bytes(count, width)
    assert abs(len(packed) - count * width / 8) < 1
    assert np.array_equal(unpack(packed, width, count), codes)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 1003])
def test_ternary_codes_take_a_fifth_of_a_byte(count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 3, count)
    assert len(pack_trits(codes)) == trit_bytes(count) == -(-count // 5)
    assert np.array_equal(unpack_trits(pack_trits(codes), count), codes)
    assert trit_bytes(count) <= packed_bytes(count, 2) or count < 3


def test_two_four_bit_codes_share_a_byte_little_end_first() -> None:
    assert pack(np.array([0x1, 0x2, 0xF]), 4) == b"\x21\x0f"
    assert pack(np.array([1, 0, 0, 1, 1]), 1) == b"\x19"


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 1.6), (4, 2), (16, 4), (32, 5), (256, 8)])
def test_a_file_of_uniform_codes_takes_the_packed_bits(
    tmp_path: Path, levels: int, bits: float
) -> None:
    grid = np.sort(np.random.default_rng(0).normal(size=levels)).astype(np.float32)
    weights = grid[np.random.default_rng(1).integers(0, levels, (321, 123))]
    size = write(tmp_path / "a.rfy", {"layer.weight": weights})
    assert size < 1.003 * weights.size * bits / 8 + 4 * levels + 120
    with read(tmp_path / "a.rfy") as archive:
        assert np.array_equal(archive["layer.weight"], weights)


def test_a_corrupted_file_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    write(path, {"w": np.random.default_rng(0).integers(0, 9, 5000)})
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(FileError):
            read(path)


def test_it_loads_where_nothing_but_the_decoder_is(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).integers(-8, 8, (50, 60)).astype(np.int8)
    write(tmp_path / "a.rfy", {"w": weights})
    program = (
        "import sys; from rarefy.store.rfy import read\n"
        f"archive = read({str(tmp_path / 'a.rfy')!r})\n"
        "print(int(archive['w'].astype(int).sum()), archive['w'].shape)\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.split("\n")[0] == f"{weights.astype(int).sum()} (50, 60)"
