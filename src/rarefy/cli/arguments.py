# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share, and their check before torch is imported."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rarefy.export.runtimes import check_runtime


def complete_model(incomplete: str) -> list[str]:
    """Networks of the zoo and kinds of models, for the shell's completion."""
    from rarefy.zoo.models import WEIGHTS, ZOO

    names = [f"zoo:{name}" for name in (*ZOO, *sorted(p.stem for p in WEIGHTS.glob("*.rfy")))]
    names += ["torchvision:", "timm:", "hf:"]
    return [name for name in names if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Kinds of tasks, for the shell's completion."""
    from rarefy.zoo.tasks import FORMS

    names = [f"{name}:" if ":" in form else name for name, form in FORMS.items()]
    return [name for name in names if name.startswith(incomplete)]


def complete_system(incomplete: str) -> list[str]:
    """Published systems, for the shell's completion."""
    from rarefy.systems.catalogue import systems

    return [name for name in systems() if name.startswith(incomplete)]


NETWORKS = "zoo:lenet5[@mnist], torchvision:NAME, timm:NAME, hf:DIR-or-id, path/file.py:callable"
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{NETWORKS}.", autocompletion=complete_model)
]
Measured = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"{NETWORKS}, a result's folder, file.rfy, file.onnx.",
        autocompletion=complete_model,
    ),
]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="digits, random-images, mnist:FILE, fashion-mnist:DIR, cifar10:DIR, imagefolder:DIR, "
        "imagezip:FILE, path/file.py:callable.",
        autocompletion=complete_task,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        help="A system's id (see rarefy systems) or a YAML file.", autocompletion=complete_system
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="A .safetensors or .rfy file of trained weights.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Runtime = Annotated[str, typer.Option(help="Where the result runs: onnxruntime, openvino, litert.")]


def say(text: str) -> None:
    """A line on stderr, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def check_names(model: str, task: str, runtime: str = "onnxruntime") -> None:
    """Refuses misspelt names before torch is imported."""
    from rarefy.zoo import models, tasks

    kind, rest = models.split_spec(model)
    if kind == "zoo":
        models.zoo_entry(rest)
    tasks.split_spec(task)
    check_runtime(runtime)
