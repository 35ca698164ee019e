# SPDX-License-Identifier: Apache-2.0
"""Commands that work on a network: train, compress, measure, sensitivity, export."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rarefy.cli.arguments import (
    Json,
    Measured,
    Model,
    RecipeName,
    Runtime,
    Seed,
    TaskName,
    Weights,
    check_names,
    say,
)
from rarefy.cli.outputs import STAGES, output_file, output_folder
from rarefy.errors import RarefyError


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
    output_file(out, ".safetensors")
    from rarefy.zoo.training import train_from_scratch

    report = train_from_scratch(model, task, out, epochs=epochs, rate=rate, seed=seed)
    print(
        f"{report['metric']} {report['value']:.4f} on {report['examples']} test examples "
        f"after {report['minutes']:.1f} minutes ({report['cpu_minutes']:.1f} CPU minutes); weights in {out}"
    )


def compress(
    model: Model,
    task: TaskName,
    out: Annotated[Path, typer.Option(help="Folder for model.onnx, model.rfy, report.html …")],
    weights: Weights = None,
    recipe: RecipeName = None,
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
    with output_folder(out):
        result = run_compression((model, task), weights, recipe, limits, runtime, seed, out)
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
    names: tuple[str, str],
    weights: Path | None,
    recipe: str | None,
    budget: Any,
    runtime: str,
    seed: int,
    out: Path,
) -> Any:
    """Loads, compresses and saves; finished stages are kept in ``out/.stages`` for a resume."""
    from rarefy.recipe import load_recipe
    from rarefy.search.compress import compress as run
    from rarefy.zoo.models import load_model
    from rarefy.zoo.tasks import load_task

    chosen = load_recipe(recipe) if recipe is not None else None
    network = load_model(names[0], weights)
    data = load_task(names[1], network)
    result = run(
        network,
        data,
        chosen,
        budget=budget,
        runtime=runtime,
        seed=seed,
        cache=out / STAGES,
        names=names,
    )
    result.save(out)
    return result


def measure(
    model: Measured,
    task: TaskName,
    weights: Weights = None,
    runtime: Runtime = "onnxruntime",
    json_: Json = False,
) -> None:
    """Measure a network, or an exported file without any code of the network."""
    check_names(model, task, runtime)
    from rarefy.report.measured import measure_anything
    from rarefy.report.terminal import show_stages

    stage = measure_anything(model, task, weights, runtime)
    if json_:
        print(json.dumps(stage, indent=1))
    else:
        show_stages({"stages": [stage]})


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

    with output_folder(out):
        network = load_model(model, weights)
        print(f"plot: {write_sensitivity(network, load_task(task, network), out)}")


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

    with output_folder(out):
        print(export_network(model, task, weights, out, runtime))
