# SPDX-License-Identifier: Apache-2.0
"""Help, completion, and what happens where nobody reads or everything must be known."""

import subprocess
import sys

import pytest

from rarefy.cli.app import EXAMPLES

from .command import USER, rarefy, spawn


def test_without_a_command_there_is_help() -> None:
    done = rarefy()
    assert (done.code, done.err) == (0, "")
    assert done.out == rarefy("--help").out
    assert "Begin with: rarefy train" in done.out
    assert "--install-completion" in done.out


@pytest.mark.parametrize("command", [f.__name__ for f in EXAMPLES])
def test_every_command_shows_an_example(command: str) -> None:
    shown = " ".join(rarefy(command, "--help").out.split())
    assert f"Example: rarefy {command} " in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rarefy measure zoo:len", {"zoo:lenet300", "zoo:lenet5", "zoo:lenet5@mnist"}),
        ("rarefy measure zoo:lenet5 dig", {"digits"}),
        ("rarefy train zoo:lenet5 cif", {"cifar10:"}),
        ("rarefy systems show deep", {"deep-compression"}),
        ("rarefy compress zoo:lenet5 digits --recipe int", {"int8", "int8-affine"}),
        ("rarefy sens", {"sensitivity"}),
    ],
)
def test_the_shell_completes(line: str, expected: set[str]) -> None:
    program = "import sys; from rarefy.cli import main; sys.argv[0] = 'rarefy'; main(); assert 0"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={
            "_RAREFY_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        },
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert set(run.stdout.split()) == expected


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "import sys; from rarefy.cli import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", program, "systems", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_terminal_without_our_signs_is_no_error() -> None:
    done = spawn("systems", PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, "")
    assert "deep-compression" in done.out


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("measure", f"{USER}:raising", "digits")
    assert "raising' failed with ValueError" in rarefy(*command).sentence()
    monkeypatch.setenv("RAREFY_TRACEBACK", "1")
    done = rarefy(*command)
    assert done.code == 2
    assert done.err.startswith("Traceback (most recent call last):")
    assert "raise ValueError" in done.err
    assert done.err.splitlines()[-1].startswith("rarefy: ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("comprss",), "No such command 'comprss'"),
        (("compress", "zoo:lenet5"), "Missing argument 'TASK'"),
        (("compress", "zoo:lenet5", "digits"), "Missing option '--out'"),
        (("info",), "Missing argument 'FILE'"),
        (("train", "zoo:lenet5", "digits", "--out", "x", "--seed", "-1"), "'--seed'"),
        (("train", "zoo:lenet5", "digits", "--out", "x", "--seed", "one"), "'--seed'"),
        (("methods", "--jsn"), "No such option: --jsn"),
        (("systems", "shw"), "No such command 'shw'"),
        (("systems", "show", "xyz"), "there is no system 'xyz'"),
    ],
)
def test_a_wrong_line_is_one_sentence(arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in rarefy(*arguments).sentence()
