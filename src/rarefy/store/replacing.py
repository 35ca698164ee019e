# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name only when they are complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarefy.errors import FileError


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `target`; take its place at the end, or leave nothing.

    Raises:
        FileError: the disk is full, the folder is missing or closed to us, or `target` is a folder, a
            device or a pipe, which a file must never replace.

    Examples:
        >>> with replacing("out.bin") as partial:
        ...     partial.write_bytes(b"all or nothing")
    """
    final = Path(target)
    if final.exists() and not final.is_file():
        kind = "a folder" if final.is_dir() else "no regular file"
        raise FileError(f"{final} can't be written: it is {kind}; name a file")
    partial = final.with_name(final.name + ".partial")
    try:
        yield partial
        os.replace(partial, final)
    except OSError as error:
        raise FileError(f"{final} can't be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder inside `folder` to write files in; they move up when all of them are complete.

    Raises:
        OSError: the disk is full or the folder closed to us; what stood there before still does.

    Examples:
        >>> with together("out") as made:
        ...     (made / "a").write_text("both")
        ...     (made / "b").write_text("or none")
    """
    final = Path(folder)
    made = final / ".saving"
    final.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
    made.mkdir()
    try:
        yield made
        for file in sorted(made.iterdir()):
            os.replace(file, final / file.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
