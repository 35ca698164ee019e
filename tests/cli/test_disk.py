# SPDX-License-Identifier: Apache-2.0
"""A full disk: one sentence, the earlier result untouched, and the same command goes on later."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .command import FILES, USER, files, half_done, rarefy

POINTS = (f"{USER}:net", f"{USER}:task")


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, which a process notices just as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# what the first stage writes, and the report at the end
@pytest.mark.parametrize("size", [3_000, 200_000])
def test_a_compression_without_room(size: int, here: Path) -> None:
    (here / "r.yaml").write_text("steps:\n  - prune-weights: {sparsity: 0.5}\n")
    (here / "out").mkdir()
    (here / "out" / "model.rfy").write_text("earlier")
    command = ("compress", *POINTS, "--recipe", "r.yaml", "--out", "out")
    with room(size):
        found = rarefy(*command)
    assert "the disk is full or the file too large for it" in found.sentence()
    assert files(here / "out") == {"model.rfy": b"earlier"}
    assert not half_done(here / "out")
    if size == 200_000:
        assert rarefy(*command).code == 0
        assert tuple(p.name for p in sorted((here / "out").glob("[a-z]*"))) == FILES


@pytest.mark.parametrize(
    "command",
    [
        ("train", *POINTS, "--epochs", "1", "--out", "new/weights.safetensors"),
        ("export", *POINTS, "--out", "new"),
        ("sensitivity", *POINTS, "--out", "new"),
        ("pack", "WEIGHTS", "--out", "a.rfy"),
        ("measure", *POINTS),
    ],
    ids=lambda command: command[0],
)
def test_other_commands_without_room(command: tuple[str, ...], here: Path, weights: Path) -> None:
    with room(600):
        found = rarefy(*(weights if word == "WEIGHTS" else word for word in command))
    assert found.code == 2
    assert not found.out
    assert "the disk is full" in found.err.splitlines()[-1]
    assert "Traceback" not in found.err
    assert not files(here)


def test_a_device_that_is_full(here: Path, result: Path) -> None:
    found = rarefy("unpack", result / "model.rfy", "--out", "/dev/full")
    assert "/dev/full can't be written: it is no regular file" in found.sentence()
    assert Path("/dev/full").is_char_device()
