# SPDX-License-Identifier: Apache-2.0
"""A recipe is an ordered list of steps; Python and YAML are two spellings of the same thing."""

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rarefy.errors import RecipeError, described, nearest
from rarefy.methods import METHODS
from rarefy.outline import check_method, name_and_fields, read_outline, steps_node
from rarefy.systems.catalogue import find_system

if TYPE_CHECKING:
    from rarefy.step import Step
    from rarefy.task import Task


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and how the result is coded.

    Attributes:
        steps: the methods.
        coder: of the stored file: ``"auto"``, ``"huffman"``, ``"ans"``, ``"raw"``,
            or ``"mixing"``, the smallest and slowest.
        name: for reports.
    """

    steps: "tuple[Step, ...]"
    coder: Literal["auto", "huffman", "ans", "raw", "mixing"] = "auto"
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
        data, node = read_outline(text, source)
        nodes = steps_node(node).value
        steps = tuple(
            read_step(item, at, source) for item, at in zip(data["steps"], nodes, strict=True)
        )
        return cls(steps, data.get("coder", "auto"), str(data.get("id", Path(source).stem)))

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
    name, values = name_and_fields(item, where)
    cls = method(name, where)
    if isinstance(node, yaml.MappingNode) and isinstance(node.value[0][1], yaml.MappingNode):
        for key, value in node.value[0][1].value:
            line = f"{source}:{key.start_mark.line + 1}: "
            check_field(cls, key.value, values, line, value)
    return cls(**checked(cls, values, where))


def check_field(
    cls: "type[Step]", name: str, values: dict[str, Any], where: str, node: yaml.Node
) -> None:
    """Checks one field alone, so that a complaint carries the field's own line."""
    from pydantic import ValidationError

    from rarefy.step import explain, schema

    fields = schema(cls).model_fields
    if name not in fields:
        raise RecipeError(f"{where}{cls.key()} has no field {name!r}{nearest(name, fields)}")

    def refused(value: Any) -> ValidationError | None:
        try:
            blank = schema(cls).model_construct()
            schema(cls).__pydantic_validator__.validate_assignment(blank, name, value)
        except ValidationError as error:
            return error
        return None

    error = refused(values[name])
    if error is None:
        return
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    if text and not isinstance(values[name], str) and not refused(text):
        raise RecipeError(
            f"{where}{cls.key()}: YAML reads {name}: {text} as {values[name]!r}; put quotes around "
            f'it: {name}: "{text}"'
        )
    raise RecipeError(f"{where}{explain(cls, error)}")


def method(name: str, where: str = "") -> "type[Step]":
    """The class of a method by its name in a recipe.

    Raises:
        RecipeError: there is none, with the nearest name.
    """
    check_method(name, where)
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
    """The YAML of a system or file, its outline and the names of its methods checked; needs no torch.

    Raises:
        RecipeError: neither exists, the file is no text, or the outline is wrong.
    """
    path = Path(name)
    if not re.search(r"\.ya?ml$", str(name)) and not path.is_file():
        return find_system(str(name)).text
    if not path.is_file():
        raise RecipeError(f"there is no recipe file '{name}'")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"'{name}' can't be read as text ({described(error)})") from None
    read_outline(text, str(name))
    return text
