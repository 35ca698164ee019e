# SPDX-License-Identifier: Apache-2.0
"""A recipe is an ordered list of steps; Python and YAML are two spellings of the same thing."""

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rarefy.errors import RecipeError, nearest
from rarefy.methods import METHODS
from rarefy.systems.catalogue import find_system

if TYPE_CHECKING:
    from rarefy.step import Step
    from rarefy.task import Task

CODERS = ("auto", "huffman", "ans", "raw")
HEADER = ("id", "title", "group", "paper", "year", "claim", "coder", "steps")


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and how the result is coded.

    Attributes:
        steps: the methods.
        coder: of the stored file: ``"auto"`` (the smallest), ``"huffman"``, ``"ans"``, ``"raw"``.
        name: for reports.
    """

    steps: "tuple[Step, ...]"
    coder: Literal["auto", "huffman", "ans", "raw"] = "auto"
    name: str = "recipe"

    def __post_init__(self) -> None:
        check_order(self.steps)

    def to_yaml(self) -> str:
        """The recipe as YAML; `from_yaml` gives an equal recipe back."""
        steps: list[Any] = [
            {s.key(): plain(s.settings())} if s.settings() else s.key() for s in self.steps
        ]
        data: dict[str, Any] = {"steps": steps}
        if self.coder != "auto":
            data["coder"] = self.coder
        return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> "Recipe":
        """Reads and checks a recipe.

        Raises:
            RecipeError: with source and line, the step, the field and what is allowed.
        """
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise RecipeError(
                f"{source}{line}: this is no YAML: {getattr(error, 'problem', error)}"
            ) from None
        finally:
            loader.dispose()
        if node is None or not isinstance(data, dict) or not isinstance(data.get("steps"), list):
            raise RecipeError(f"{source}: a recipe is a mapping with a list 'steps'")
        lines = {key.value: (key, value) for key, value in node.value}
        for key in data:
            if key not in HEADER:
                line = lines[key][0].start_mark.line + 1
                raise RecipeError(
                    f"{source}:{line}: a recipe has no field '{key}'{nearest(str(key), HEADER)}"
                )
        coder = data.get("coder", "auto")
        if coder not in CODERS:
            line = lines["coder"][0].start_mark.line + 1
            raise RecipeError(f"{source}:{line}: coder '{coder}'{nearest(str(coder), CODERS)}")
        nodes = lines["steps"][1].value
        steps = tuple(
            read_step(item, at, source) for item, at in zip(data["steps"], nodes, strict=True)
        )
        return cls(steps, coder, str(data.get("id", Path(source).stem)))

    def check(self, task: "Task") -> None:
        """Refuses a recipe whose needs the task does not meet, before anything runs.

        Raises:
            RecipeError: a step needs training data, labels or calibration data that are not there.
        """
        remedies = {
            "train": (task.train is not None, "training data: give Task(train=...)"),
            "labels": (
                task.labelled,
                "labels: use distill in its place, which learns from the original",
            ),
            "calibration": (
                any(b is not None for b in (task.calibration, task.train, task.validation)),
                "calibration data: give Task(calibration=...)",
            ),
        }
        for number, step in enumerate(self.steps, 1):
            for need in sorted(step.needs):
                there, remedy = remedies[need]
                if not there:
                    raise RecipeError(
                        f"step {number} ({step.key()}) needs {remedy}; task '{task.name}' has none"
                    )


def check_order(steps: "Iterable[Step]") -> None:
    """Refuses steps that can't read the form in which an earlier one leaves the weights.

    Raises:
        RecipeError: naming both steps and the order that works.
    """
    forms: dict[str, Step] = {}
    for step in steps:
        for form, writer in forms.items():
            if form not in step.reads:
                raise RecipeError(
                    f"{step.key()} can't come after {writer.key()}: it does not read {form} weights; "
                    f"put {step.key()} first"
                )
        if step.writes is not None:
            forms = {**forms, step.writes: step} if step.writes == "mask" else {step.writes: step}


def read_step(item: Any, node: yaml.Node, source: str) -> "Step":
    """One entry of a recipe's steps."""
    from rarefy.step import checked

    where = f"{source}:{node.start_mark.line + 1}: "
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        raise RecipeError(f"{where}a step is a name, or one name with its fields")
    ((name, values),) = item.items()
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{where}the fields of {name} are no mapping but {values!r}")
    cls = method(str(name), where)
    if isinstance(node, yaml.MappingNode) and isinstance(node.value[0][1], yaml.MappingNode):
        for key, _ in node.value[0][1].value:
            line = f"{source}:{key.start_mark.line + 1}: "
            check_field(cls, key.value, values, line)
    return cls(**checked(cls, values, where))


def check_field(cls: "type[Step]", name: str, values: dict[str, Any], where: str) -> None:
    """Checks one field alone, so that a complaint carries the field's own line."""
    from pydantic import ValidationError

    from rarefy.step import explain, schema

    fields = schema(cls).model_fields
    if name not in fields:
        raise RecipeError(f"{where}{cls.key()} has no field '{name}'{nearest(name, fields)}")
    try:
        schema(cls).__pydantic_validator__.validate_assignment(
            schema(cls).model_construct(), name, values[name]
        )
    except ValidationError as error:
        raise RecipeError(f"{where}{explain(cls, error)}") from None


def method(name: str, where: str = "") -> "type[Step]":
    """The class of a method by its name in a recipe.

    Raises:
        RecipeError: there is none, with the nearest name.
    """
    if name not in METHODS:
        raise RecipeError(f"{where}there is no method '{name}'{nearest(name, METHODS)}")
    module, _, attribute = METHODS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


def plain(value: Any) -> Any:
    """Tuples as lists, at any depth, for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def load_recipe(name: str | Path) -> Recipe:
    """The recipe of a published system, or of a YAML file.

    Raises:
        RecipeError: neither exists, or the recipe is wrong.
    """
    return Recipe.from_yaml(recipe_text(name), str(name))


def recipe_text(name: str | Path) -> str:
    """The YAML of a system or file; checked without importing torch."""
    path = Path(name)
    if re.search(r"\.ya?ml$", str(name)) or path.is_file():
        if not path.is_file():
            raise RecipeError(f"there is no recipe file '{name}'")
        return path.read_text(encoding="utf-8")
    return find_system(str(name)).text
