# SPDX-License-Identifier: Apache-2.0
"""Everything that a user can get wrong ends in one of these, in one sentence with the way out."""

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from os.path import abspath


class RarefyError(Exception):
    """Bad input or a broken promise; the text names the culprit and the remedy.

    The command line prints the text alone and exits with 2.
    """


class RecipeError(RarefyError):
    """A recipe that can't run: unknown step, misspelt field, value out of range, bad order."""


class TaskError(RarefyError):
    """Data that can't serve: missing file, empty loader, missing labels, class count that does not fit."""


class ModelError(RarefyError):
    """A network that can't be loaded or compressed: foreign weights, NaN, a forward that fails."""


class FileError(RarefyError):
    """A file that is truncated, tampered with, of another kind or of a later version."""


class RuntimeParityError(RarefyError):
    """The exported file does not compute what the network computes."""


SHOWN = 24  # names that a sentence lists at most


def nearest(name: str, names: Iterable[str], listed: str = "") -> str:
    """A hint for a misspelt name: ``"; did you mean 'sparsity'?"`` or the list of all names.

    Args:
        name: what was written.
        names: what is known.
        listed: the command that lists them, in place of more names than fit into a sentence.

    Examples:
        >>> nearest("sparcity", ["sparsity", "scope"])
        "; did you mean 'sparsity'?"
    """
    known = sorted(names)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    if listed and len(known) > SHOWN:
        return f"; `{listed}` lists all {len(known)}"
    return f"; known: {', '.join(known)}"


def described(error: BaseException, file: str | None = None) -> str:
    """A foreign exception in one line: its kind, its text and, if `file` was running, the line there.

    Examples:
        >>> described(ValueError("two\\nlines"))
        'ValueError: two lines'
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:199]}…"
    frames = traceback.extract_tb(error.__traceback__) if file else []
    lines = [f.lineno for f in frames if abspath(f.filename) == abspath(str(file))]
    place = f" ({file}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"
