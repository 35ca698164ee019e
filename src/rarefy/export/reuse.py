# SPDX-License-Identifier: Apache-2.0
"""A network that differs from the last one in its values alone takes over that one's captured graph."""

import enum
import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.export.capture import capture
from rarefy.task import Inputs, tensors_of

PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, enum.Enum)
HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_kwargs")))


class Unknown(Exception):
    """Something that a forward may read and that can't be compared."""


@dataclass
class Kept:
    """The graph that was captured last, without the network's values.

    Attributes:
        structure: of the network and the example it was captured from; None for none.
        graph: an ``onnx_ir.Model`` whose initializers that are the network's have no values.
    """

    structure: Any = None
    graph: Any = None


LAST = Kept()


def captured(model: nn.Module, example: Inputs) -> Any:
    """What `rarefy.export.capture.capture` gives, without tracing if values alone have changed since then.

    Between the steps of a recipe most often nothing but the values of weights changes, and tracing takes
    seconds. Two networks count as the same if all modules have the same classes, hold the same plain values,
    and have parameters and buffers of the same names, shapes and types; a network with hooks, or with
    attributes that can't be compared, is always traced.

    Args:
        model: in eval mode on the CPU, weights finished.
        example: batch first.

    Raises:
        ModelError: the network can't be traced or has an operator that ONNX lacks.
    """
    try:
        structure = structure_of(model, example)
    except Unknown:
        return capture(model, example)
    if structure != LAST.structure:
        graph = capture(model, example)
        names = {name for name, _ in model.named_parameters()}
        if not names <= graph.graph.initializers.keys():
            return (
                graph  # a parameter was folded into the graph or is not used: its values may count
            )
        LAST.structure, LAST.graph = structure, emptied(graph, model)
    return filled(LAST.graph, model)


def structure_of(model: nn.Module, example: Inputs) -> Any:
    """Everything but the values of parameters and buffers that a trace depends on.

    Raises:
        Unknown: an attribute can't be compared.
    """
    shared: dict[int, int] = {}
    modules = []
    for name, module in model.named_modules(remove_duplicate=False):
        held = sorted([*module._parameters.items(), *module._buffers.items()], key=itemgetter(0))
        tensors = [described_tensor(key, tensor, shared) for key, tensor in held]
        modules.append((name, type(module), described(own(module)), tensors))
    inputs = [(tensor.shape, tensor.dtype) for tensor in tensors_of(example)]
    names = list(example) if isinstance(example, Mapping) else None
    return torch.get_default_dtype(), type(example), names, inputs, modules


def own(module: nn.Module) -> dict[str, Any]:
    """A module's plain attributes.

    Raises:
        Unknown: the module has hooks.
    """
    attributes = dict(vars(module))
    if any(attributes.pop(name, None) for name in HOOKS):
        raise Unknown
    for name in ("_parameters", "_buffers", "_modules"):
        attributes.pop(name)
    return attributes


def described(value: Any) -> Any:
    """Something to compare `value` by.

    Raises:
        Unknown: there is nothing.
    """
    if isinstance(value, PLAIN):
        return type(value), repr(value)
    if isinstance(value, Tensor):
        raise Unknown
    if isinstance(value, (tuple, list)):
        return type(value), [described(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(described(each)) for each in value)
    if isinstance(value, Mapping):
        return type(value), [(described(k), described(v)) for k, v in value.items()]
    if isinstance(value, functools.partial):
        return described(value.func), described(value.args), described(value.keywords)
    if isinstance(value, types.FunctionType) and value.__closure__ is None:
        return value
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return value
    raise Unknown


def described_tensor(name: str, tensor: Tensor | None, shared: dict[int, int]) -> Any:
    """Name, shape and type of a parameter or buffer, and whose value it shares."""
    if tensor is None:
        return name, None
    first = shared.setdefault(id(tensor), len(shared))
    return name, first, tensor.shape, tensor.stride(), tensor.dtype, type(tensor)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by every name that they have."""
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(model.named_buffers(remove_duplicate=False))


def emptied(graph: Any, model: nn.Module) -> Any:
    """`graph` without the values of the network's weights, so that it keeps none of them in memory."""
    for name in values_of(model).keys() & graph.graph.initializers.keys():
        graph.graph.initializers[name].const_value = None
    return graph


def filled(graph: Any, model: nn.Module) -> Any:
    """A copy of `graph` with the values of `model`; later changes to it leave `graph` as it is."""
    from onnx_ir.tensor_adapters import TorchTensor

    copied, values = graph.clone(), values_of(model)
    for name, value in copied.graph.initializers.items():
        if name in values:
            value.const_value = TorchTensor(values[name], name=name)
    return copied
