# SPDX-License-Identifier: Apache-2.0
"""Packing, unpacking and looking inside; damaged files are told and nothing is left of them."""

import json
import os
from pathlib import Path

import pytest

from rarefy.store.pack import load_onnx

from .command import rarefy


def test_weights_come_back_byte_for_byte(here: Path, weights: Path) -> None:
    done = rarefy("pack", weights, "--out", "a.rfy")
    assert done.code == 0
    assert "times smaller than" in done.out
    assert rarefy("unpack", "a.rfy", "--out", "b.safetensors").code == 0
    assert (here / "b.safetensors").read_bytes() == weights.read_bytes()
    size = (here / "a.rfy").stat().st_size
    assert size < weights.stat().st_size
    seen = json.loads(rarefy("info", "a.rfy", "--json").out)
    assert (seen["bytes"], seen["kind"]) == (size, "safetensors")
    assert [16, 1, 3, 3] in [t["shape"] for t in seen["tensors"]]
    shown = rarefy("info", "a.rfy").out
    assert "conv1.weight" in shown
    assert "16×1×3×3" in shown


def test_programs_come_back_as_the_same_message(here: Path, result: Path) -> None:
    program = result / "model.onnx"
    assert rarefy("pack", program, "--out", "a.rfy").code == 0
    assert rarefy("unpack", "a.rfy", "--out", "b.onnx").code == 0
    assert rarefy("unpack", result / "model.rfy", "--out", "c.onnx").code == 0
    expected = load_onnx(result / "model.rfy").SerializeToString(deterministic=True)
    assert (here / "b.onnx").read_bytes() == (here / "c.onnx").read_bytes() == expected
    assert (here / "a.rfy").stat().st_size < 0.5 * program.stat().st_size
    seen = rarefy("info", result / "model.rfy").out
    assert "task: digits" in seen
    assert "prune-weights: {sparsity: 0.8}" in seen


@pytest.fixture
def damaged(here: Path, result: Path) -> Path:
    """A folder of files that are not what their names say."""
    whole, program = (result / "model.rfy").read_bytes(), (result / "model.onnx").read_bytes()
    middle = len(whole) // 2
    (here / "cut.rfy").write_bytes(whole[:middle])
    (here / "tampered.rfy").write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    )
    (here / "text.rfy").write_text("hello")
    (here / "empty.rfy").write_bytes(b"")
    (here / "cut.onnx").write_bytes(program[: len(program) // 2])
    (here / "empty.onnx").write_bytes(b"")
    (here / "cut.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{}")
    (here / "folder.onnx").mkdir()
    return here


RFY = {
    "cut.rfy": "cut.rfy can't be read: damaged or cut short",
    "tampered.rfy": "tampered.rfy can't be read: damaged or cut short",
    "text.rfy": "text.rfy is no .rfy file",
    "empty.rfy": "empty.rfy is no .rfy file",
    "absent.rfy": "absent.rfy can't be opened: No such file",
}


@pytest.mark.parametrize("name", RFY)
def test_damaged_archives(name: str, damaged: Path) -> None:
    before = sorted(damaged.iterdir())
    for command in (
        ("unpack", name, "--out", "out.onnx"),
        ("info", name),
        ("info", name, "--json"),
        ("measure", name, "digits"),
        ("compress", "zoo:digits-net", "digits", "--weights", name, "--recipe", "kd", "--out", "o"),
    ):
        found = rarefy(*command).sentence()
        assert RFY[name] in found or f"no file of weights '{name}'" in found
    assert sorted(damaged.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("cut.onnx", "cut.onnx is no readable ONNX file"),
        ("empty.onnx", "empty.onnx is no readable ONNX file"),
        ("folder.onnx", "folder.onnx is no readable ONNX file"),
        ("absent.onnx", "absent.onnx is no readable ONNX file"),
        ("cut.safetensors", "cut.safetensors is no readable .safetensors file"),
        ("text.rfy", "text.rfy can't be packed: its name ends in neither"),
    ],
)
def test_files_that_can_not_be_packed(name: str, complaint: str, damaged: Path) -> None:
    before = sorted(damaged.iterdir())
    assert complaint in rarefy("pack", name, "--out", "out.rfy").sentence()
    if name.endswith("onnx"):
        found = rarefy("measure", name, "digits").sentence()
        assert f"{name} is no readable ONNX file" in found
    assert sorted(damaged.iterdir()) == before


@pytest.mark.parametrize("out", ["nowhere/a.rfy", ".", "pipe"])
def test_places_that_can_not_be_written(out: str, here: Path, weights: Path) -> None:

    os.mkfifo("pipe")
    found = rarefy("pack", weights, "--out", out).sentence()
    assert f"{out} can't be written: " in found
    assert [p.name for p in here.iterdir()] == ["pipe"]
    assert (here / "pipe").is_fifo()


def test_measuring_what_does_not_fit(here: Path, result: Path) -> None:
    found = rarefy("measure", result / "model.rfy", "random-images:3x8x8").sentence()
    assert "invalid dimensions" in found
    (here / "nothing").mkdir()
    found = rarefy("measure", "nothing", "digits").sentence()
    assert "nothing/model.rfy can't be opened" in found
    assert "'nowhere' names no model" in rarefy("measure", "nowhere", "digits").sentence()
