# SPDX-License-Identifier: Apache-2.0
"""What went wrong, in one sentence, and the exit code that goes with it."""

import errno
import os
import re
import sys
import sysconfig
import traceback
from types import TracebackType

from rarefy.errors import RarefyError, described

WRONG, INTERRUPTED = 2, 130  # 130 is 128 + SIGINT, as shells have it
VERBOSE = "RAREFY_TRACEBACK"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sentence(error: BaseException) -> str:
    """One line for any exception that ends a command."""
    number = error_number(error)
    if number in FULL:
        return (
            "the disk is full or the file too large for it; free some space and run the same command "
            "again, which goes on after the last finished step"
        )
    if isinstance(error, RarefyError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted; run the same command again to go on after the last finished step"
    elif isinstance(error, OSError):
        text = f"{error.filename or 'a file'}: {error.strerror or error}"
    elif isinstance(error, MemoryError):
        text = "there is not enough memory; take smaller batches or a smaller network"
    else:
        text = (
            f"{described(error)}{place(error.__traceback__)}; {VERBOSE}=1 shows how it came to that"
        )
    return " ".join(text.splitlines())


def error_number(error: BaseException | None) -> int | None:
    """The system's number for what failed, looked for in the exceptions behind it too.

    Libraries in Rust (safetensors) put it into the text of errors of their own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            return error.errno
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found:
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def place(trace: TracebackType | None) -> str:
    """The innermost line that is in no library: usually the user's own file."""
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    for frame in reversed(traceback.extract_tb(trace)):
        if not frame.filename.startswith((*libraries, "<")):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def report(error: BaseException) -> int:
    """Says on stderr what went wrong, after the traceback if it is asked for; returns the exit code."""
    if os.environ.get(VERBOSE):
        traceback.print_exception(error)
    print(f"rarefy: {sentence(error)}", file=sys.stderr, flush=True)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else WRONG


def hang_up() -> None:
    """Nobody reads stdout any more (``rarefy systems | head -1``): what is left goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
