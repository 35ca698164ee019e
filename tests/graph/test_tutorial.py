# SPDX-License-Identifier: Apache-2.0
"""The tutorial's programs print what the tutorial says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "prune-channels.md"
PROGRAM = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_programs_print_what_the_page_says() -> None:
    names: dict[str, Any] = {"__name__": "tutorial"}
    found = PROGRAM.findall(PAGE.read_text(encoding="utf-8"))
    assert len(found) == 2
    for program, expected in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, str(PAGE), "exec"), names)
        assert printed.getvalue() == expected
