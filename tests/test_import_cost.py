# SPDX-License-Identifier: Apache-2.0
"""What must answer at once answers without the heavy libraries; counted in modules, not in seconds."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "scipy",
    "sklearn",
    "pandas",
    "plotly",
    "optuna",
    "constriction",
    "PIL",
    "transformers",
    "timm",
)
RUN = """
import contextlib, io, json, sys
from rarefy.cli import main
out, err, code = io.StringIO(), io.StringIO(), 0
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
        main(sys.argv[1:])
    except SystemExit as stop:
        code = stop.code or 0
print(json.dumps([code, out.getvalue(), err.getvalue(), sorted({m.partition(".")[0] for m in sys.modules})]))
"""
COMMANDS = (
    "train",
    "compress",
    "measure",
    "sensitivity",
    "export",
    "pack",
    "unpack",
    "info",
    "methods",
)


def rarefy(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in a process of its own that must stay light."""
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True
    )
    code, out, err, modules = json.loads(run.stdout)
    heavy = set(HEAVY) & set(modules)
    assert not heavy, f"rarefy {' '.join(arguments)} imports {', '.join(sorted(heavy))}"
    return code, out, err


def test_the_package_itself_is_nothing_but_names() -> None:
    program = "import sys, rarefy; dir(rarefy); print(rarefy.__version__, *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    version, *modules = run.stdout.split()
    assert version.count(".") == 2
    loaded = {name.partition(".")[0] for name in modules}
    assert not loaded & {*HEAVY, "numpy", "pydantic", "yaml", "typer", "rich"}


def test_help_names_every_command() -> None:
    code, out, _ = rarefy("--help")
    assert code == 0
    assert all(name in out for name in (*COMMANDS, "systems"))


@pytest.mark.parametrize("command", [*COMMANDS, "systems"])
def test_help_of_a_command(command: str) -> None:
    code, out, _ = rarefy(command, "--help")
    assert code == 0
    assert command in out


def test_version() -> None:
    code, out, _ = rarefy("--version")
    assert (code, out.split()[0]) == (0, "rarefy")


def test_the_catalogue_is_listed_and_shown() -> None:
    code, out, err = rarefy("systems", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert rows
    assert all(row.keys() >= {"id", "title", "group", "paper", "year"} for row in rows)
    code, out, _ = rarefy("systems", "show", rows[0]["id"])
    assert code == 0
    assert f"id: {rows[0]['id']}" in out
    code, out, _ = rarefy("systems")
    assert code == 0
    assert rows[-1]["id"] in out


def test_the_methods_are_listed() -> None:
    code, out, _ = rarefy("methods", "--json")
    assert code == 0
    assert "prune-weights" in {row["method"] for row in json.loads(out)}


COMPRESS = ("compress", "zoo:lenet5", "digits", "--out", "never")


@pytest.mark.parametrize(
    ("arguments", "wrong", "remedy"),
    [
        (("comprss",), "comprss", ""),
        (
            ("compress", "zoo:lenet6", "digits", "--recipe", "kd", "--out", "never"),
            "lenet6",
            "lenet5",
        ),
        (("compress", "lenet5", "digits", "--recipe", "kd", "--out", "never"), "lenet5", "zoo:"),
        (("train", "zoo:lenet5", "digit", "--out", "never"), "digit", "digits"),
        (("train", "zoo:lenet5", "mnist:nowhere.npz", "--out", "never"), "nowhere.npz", ""),
        ((*COMPRESS, "--recipe", "deep-compresion"), "deep-compresion", "deep-compression"),
        ((*COMPRESS, "--recipe", "nowhere.yaml"), "nowhere.yaml", ""),
        ((*COMPRESS, "--recipe", "kd", "--runtime", "onnxruntme"), "onnxruntme", "onnxruntime"),
        ((*COMPRESS, "--budget", "sise=1/8"), "sise", "size"),
        ((*COMPRESS, "--budget", "size=small"), "small", "1/8"),
        (COMPRESS, "--recipe", "--budget"),
        (("systems", "show", "mag-prun"), "mag-prun", "mag-prune"),
        (("compress", "zoo:lenet5", "digits", "--recpe", "kd"), "--recpe", ""),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else None,
)
def test_a_misspelling_is_answered_at_once(
    arguments: tuple[str, ...], wrong: str, remedy: str
) -> None:
    code, out, err = rarefy(*arguments)
    assert (code, out) == (2, "")
    assert wrong in err
    assert remedy in err
    assert err.count("\n") == 1, "one sentence"
    assert "Traceback" not in err
