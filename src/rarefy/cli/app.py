# SPDX-License-Identifier: Apache-2.0
"""The command line; torch is imported only when a network is really needed."""

import errno
import sys
from typing import Annotated, Any

import typer

import rarefy
from rarefy.cli.failures import INTERRUPTED, WRONG, error_number, hang_up, report
from rarefy.cli.files import info, methods, pack, systems, systems_show, unpack
from rarefy.cli.networks import compress, export, measure, sensitivity, train

app = typer.Typer(
    name="rarefy",
    help="Makes a trained network small: prune, share, quantise, distil, code, measure, export.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def version(wanted: bool) -> None:
    """Prints the version and stops."""
    if wanted:
        print(f"rarefy {rarefy.__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="Begin with: rarefy train zoo:digits-net digits --out digits.safetensors",
)
def root(
    context: typer.Context,
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes a trained network small: prune, share, quantise, distil, code, measure, export."""
    if context.invoked_subcommand is None:
        print(context.get_help())


EXAMPLES: dict[Any, str] = {
    train: "zoo:lenet5 mnist:mnist.npz --out lenet5.safetensors",
    compress: "zoo:lenet5 mnist:mnist.npz --weights lenet5.safetensors --recipe deep-compression --out out",
    measure: "out/model.rfy mnist:mnist.npz --json",
    sensitivity: "zoo:lenet5 mnist:mnist.npz --weights lenet5.safetensors --out out",
    export: "my_model.py:model my_model.py:task --out out",
    pack: "lenet5.safetensors --out lenet5.rfy",
    unpack: "lenet5.rfy --out lenet5.safetensors",
    info: "out/model.rfy",
    methods: "--json",
}
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: rarefy {command.__name__} {example}")(command)
systems_app = typer.Typer(
    help="Published systems that run as recipes.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
systems_app.callback(epilog="Example: rarefy systems show deep-compression > my.yaml")(systems)
systems_app.command("show", epilog="Example: rarefy systems show kd > my.yaml")(systems_show)
app.add_typer(systems_app, name="systems")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; bad input ends in one sentence on stderr and exit code 2.

    Environment:
        RAREFY_TRACEBACK: if set, the traceback comes before the sentence.
        RAREFY_QUIET: if set, no progress is shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a sign is no reason to fail
            stream.reconfigure(errors="replace")
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, of click or of typer's copy
    code: Any = WRONG
    try:
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer has swallowed the exception
            report(KeyboardInterrupt())
        sys.stdout.flush()
    except typer.Exit as stop:
        code = stop.exit_code
    except typer.Abort:
        code = report(KeyboardInterrupt())
    except usage_error as error:
        print(f"rarefy: {' '.join(error.format_message().split())}", file=sys.stderr, flush=True)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if error_number(error) == errno.EPIPE:
            hang_up()
            code = 0
        elif isinstance(error, SystemExit):  # the shell's completion ends so
            raise
        else:
            code = report(error)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
