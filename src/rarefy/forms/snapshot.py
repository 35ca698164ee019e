# SPDX-License-Identifier: Apache-2.0
"""What a half-compressed network is, as plain data and tensors, without pickling.

A snapshot names for every module its class, its plain attributes and its tensors. It is restored onto the
network that the user hands over again, so his own classes are never imported from a file: a module of a
changed place must be one of torch's, of rarefy's, or of a class that the user's network holds already, and a
form one of rarefy's or of a module that is imported already.
"""

import copy
import importlib
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.errors import FileError
from rarefy.forms.shadow import Form, dress, unparametrize

HIDDEN = {"training", "parametrizations"}
PRIVATE = {"_reversed_padding_repeated_twice"}  # of convolutions, made from their padding
TRUSTED = ("torch.nn.", "rarefy.")


def plain(value: Any) -> bool:
    """Whether a value is a number, a string, a flag, None, or a tuple or list of such."""
    if isinstance(value, (tuple, list)):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def encode(value: Any) -> Any:
    """JSON for a plain value; tuples are told from lists."""
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    return [encode(item) for item in value] if isinstance(value, list) else value


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, dict):
        return tuple(decode(item) for item in value["tuple"])
    return [decode(item) for item in value] if isinstance(value, list) else value


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before `parametrize` gave it a class of its own."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def class_name(cls: type[Any]) -> str:
    """The importable name of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def attributes(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module."""
    return {
        name: encode(value)
        for name, value in vars(module).items()
        if (name in PRIVATE or not name.startswith("_")) and name not in HIDDEN and plain(value)
    }


def stacks(module: nn.Module) -> dict[str, Any]:
    """The stacks of forms of a module, by the tensor that they stand on."""
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}  # type: ignore[union-attr, operator]


def keep(
    tensor: Tensor | None, path: str, tensors: dict[str, Tensor], names: dict[int, str]
) -> Any:
    """Stores a tensor once; the name under which it is found, or None."""
    if tensor is None:
        return None
    if id(tensor) not in names:
        names[id(tensor)] = path
        tensors[path] = tensor.detach()
    return names[id(tensor)]


def snapshot(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure (JSON-able) and tensors of a network; tensors that are shared are kept once."""
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def describe(module: nn.Module, path: str) -> dict[str, Any]:
        dot = f"{path}." if path else ""
        return {
            "class": class_name(own_class(module)),
            "plain": attributes(module),
            "training": module.training,
            "parameters": {
                name: [
                    keep(p, dot + name, tensors, names),
                    bool(p.requires_grad) if p is not None else False,
                ]
                for name, p in module._parameters.items()
            },
            "buffers": {
                name: [
                    keep(b, dot + name, tensors, names),
                    name not in module._non_persistent_buffers_set,
                ]
                for name, b in module._buffers.items()
            },
            "children": {
                name: describe(child, dot + name)
                for name, child in module._modules.items()
                if child is not None and name not in HIDDEN
            },
            "forms": {name: worn(held, dot + name) for name, held in stacks(module).items()},
        }

    def worn(held: Any, path: str) -> dict[str, Any]:
        original = held.original
        return {
            "original": [
                keep(original, f"{path}.original", tensors, names),
                bool(original.requires_grad),
            ],
            "stack": [describe(form, f"{path}.form{i}") for i, form in enumerate(held)],
        }

    return describe(model, ""), tensors


def restore(
    original: nn.Module, structure: dict[str, Any], tensors: dict[str, Tensor]
) -> nn.Module:
    """The network of a snapshot, made from a copy of the `original` that it descends from.

    Raises:
        FileError: the snapshot asks for a class that is neither trusted nor part of the original.
    """
    known = {class_name(own_class(m)): own_class(m) for m in original.modules()}
    device = next((p.device for p in original.parameters()), torch.device("cpu"))
    made: dict[tuple[str, bool], nn.Parameter] = {}

    def parameter(name: str, trained: bool) -> nn.Parameter:
        if (name, trained) not in made:
            made[name, trained] = nn.Parameter(
                tensors[name].clone().to(device), requires_grad=trained
            )
        return made[name, trained]

    def build(module: nn.Module | None, state: dict[str, Any]) -> nn.Module:
        if module is None or class_name(own_class(module)) != state["class"]:
            cls = find_class(state["class"], known)
            module = cls.__new__(cls)
            nn.Module.__init__(module)
        for name, value in state["plain"].items():
            if not hasattr(module, name) or encode(getattr(module, name)) != value:
                setattr(module, name, decode(value))
        module._parameters.clear()
        for name, (held, trained) in state["parameters"].items():
            module._parameters[name] = parameter(held, trained) if held else None
        module._buffers.clear()
        for name, (held, persistent) in state["buffers"].items():
            buffer = tensors[held].clone().to(device) if held else None
            module.register_buffer(name, buffer, persistent)
        for name in [n for n in module._modules if n not in state["children"]]:
            module._modules.pop(name)
        for name, child in state["children"].items():
            module._modules[name] = build(module._modules.get(name), child)
        for name, held in state["forms"].items():
            put_forms(module, name, held, parameter, build)
        module.training = state["training"]
        if hasattr(module, "activation_quantizers"):
            module.activation_quantizers.attach(module)  # type: ignore[union-attr, operator]
        return module

    start = copy.deepcopy(original)
    return build(start, structure)


class Unchanged(Form):
    """Holds the place in which the forms of a snapshot are put."""

    kind = "dense"

    def forward(self, w: Tensor) -> Tensor:
        return w

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def put_forms(
    module: nn.Module, name: str, state: dict[str, Any], parameter: Any, build: Any
) -> None:
    """Dresses a tensor in the forms of a snapshot."""
    held, trained = state["original"]
    unparametrize(module, name)
    module.register_parameter(name, parameter(held, trained))
    dress(module, name, Unchanged())
    stack: Any = module.parametrizations[name]  # type: ignore[index]
    del stack[0]
    stack.extend(build(None, form) for form in state["stack"])


def find_class(name: str, known: dict[str, type[nn.Module]]) -> type[nn.Module]:
    """A class by its name, if it may be made: nothing is imported but torch's and rarefy's own.

    A form that the user's own method defines is found where that method has been imported already.

    Raises:
        FileError: it may not.
    """
    if name in known:
        return known[name]
    module, _, path = name.partition(":")
    trusted = module.startswith(TRUSTED)
    found: Any = importlib.import_module(module) if trusted else sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module if trusted else Form)):
        raise FileError(
            f"the stage needs the class '{name}', which is not part of the network; "
            "delete the cache and start again"
        )
    return found
