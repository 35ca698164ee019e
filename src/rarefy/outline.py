# SPDX-License-Identifier: Apache-2.0
"""The outline of a recipe in YAML: what can be said about it before any method is imported."""

import re
from typing import Any

import yaml

from rarefy.errors import RecipeError, nearest
from rarefy.methods import METHODS

CODERS = ("auto", "huffman", "ans", "raw", "mixing")
BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")  # a number in YAML 1.1
HEADER = ("id", "title", "group", "paper", "year", "claim", "part", "extra", "coder", "steps")


def read_outline(text: str, source: str) -> tuple[dict[str, Any], yaml.MappingNode]:
    """The mapping that YAML holds, with its nodes: fields of the recipe and names of methods checked.

    Args:
        text: YAML.
        source: names it in errors.

    Raises:
        RecipeError: no YAML, another shape, an unknown field or method, a field given twice, or a
            plain 2:4, which YAML 1.1 reads as a number of base 60.
    """
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)  # looks at the text's first characters already
        node = loader.get_single_node()
        check_nodes(node, source)
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{source}{line}: this is no YAML: {problem}") from None
    except (ValueError, OverflowError) as error:  # of a date, or of a number that is none
        raise RecipeError(f"{source}: a value can't be read: {error}") from None
    except RecursionError:
        raise RecipeError(f"{source}: this is nested too deeply for a recipe") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise RecipeError(f"{source}: a recipe is a mapping with a list 'steps'")
    check_header(data, node, source)
    for item, at in zip(data["steps"], steps_node(node).value, strict=True):
        where = f"{source}:{at.start_mark.line + 1}: "
        check_method(name_and_fields(item, where)[0], where)
    return data, node


def check_nodes(node: Any, source: str) -> None:
    """Refuses keys that stand twice in a mapping, aliases, and numbers of base 60."""
    pending, seen = [node] if node is not None else [], set()
    while pending:
        at = pending.pop()
        where = f"{source}:{at.start_mark.line + 1}: "
        if id(at) in seen:
            raise RecipeError(f"{where}write out what the alias (*) stands for")
        seen.add(id(at))
        if isinstance(at, yaml.SequenceNode):
            pending += at.value
        elif isinstance(at, yaml.MappingNode):
            check_keys(at, source)
            pending += [value for _, value in at.value]
        elif at.style is None and BASE_60.fullmatch(at.value):
            number = yaml.safe_load(at.value)
            raise RecipeError(
                f"{where}YAML reads {at.value} as the number {number}; put quotes around it: "
                f'"{at.value}"'
            )


def check_keys(node: yaml.MappingNode, source: str) -> None:
    """Refuses a mapping whose keys are no words, or that names one twice."""
    seen: set[str] = set()
    for key, _ in node.value:
        where = f"{source}:{key.start_mark.line + 1}: "
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise RecipeError(f"{where}the name of a field is no word")
        if key.value in seen:
            raise RecipeError(f"{where}{key.value!r} is given twice")
        seen.add(key.value)


def check_header(data: dict[str, Any], node: yaml.MappingNode, source: str) -> None:
    """Refuses unknown fields of a recipe, a missing list of steps, an unknown coder."""
    for key in data:
        if key not in HEADER:
            line = field_of(node, key).start_mark.line + 1
            raise RecipeError(
                f"{source}:{line}: a recipe has no field {key!r}{nearest(key, HEADER)}"
            )
    if not isinstance(data.get("steps"), list):
        raise RecipeError(f"{source}: a recipe is a mapping with a list 'steps'")
    coder = data.get("coder", "auto")
    if coder not in CODERS:
        line = field_of(node, "coder").start_mark.line + 1
        raise RecipeError(f"{source}:{line}: coder {str(coder)!r}{nearest(str(coder), CODERS)}")


def field_of(node: yaml.MappingNode, name: str) -> yaml.ScalarNode:
    """The key's node of a field that the mapping is known to have."""
    found: yaml.ScalarNode = next(key for key, _ in node.value if key.value == name)
    return found


def steps_node(node: yaml.MappingNode) -> yaml.SequenceNode:
    """The node of the list of steps."""
    found: yaml.SequenceNode = next(value for key, value in node.value if key.value == "steps")
    return found


def name_and_fields(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    """The method of one entry of a recipe's steps, and the fields that are given.

    Raises:
        RecipeError: the entry is neither a name nor one name with a mapping.
    """
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, dict) or len(item) != 1:
        raise RecipeError(f"{where}a step is a name, or one name with its fields")
    ((name, values),) = item.items()
    if values is not None and not isinstance(values, dict):
        raise RecipeError(f"{where}the fields of {name} are no mapping but {values!r}")
    return str(name), values or {}


def check_method(name: str, where: str = "") -> None:
    """Refuses a name that no method has.

    Raises:
        RecipeError: with the nearest name.
    """
    if name not in METHODS:
        raise RecipeError(
            f"{where}there is no method {name!r}{nearest(name, METHODS, 'rarefy methods')}"
        )
