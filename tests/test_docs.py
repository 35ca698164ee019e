# SPDX-License-Identifier: Apache-2.0
"""What README and documentation show exists: commands, recipes, names, links; and the site builds."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import rarefy
from rarefy.cli import app
from rarefy.recipe import Recipe

HOME = Path(__file__).parents[1]
PAGES = [*sorted(HOME.glob("*.md")), *sorted((HOME / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    """The code blocks of a language, with their page."""
    for page in PAGES:
        for found, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if found == language and "--8<--" not in text:
                yield page, text


def commands() -> list[str]:
    """Every line that a reader is to type."""
    lines = [line for _, text in blocks("console") for line in text.splitlines()]
    return sorted({line.removeprefix("$ ") for line in lines if line.startswith("$ ")})


def test_there_is_something_to_check() -> None:
    assert len(commands()) > 20
    assert any(blocks("python"))
    assert any(blocks("yaml"))


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("rarefy ")])
def test_a_command_exists(line: str) -> None:
    command = typer.main.get_command(app)
    _, *words = shlex.split(line)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if not hasattr(command, "commands"):  # wrong options and missing arguments raise
        command.make_context(line, words)
    else:
        assert not words, f"{line}: there is no command '{words[0]}'"


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_a_target_exists(line: str) -> None:
    makefile = (HOME / "Makefile").read_text(encoding="utf-8")
    for word in (w for w in shlex.split(line)[1:] if "=" not in w):
        assert re.search(rf"^{word}:", makefile, re.MULTILINE), line


def test_recipes_are_recipes() -> None:
    for page, text in blocks("yaml"):
        if re.search(r"^steps:", text, re.MULTILINE):
            assert Recipe.from_yaml(text, page.name).steps or "steps: []" in text


def test_python_compiles_and_names_what_exists() -> None:
    for page, text in blocks("python"):
        for node in ast.walk(ast.parse(text, str(page))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rf":
                assert node.attr in rarefy.__all__, f"{page.name}: rf.{node.attr}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rarefy"):
                for alias in node.names:
                    program = f"from {node.module} import {alias.name}"
                    exec(program, {})


def test_links_lead_somewhere() -> None:
    generated = ("reference/", "methods.md", "systems.md", "cli.md")
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            if page.parent.name == "docs" and target.startswith(generated):
                continue  # the build of the site checks these
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*build, "--site-dir", str(tmp_path / "site")],
        cwd=HOME,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "recipe" / "index.html").read_text(encoding="utf-8")
    assert "to_yaml" in page
    assert "Raises" in page
    outside = [
        path
        for path in (tmp_path / "site").rglob("*.html")
        if re.search(r'(src|href)="https?://[^"]+\.(js|css|woff2?)"', path.read_text("utf-8"))
    ]
    assert not outside, "nothing is fetched from elsewhere"
