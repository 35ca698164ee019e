# SPDX-License-Identifier: Apache-2.0
"""Commands of rarefy in this process and in others, and what must hold for a refused one."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rarefy.cli import main

USER = Path(__file__).with_name("user_file.py")
FILES = ("measurements.json", "model.onnx", "model.rfy", "recipe.yaml", "report.html")


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one sentence with which bad input must end."""
        assert (self.code, self.out) == (2, ""), self
        return one_line(self.err)


def one_line(text: str) -> str:
    """The only line of a text."""
    (line,) = text.splitlines()
    assert line.startswith("rarefy: ")
    assert "Traceback" not in line
    assert len(line) < 600
    return line


def rarefy(*arguments: object) -> Outcome:
    """A command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def spawn(*arguments: object, **environment: str) -> Outcome:
    """A command in a process of its own; negative codes are signals."""
    run = subprocess.run(
        [sys.executable, "-m", "rarefy", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return Outcome(run.returncode, run.stdout, run.stderr)


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their paths, without the cache of stages."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".stages" not in path.parts
    }


def half_done(out: Path) -> list[Path]:
    """What a compression left in its cache beside whole stages and checkpoints."""
    left = list((out / ".stages").iterdir()) if (out / ".stages").is_dir() else []
    return [p for p in left if p.suffix != ".partial" and not (p / "stage.json").is_file()]
