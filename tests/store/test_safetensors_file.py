# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: every tensor as the library has it, and the same file again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rarefy.errors import FileError
from rarefy.store.pack import load_tensors, pack, unpack
from rarefy.store.rfy import read, write
from rarefy.store.safetensors_file import SafetensorsFile, write_file

TORCH_DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8,
    torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.uint16, torch.uint32,
    torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Tensors of all dtypes, empty and scalar ones, strange names, with metadata."""
    torch.manual_seed(0)
    tensors = {f"t.{d}": (torch.randn(5, 7) * 3).to(d) for d in TORCH_DTYPES}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "ü\n\"' 名": torch.eye(3)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt", "é": 'x"y'})
    return tmp_path / "a.safetensors"


def test_tensors_are_those_of_the_library(file: Path) -> None:
    mine, theirs = SafetensorsFile(file), load_file(file)
    assert len(mine) == len(theirs)
    assert mine.metadata == {"format": "pt", "é": 'x"y'}
    for name, array in mine.items():
        assert array.shape == tuple(theirs[name].shape)
        assert array.dtype.name == str(theirs[name].dtype).removeprefix("torch.")
        assert np.ascontiguousarray(array).tobytes() == bytes(bits(theirs[name]))


def test_the_file_comes_back_byte_for_byte(file: Path, tmp_path: Path) -> None:
    size = pack(file, tmp_path / "a.rfy", info={"note": 1})
    assert size == (tmp_path / "a.rfy").stat().st_size
    with read(tmp_path / "a.rfy") as archive:
        assert archive.kind == "safetensors"
        assert len(archive.program) < 60  # metadata only: the header follows from the tensors
        assert archive.info == {"note": 1}
    unpack(tmp_path / "a.rfy", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == file.read_bytes()
    loaded = load_tensors(tmp_path / "a.rfy")
    assert {n: bits(t) for n, t in load_file(file).items()} == {
        n: list(np.ascontiguousarray(a).tobytes()) for n, a in loaded.items()
    }


def test_real_weights_shrink(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Linear(300, 10))
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    size = pack(tmp_path / "a.safetensors", tmp_path / "a.rfy")
    assert size < 0.9 * (tmp_path / "a.safetensors").stat().st_size


def unusual(fields: dict[str, Any], data: bytes, path: Path, indent: int | None = None) -> Path:
    header = json.dumps(fields, indent=indent).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_foreign_headers_and_packed_dtypes_come_back_too(tmp_path: Path) -> None:
    fields = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        "a": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]},
        "__metadata__": {"order": "odd"},
    }
    source = unusual(fields, bytes(range(11)), tmp_path / "a.safetensors", indent=3)
    pack(source, tmp_path / "a.rfy")
    unpack(tmp_path / "a.rfy", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()
    tensors = load_tensors(tmp_path / "a.rfy")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert tensors["b"].dtype == np.float32


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    wrong = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 11]}}
    for path in (unusual(wrong, bytes(11), tmp_path / "wrong"), tmp_path / "absent"):
        with pytest.raises(FileError, match=rf"{path.name} is no readable .safetensors file"):
            SafetensorsFile(path)
    for program in (b"", b"\5", b"\0{", b"\0[", b"\0\xff"):
        write(tmp_path / "a.rfy", {"x": np.zeros(3)}, program=program, kind="safetensors")
        with read(tmp_path / "a.rfy") as archive, pytest.raises(FileError, match="safetensors"):
            write_file(tmp_path / "out", archive)
    write(
        tmp_path / "a.rfy", {"x": np.zeros(3, np.complex128)}, program=b"\0null", kind="safetensors"
    )
    with pytest.raises(FileError, match=r"no .safetensors header"):
        unpack(tmp_path / "a.rfy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
