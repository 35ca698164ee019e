# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share, and their check before torch is imported."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rarefy.errors import RarefyError, nearest

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
    from rarefy.zoo import models, tasks

    kind, rest = models.split_spec(model)
    if kind == "zoo":
        models.zoo_entry(rest)
    tasks.split_spec(task)
    if runtime not in RUNTIMES:
        raise RarefyError(f"there is no runtime '{runtime}'{nearest(runtime, RUNTIMES)}")
