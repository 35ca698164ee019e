# SPDX-License-Identifier: Apache-2.0
"""Nested states (of networks, optimisers, averages) as one safetensors file, without pickling."""

import json
import os
from pathlib import Path
from typing import Any

from rarefy.errors import FileError


def flatten(value: Any, name: str, tensors: dict[str, Any], seen: set[int]) -> Any:
    """A JSON-able skeleton of `value`; tensors move to `tensors` under dotted names.

    They are copied only where several share memory (`seen` holds whose), which a file can't say.
    """
    from torch import Tensor

    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
        return {"tensor": name}
    if isinstance(value, dict):
        items = [
            [key, flatten(item, f"{name}.{key}", tensors, seen)] for key, item in value.items()
        ]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [flatten(item, f"{name}.{i}", tensors, seen) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    return {"plain": value}


def rebuild(skeleton: Any, tensors: dict[str, Any]) -> Any:
    """The inverse of `flatten`."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: rebuild(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [rebuild(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes nested dicts, lists, numbers, strings and tensors to `path` in one move.

    Args:
        path: of the file; a partial file never carries this name.
        state: may hold tensors at any depth; keys are strings or integers.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    skeleton = json.dumps(flatten(state, "state", tensors, set()))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, str(partial), metadata={"skeleton": skeleton})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Reads what `save_state` wrote; tensors arrive on the CPU.

    Raises:
        FileError: the file is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return rebuild(json.loads(metadata["skeleton"]), tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise FileError(
            f"'{path}' is no readable state file ({error}); delete it and start again"
        ) from None
