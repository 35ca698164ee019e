# SPDX-License-Identifier: Apache-2.0
"""The command line; torch is imported only when a network is really needed."""

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import rarefy
from rarefy.errors import RarefyError

app = typer.Typer(
    name="rarefy",
    help="Makes a trained network small: prune, share, quantise, distil, code, measure, export.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Model = Annotated[
    str, typer.Argument(help="zoo:lenet5[@mnist], torchvision:…, timm:…, hf:…, file.py:callable")
]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="digits, random-images, mnist:FILE, fashion-mnist:DIR, cifar10:DIR, imagefolder:DIR, "
        "imagezip:FILE, file.py:callable",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="A .safetensors or .rfy file of trained weights.")
]
Seed = Annotated[int, typer.Option(help="Of everything that is random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Runtime = Annotated[str, typer.Option(help="Where the result runs: onnxruntime.")]
RUNTIMES = ("onnxruntime",)


def say(text: str) -> None:
    """A line on stderr, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def check_names(model: str, task: str, runtime: str = "onnxruntime") -> None:
    """Refuses misspelt names before torch is imported."""
    from rarefy.errors import nearest
    from rarefy.zoo import models, tasks

    kind, rest = models.split_spec(model)
    if kind == "zoo":
        models.zoo_entry(rest)
    tasks.split_spec(task)
    if runtime not in RUNTIMES:
        raise RarefyError(f"there is no runtime '{runtime}'{nearest(runtime, RUNTIMES)}")


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


@app.command()
def train(
    model: Model,
    task: TaskName,
    out: Annotated[Path, typer.Option(help="Where the weights go (.safetensors).")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: what suits the network.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Highest learning rate.")] = None,
    seed: Seed = 0,
) -> None:
    """Train a network from scratch and save its weights."""
    check_names(model, task)
    from rarefy.zoo.training import train_from_scratch

    report = train_from_scratch(model, task, out, epochs=epochs, rate=rate, seed=seed)
    print(
        f"{report['metric']} {report['value']:.4f} on {report['examples']} test examples "
        f"after {report['minutes']:.1f} minutes ({report['cpu_minutes']:.1f} CPU minutes); weights in {out}"
    )


@app.command()
def compress(
    model: Model,
    task: TaskName,
    out: Annotated[Path, typer.Option(help="Folder for model.onnx, model.rfy, report.html …")],
    weights: Weights = None,
    recipe: Annotated[str | None, typer.Option(help="A system's id or a YAML file.")] = None,
    budget: Annotated[str | None, typer.Option(help='Such as "size=1/8,metric_drop=0.01".')] = None,
    runtime: Runtime = "onnxruntime",
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Compress a network by a recipe, or find a recipe that meets a budget."""
    from rarefy.budget import Budget
    from rarefy.recipe import recipe_text

    check_names(model, task, runtime)
    if recipe is None and budget is None:
        raise RarefyError('say how: --recipe NAME or FILE, or --budget "size=1/8,metric_drop=0.01"')
    if recipe is not None:
        recipe_text(recipe)
    limits = Budget.parse(budget) if budget is not None else None
    result = run_compression(model, task, weights, recipe, limits, seed, out)
    if json_:
        print(json.dumps(result.document, indent=1))
    else:
        from rarefy.report.terminal import show_stages

        show_stages(result.document)
        print(f"report: {out / 'report.html'}")
    if not result.met:
        say("the budget was not met; the best result was saved all the same")
        raise typer.Exit(1)


def run_compression(
    model: str,
    task: str,
    weights: Path | None,
    recipe: str | None,
    budget: Any,
    seed: int,
    out: Path,
) -> Any:
    """Loads, compresses and saves; finished stages are kept in ``out/.stages`` for a resume."""
    from rarefy.search.compress import compress as run
    from rarefy.zoo.models import load_model
    from rarefy.zoo.tasks import load_task

    network = load_model(model, weights)
    data = load_task(task, network)
    out.mkdir(parents=True, exist_ok=True)
    result = run(
        network, data, recipe, budget=budget, seed=seed, cache=out / ".stages", names=(model, task)
    )
    result.save(out)
    return result


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="As for compress, or DIR, file.rfy, file.onnx.")],
    task: TaskName,
    weights: Weights = None,
    runtime: Runtime = "onnxruntime",
    json_: Json = False,
) -> None:
    """Measure a network, or an exported file without any code of the network."""
    check_names(model, task, runtime)
    from rarefy.report.measured import measure_anything
    from rarefy.report.terminal import show_stages

    stage = measure_anything(model, task, weights)
    if json_:
        print(json.dumps(stage, indent=1))
    else:
        show_stages({"stages": [stage]})


@app.command()
def sensitivity(
    model: Model,
    task: TaskName,
    out: Annotated[Path, typer.Option(help="Folder for sensitivity.json and sensitivity.html.")],
    weights: Weights = None,
) -> None:
    """Find out which layers mind being pruned."""
    check_names(model, task)
    from rarefy.report.sensitivity import write_sensitivity
    from rarefy.zoo.models import load_model
    from rarefy.zoo.tasks import load_task

    network = load_model(model, weights)
    print(f"plot: {write_sensitivity(network, load_task(task, network), out)}")


@app.command()
def export(
    model: Model,
    task: TaskName,
    out: Annotated[Path, typer.Option(help="Folder for model.onnx.")],
    weights: Weights = None,
    runtime: Runtime = "onnxruntime",
) -> None:
    """Export a network as it is, with parity checked on real inputs."""
    check_names(model, task, runtime)
    from rarefy.report.measured import export_network

    print(export_network(model, task, weights, out))


@app.command()
def pack(
    file: Annotated[Path, typer.Argument(help="A .onnx or .safetensors file.")],
    out: Annotated[Path, typer.Option(help="The .rfy file to write.")],
) -> None:
    """Code a file of weights as small as possible, bit-exactly."""
    from rarefy.store.pack import pack as code

    size = code(file, out)
    before = file.stat().st_size
    print(
        f"{out}: {size:,} bytes, {before / size:.2f} times smaller than {file} ({before:,} bytes)"
    )


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="A .rfy file.")],
    out: Annotated[Path, typer.Option(help="The .onnx or .safetensors file to write.")],
) -> None:
    """Decode a .rfy file to what it was packed from."""
    from rarefy.store.pack import unpack as decode

    decode(file, out)
    print(f"{out}: {out.stat().st_size:,} bytes")


@app.command()
def info(file: Annotated[Path, typer.Argument(help="A .rfy file.")], json_: Json = False) -> None:
    """Show what a .rfy file holds."""
    from rarefy.report.terminal import show_archive

    show_archive(file, json_)


systems_app = typer.Typer(
    help="Published systems that run as recipes.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(systems_app, name="systems")


@systems_app.callback()
def systems(context: typer.Context, json_: Json = False) -> None:
    """List the published systems, or show one: rarefy systems show ID."""
    from rarefy.recipe import systems as catalogue
    from rarefy.report.terminal import show_rows

    if context.invoked_subcommand is not None:
        return
    rows = [
        {"id": s.id, "title": s.title, "group": s.group, "paper": s.paper, "year": s.year}
        for s in catalogue().values()
    ]
    show_rows(rows, json_, columns=("id", "title", "group", "year"))


@systems_app.command("show")
def systems_show(id: Annotated[str, typer.Argument(help="Of a system.")]) -> None:
    """Print a system's recipe with its paper and claim."""
    from rarefy.recipe import find_system

    print(find_system(id).text, end="")


@app.command()
def methods(json_: Json = False) -> None:
    """List the methods of which recipes are made."""
    from rarefy.methods import METHODS
    from rarefy.report.terminal import show_rows

    show_rows([{"method": name, "does": text} for name, (_, text) in METHODS.items()], json_)


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
