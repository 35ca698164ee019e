# SPDX-License-Identifier: Apache-2.0
"""Commands that need no network: pack, unpack, info, systems, methods."""

from pathlib import Path
from typing import Annotated

import typer

from rarefy.cli.arguments import Json, complete_system


def pack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .onnx or .safetensors file.")],
    out: Annotated[Path, typer.Option(help="The .rfy file to write.")],
) -> None:
    """Code a file of weights as small as possible, bit-exactly."""
    from rarefy.store.pack import pack as code

    size = code(file, out)
    before = file.stat().st_size
    print(
        f"{out}: {size:,} bytes, {before / size:.2f} times smaller than {file} ({before:,} bytes)"
    )


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .rfy file.")],
    out: Annotated[Path, typer.Option(help="The .onnx or .safetensors file to write.")],
) -> None:
    """Decode a .rfy file to what it was packed from."""
    from rarefy.store.pack import unpack as decode

    decode(file, out)
    print(f"{out}: {out.stat().st_size:,} bytes")


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .rfy file.")], json_: Json = False
) -> None:
    """Show what a .rfy file holds."""
    from rarefy.report.terminal import show_archive

    show_archive(file, json_)


def systems(context: typer.Context, json_: Json = False) -> None:
    """List the published systems, or show one: rarefy systems show ID."""
    from rarefy.report.terminal import show_rows
    from rarefy.systems.catalogue import systems as catalogue

    if context.invoked_subcommand is not None:
        return
    rows = [
        {
            "id": s.id,
            "title": s.title,
            "group": s.group,
            "paper": s.paper,
            "year": s.year,
            "status": s.status,
            "methods": ", ".join(s.methods) or s.part,
        }
        for s in catalogue().values()
    ]
    show_rows(rows, json_, columns=("id", "title", "group", "year", "status"))


def systems_show(
    id: Annotated[
        str, typer.Argument(metavar="ID", help="Of a system.", autocompletion=complete_system)
    ],
) -> None:
    """Print a system's recipe with its paper and claim."""
    from rarefy.systems.catalogue import find_system

    print(find_system(id).text, end="")


def methods(json_: Json = False) -> None:
    """List the methods of which recipes are made."""
    from rarefy.methods import METHODS
    from rarefy.report.terminal import show_rows

    show_rows([{"method": name, "does": text} for name, (_, text) in METHODS.items()], json_)
