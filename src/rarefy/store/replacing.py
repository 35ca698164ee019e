# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name only when they are complete."""

import os
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
