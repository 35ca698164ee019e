# SPDX-License-Identifier: Apache-2.0
"""Hints and foreign exceptions, each in one line."""

from pathlib import Path

import pytest

from rarefy.errors import described, nearest


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest("sparcity", ["sparsity", "scope"]) == "; did you mean 'sparsity'?"
    assert nearest("xyz", ["b", "a"]) == "; known: a, b"


def test_a_foreign_exception_in_one_line(tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text("def f():\n    g()\n\n\ndef g():\n    raise OSError('one\\n  two')\n")
    names: dict[str, object] = {}
    exec(compile(page.read_text(), str(page), "exec"), names)
    with pytest.raises(OSError, match="one") as caught:
        names["f"]()  # type: ignore[operator]
    assert described(caught.value, str(page)) == f"OSError: one two ({page}, line 6)"
    assert described(caught.value, "other.py") == "OSError: one two"
    assert described(KeyError()) == "KeyError"
    assert len(described(ValueError("x" * 1000))) < 250
