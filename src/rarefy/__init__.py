# SPDX-License-Identifier: Apache-2.0
"""Takes a trained network and a budget, returns the smallest network that still does its job."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rarefy.budget import Budget as Budget
    from rarefy.compress import Result as Result
    from rarefy.distill.distill import Distill as Distill
    from rarefy.distill.finetune import Finetune as Finetune
    from rarefy.factorize.factorize import Factorize as Factorize
    from rarefy.prune.prune_channels import PruneChannels as PruneChannels
    from rarefy.prune.prune_weights import PruneWeights as PruneWeights
    from rarefy.quantize.share_weights import ShareWeights as ShareWeights
    from rarefy.quantize.static_int8 import StaticInt8 as StaticInt8
    from rarefy.recipe import Recipe as Recipe
    from rarefy.search.compress import compress as compress
    from rarefy.select import select as select
    from rarefy.step import Context as Context
    from rarefy.step import Step as Step
    from rarefy.task import Metric as Metric
    from rarefy.task import Task as Task

FACE = {
    "Budget": "rarefy.budget",
    "Context": "rarefy.step",
    "Distill": "rarefy.distill.distill",
    "Factorize": "rarefy.factorize.factorize",
    "Finetune": "rarefy.distill.finetune",
    "Metric": "rarefy.task",
    "PruneChannels": "rarefy.prune.prune_channels",
    "PruneWeights": "rarefy.prune.prune_weights",
    "Recipe": "rarefy.recipe",
    "Result": "rarefy.compress",
    "ShareWeights": "rarefy.quantize.share_weights",
    "StaticInt8": "rarefy.quantize.static_int8",
    "Step": "rarefy.step",
    "Task": "rarefy.task",
    "compress": "rarefy.search.compress",
    "select": "rarefy.select",
}
__all__ = ["Budget", "Context", "Distill", "Factorize", "Finetune", "Metric", "PruneChannels",
           "PruneWeights", "Recipe", "Result", "ShareWeights", "StaticInt8", "Step",
           "Task", "__version__", "compress", "select"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used, so that the command line starts quickly."""
    if name not in FACE:
        raise AttributeError(f"module 'rarefy' has no attribute '{name}'")
    value = getattr(importlib.import_module(FACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class Face(ModuleType):
    """The package as its users see it: `rarefy.compress` is the function, never the file of that name.

    Importing a file sets it as an attribute of its package, which would hide the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in FACE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = Face
