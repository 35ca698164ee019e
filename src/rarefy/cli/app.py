# SPDX-License-Identifier: Apache-2.0
"""The command line; torch is imported only when a network is really needed."""

import errno
import sys
from typing import Annotated, Any

import typer

import rarefy
from rarefy.cli.arguments import say
from rarefy.cli.files import info, methods, pack, systems, systems_show, unpack
from rarefy.cli.networks import compress, export, measure, sensitivity, train
from rarefy.errors import RarefyError

app = typer.Typer(
    name="rarefy",
    help="Makes a trained network small: prune, share, quantise, distil, code, measure, export.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def version(wanted: bool) -> None:
    """Prints the version and stops."""
    if wanted:
        print(f"rarefy {rarefy.__version__}")
        raise typer.Exit


@app.callback()
def root(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes a trained network small: prune, share, quantise, distil, code, measure, export."""


for command in (train, compress, measure, sensitivity, export, pack, unpack, info, methods):
    app.command()(command)
systems_app = typer.Typer(
    help="Published systems that run as recipes.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
systems_app.callback()(systems)
systems_app.command("show")(systems_show)
app.add_typer(systems_app, name="systems")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; bad input ends in one sentence on stderr and exit code 2."""
    usage_error: Any = typer.BadParameter.__mro__[
        2
    ]  # ClickException, of click or of typer's own copy
    code: Any = 2
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("rarefy: interrupted; run the same command again to go on after the last finished step")
        code = 130
    except usage_error as error:
        say(f"rarefy: {error.format_message()}")
    except RarefyError as error:
        say(f"rarefy: {error}")
    except OSError as error:
        say(f"rarefy: {disk(error)}")
    sys.exit(code if isinstance(code, int) else 0)


def disk(error: OSError) -> str:
    """What went wrong with a file, in a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run the same command again"
    return f"{error.filename or 'a file'}: {error.strerror or error}"


if __name__ == "__main__":
    main()
