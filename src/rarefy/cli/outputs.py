# SPDX-License-Identifier: Apache-2.0
"""Where results go: tried before hours are spent, and left clean when a command fails."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarefy.errors import FileError

STAGES, FINISHED = ".stages", "stage.json"


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """Makes a folder that can be written, and removes what a failing command left in it half-done.

    Finished stages and the checkpoints of an unfinished training stay, so that the same command goes on
    from there; so does everything when the command is interrupted.

    Raises:
        FileError: the folder can't be made or written.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        prove(out)
        yield out
    except Exception:
        sweep(out / STAGES)
        for folder in (out / STAGES, *new):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def output_file(out: Path, suffix: str) -> None:
    """Refuses a file that could not be written in the end.

    Raises:
        FileError: another suffix, a folder under that name, or a parent that can't be written.
    """
    if out.suffix != suffix or out.is_dir():
        raise FileError(f"'{out}' is no name for a {suffix} file; write --out NAME{suffix}")
    new = [folder for folder in out.parents if not folder.exists()]
    prove(out.parent)
    for folder in new:
        folder.rmdir()


def prove(folder: Path) -> None:
    """Makes a folder and writes into it.

    Raises:
        FileError: that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(
            f"'{folder}' can't be written: {error.strerror or error}; choose another --out"
        ) from error


def sweep(stages: Path) -> None:
    """Removes stages that were not finished; the folders of checkpoints and of searches stay."""
    if not stages.is_dir():
        return
    for folder in stages.iterdir():
        if folder.is_dir() and folder.suffix != ".partial" and not (folder / FINISHED).is_file():
            shutil.rmtree(folder, ignore_errors=True)
