# SPDX-License-Identifier: Apache-2.0
"""A file is there whole, or the old one is still there."""

import os
from pathlib import Path

import pytest

from rarefy.errors import FileError
from rarefy.store.replacing import replacing, together


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with replacing(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as partial:  # noqa: PT012
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_and_a_full_disk_are_told(tmp_path: Path) -> None:
    with (
        pytest.raises(FileError, match="absent/out can't be written: No such file"),
        replacing(tmp_path / "absent" / "out") as partial,
    ):
        partial.write_text("x")
    with (
        pytest.raises(FileError, match="out can't be written: No space left on device"),
        replacing(tmp_path / "out"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_devices_pipes_and_folders_are_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for target, kind in ((pipe, "no regular file"), (link, "no regular file"), (tmp_path, "a fol")):
        with (
            pytest.raises(FileError, match=f"{target} can't be written: it is {kind}"),
            replacing(target) as partial,
        ):
            partial.write_text("x")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with together(out) as made:
        (made / "a").write_text("1")
        (made / "b").write_text("1")
        assert list(out.iterdir()) == [made]
    with pytest.raises(OSError, match="No space left"), together(out) as made:  # noqa: PT012
        (made / "a").write_text("2")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    assert {p.name: p.read_text() for p in out.iterdir()} == {"a": "1", "b": "1"}


def test_what_a_killed_process_left_is_not_moved(tmp_path: Path) -> None:
    (tmp_path / ".saving").mkdir()
    (tmp_path / ".saving" / "half").write_text("x")
    with together(tmp_path) as made:
        (made / "whole").write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]
