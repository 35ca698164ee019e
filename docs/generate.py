# SPDX-License-Identifier: Apache-2.0
"""Writes the pages that come from the package itself: reference, methods, systems, command line."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer.main

from rarefy.cli import app
from rarefy.methods import METHODS
from rarefy.systems.catalogue import System, systems

PACKAGE = Path(__file__).parents[1] / "src" / "rarefy"
ROOMS = {
    "": "The package",
    "prune": "prune: pruning",
    "quantize": "quantize: sharing and quantisation",
    "distill": "distill: training and distillation",
    "synthesize": "synthesize: inputs without data",
    "loops": "loops: training, walking, gathering",
    "measure": "measure: what a network costs",
    "export": "export: runtimes",
    "store": "store: files",
    "zoo": "zoo: networks and tasks",
    "graph": "graph: what a network computes",
    "forms": "forms: weights in the making",
    "search": "search: recipes for a budget",
    "report": "report: pages and tables",
}


def modules() -> list[str]:
    """Every module with something to document, as ``store.rfy``."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not path.name.startswith("__"):
            found.append(name)
    return found


def first_sentence(module: str) -> str:
    """The first line of a module's docstring."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def write(page: str, lines: Iterator[str]) -> None:
    """Puts a page into the site."""
    with mkdocs_gen_files.open(page, "w") as file:
        file.write("\n".join(lines) + "\n")


def cell(text: str) -> str:
    """A text that a Markdown table can hold in one cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def reference_page(module: str) -> Iterator[str]:
    """A page on which the docstrings of a module are printed."""
    yield f"# {module.rpartition('.')[2]}\n"
    yield f"`rarefy.{module}`\n"
    yield f"::: rarefy.{module}"


def reference_index(names: list[str]) -> Iterator[str]:
    """All modules with a sentence each."""
    yield "# Reference\n"
    yield "Everything that follows is taken from the docstrings. "
    yield "`import rarefy as rf` gives the dozen names that most programs need; the rest is imported "
    yield "from the file that defines it, as in `from rarefy.store.pack import pack`.\n"
    for room, title in rooms(names).items():
        yield f"\n## {title}\n\n| module | what it does |\n| --- | --- |"
        for name in (n for n in names if n.rpartition(".")[0] == room):
            yield f"| [`{name}`]({name.replace('.', '/')}.md) | {cell(first_sentence(name))} |"


def rooms(names: list[str]) -> dict[str, str]:
    """The folders of the package in the order of the list above, new ones last."""
    there = {name.rpartition(".")[0] for name in names}
    return {r: ROOMS.get(r, r) for r in (*ROOMS, *sorted(there - ROOMS.keys())) if r in there}


def navigation(names: list[str]) -> Iterator[str]:
    """The reference's table of contents."""
    yield "* [Overview](index.md)"
    for room, title in rooms(names).items():
        yield f"* {title}"
        for name in (n for n in names if n.rpartition(".")[0] == room):
            yield f"    * [{name.rpartition('.')[2]}]({name.replace('.', '/')}.md)"


def methods_page() -> Iterator[str]:
    """All methods, linked to their fields."""
    yield "# Methods\n"
    yield "The steps of which recipes are made. A method's page states its fields with units, "
    yield "defaults and legal ranges, and the paper that it follows. `rarefy methods` prints this list.\n"
    yield "| name in a recipe | class | what it does |\n| --- | --- | --- |"
    for name, (where, text) in METHODS.items():
        module, _, attribute = where.partition(":")
        page = module.removeprefix("rarefy.").replace(".", "/")
        yield f"| `{name}` | [`{attribute}`](reference/{page}.md) | {cell(text)} |"


def served(system: System) -> str:
    """What serves a row that is more than its recipe."""
    if system.part:
        page = system.part.removeprefix("rarefy.").replace(".", "/")
        return f" Served by [`{system.part}`](reference/{page}.md)."
    return f" `pip install 'rarefy[{system.extra}]'`." if system.extra else ""


def systems_page() -> Iterator[str]:
    """All published systems with their recipes."""
    yield "# Systems\n"
    yield "Published methods as recipes. `rarefy compress MODEL TASK --recipe ID --out DIR` runs one, "
    yield "`rarefy systems show ID` prints one. The claim is what the paper says of its own networks "
    yield "and data, not a measurement of ours.\n"
    groups = sorted({s.group for s in systems().values()})
    for group in groups:
        yield f"\n## {group.capitalize()}\n\n| id | system | paper | year |\n| --- | --- | --- | --- |"
        for s in (s for s in systems().values() if s.group == group):
            yield f"| [`{s.id}`](#{s.id}) | {cell(s.title)} | {cell(s.paper)} | {s.year} |"
    yield "\n## Recipes\n"
    for s in systems().values():
        yield f"### {s.id}\n\n{s.title}. {s.claim}{served(s)}\n\n```yaml\n{s.text.strip()}\n```\n"


def command_page() -> Iterator[str]:
    """The help of every command."""
    yield "# Command line\n"
    yield "Tables and results go to stdout, progress to stderr. The exit code is 0 when the work is "
    yield "done, 1 when a budget was not met, 2 after bad input, 130 after Ctrl-C.\n"
    for words, text in helps(typer.main.get_command(app), "rarefy"):
        yield f"## {words}\n\n```text\n{text}\n```\n"


def helps(command: Any, words: str) -> Iterator[tuple[str, str]]:
    """A command's help and those of the commands below it."""
    context = command.make_context(words, [], resilient_parsing=True, terminal_width=92)
    yield words, command.get_help(context)
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{words} {name}")


names = modules()
for name in names:
    write(f"reference/{name.replace('.', '/')}.md", reference_page(name))
write("reference/index.md", reference_index(names))
write("reference/SUMMARY.md", navigation(names))
write("methods.md", methods_page())
write("systems.md", systems_page())
write("cli.md", command_page())
