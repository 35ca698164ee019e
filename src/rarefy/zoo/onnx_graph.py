# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a network of PyTorch modules, so that every step can change it."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.loops.finite import all_finite
from rarefy.zoo.onnx_constants import as_size, numbered
from rarefy.zoo.onnx_layers import LAYERS, Made, Prepare
from rarefy.zoo.onnx_operators import OPERATORS
from rarefy.zoo.onnx_sizes import INTEGERS, is_size, on_sizes, sizes_of, tensor_of
from rarefy.zoo.onnx_source import Source, Work

HELD = "constants"


@dataclass(frozen=True)
class Stage:
    """One node at work.

    Attributes:
        work: the node.
        layer: path of the module that computes it, or empty.
        prepare, finish: around that module.
        spent: names of values that nothing reads afterwards.
    """

    work: Work
    layer: str = ""
    prepare: Prepare | None = None
    finish: Any = None
    spent: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """Runs the nodes of a file in order; layers with weights are its modules, under the weights' names.

    Args:
        inputs, outputs: names in the file.
    """

    stages: tuple[Stage, ...] = ()

    def __init__(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.digest = ""  # tells networks of equal weights apart
        self.sizes: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.add_module(HELD, nn.Module())

    def run(self, given: Mapping[str, Tensor]) -> Any:
        """The outputs: one tensor, or a tuple of them."""
        held = self.get_submodule(HELD)
        values: dict[str, Any] = {**self.sizes, **given}
        values.update({name: getattr(held, own) for name, own in self.names.items()})
        for stage in self.stages:
            result = self.computed(stage, [values[n] if n else None for n in stage.work.inputs])
            results = several(result, stage.work)
            values.update({n: v for n, v in zip(stage.work.outputs, results, strict=False) if n})
            for name in stage.spent:
                del values[name]
        found = tuple(tensor_of(values[name]) for name in self.outputs)
        return found[0] if len(found) == 1 else found

    def computed(self, stage: Stage, values: list[Any]) -> Any:
        """What one node gives."""
        work = stage.work
        if stage.layer:
            module = self.get_submodule(stage.layer)
            table = work.operator == "Gather"
            x = tensor_of(values[1 if table else 0])
            if stage.prepare is not None:
                x = stage.prepare(work.how, x)
            if stage.finish is None:
                return module(x)
            states = [v for v in values[5:7] if v is not None]
            first = tuple(states) if len(states) > 1 else (states or [None])[0]
            return stage.finish(module(x, first))
        return operate(work, values)


def operate(work: Work, values: list[Any]) -> Any:
    """Computes a node without weights."""
    if work.operator in INTEGERS and all(is_size(v) for v in values):
        return on_sizes(work.operator, values)
    while values and values[-1] is None:
        values.pop()
    return OPERATORS[work.operator](work.how, *values)


def several(result: Any, work: Work) -> tuple[Any, ...]:
    """The results of a node one by one; sizes are one result."""
    tensors = isinstance(result, tuple) and all(isinstance(part, Tensor) for part in result)
    return result if tensors and result else (result,)


def build(source: Source) -> nn.Module:
    """The network of a file that has been read.

    Raises:
        ModelError: an operator that has no counterpart here.
    """
    names = [re.sub(r"\W", "_", name) for name in source.inputs]
    if len(set(names)) != len(names):
        names = [f"input_{i}" for i in range(len(names))]
    network = network_class(tuple(names))(source.inputs, source.outputs)
    network.digest = source.digest
    constants = dict(source.constants)
    stages: list[Stage] = []
    for work in source.works:
        known = [constants.get(name) if name else None for name in work.inputs]
        constant = all(v is not None or not n for v, n in zip(known, work.inputs, strict=True))
        made = None if constant else layer_of(work, known, source)
        if made is None and not is_known(work):
            raise source.refusal(work)
        if constant:
            fold(work, known, constants)
            continue
        path = place(network, path_of(work, source), made.module) if made else ""
        work = work if made else numbered(work, constants)
        stages.append(
            Stage(work, path, made.prepare if made else None, made.finish if made else None)
        )
    network.stages = with_ends(stages, source.outputs)
    for name in dict.fromkeys(
        n for stage in network.stages for n in needed(stage) if n in constants
    ):
        hold(network, name, constants[name])
    for name in source.outputs:
        if name in constants and name not in network.names:
            hold(network, name, constants[name])
    return network.eval()


def network_class(names: tuple[str, ...]) -> type[OnnxNetwork]:
    """A class whose forward takes arguments of these names."""

    def forward(self: OnnxNetwork, *args: Tensor, **named: Tensor) -> Any:
        given = dict(zip(self.inputs, args, strict=False))
        missing = [n for n in names[len(args) :] if n not in named]
        if missing or len(args) > len(names):
            raise ModelError(f"the network takes the inputs {', '.join(names)}")
        given |= {i: named[n] for i, n in zip(self.inputs, names, strict=True) if n in named}
        return self.run(given)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("OnnxNetwork", (OnnxNetwork,), {"forward": forward, "__module__": __name__})


def layer_of(work: Work, known: list[Any], source: Source) -> Made | None:
    """The module for a node, if it has weights and one fits."""
    maker = LAYERS.get(work.operator)
    if maker is None:
        return None
    if len(work.inputs) > 2 and work.inputs[2] and known[2] is None:
        return None  # its bias is computed
    weights = [v if isinstance(v, Tensor) else None for v in known]
    return maker(work.how, weights, source.ranks.get(work.inputs[0], 4))


def is_known(work: Work) -> bool:
    """Whether a node without weights can be computed."""
    return work.operator in OPERATORS and work.how.get("reduction", "none") in ("none", "add")


def fold(work: Work, known: list[Any], constants: dict[str, Any]) -> None:
    """Computes what follows from constants alone."""
    sizes = [as_size(v) for v in known]
    result = operate(work, sizes)
    results = several(result, work)
    constants.update({n: v for n, v in zip(work.outputs, results, strict=False) if n})


def needed(stage: Stage) -> tuple[str, ...]:
    """The values that a stage reads as it runs."""
    if not stage.layer:
        return stage.work.inputs
    if stage.finish is not None:
        return (stage.work.inputs[0], *stage.work.inputs[5:7])
    return stage.work.inputs[1:2] if stage.work.operator == "Gather" else stage.work.inputs[:1]


def with_ends(stages: list[Stage], outputs: tuple[str, ...]) -> tuple[Stage, ...]:
    """The stages with inputs that no module replaces, and told which values nobody reads afterwards."""
    last: dict[str, int] = {}
    for number, stage in enumerate(stages):
        last.update(dict.fromkeys(needed(stage), number))
    made = {name for stage in stages for name in stage.work.outputs}
    found = []
    for number, stage in enumerate(stages):
        kept = set(needed(stage))
        work = stage.work.reading(tuple(n if n in kept else "" for n in stage.work.inputs))
        done = [
            n for n in {*work.inputs, *work.outputs} if n in made and last.get(n, number) == number
        ]
        spent = tuple(sorted(n for n in done if n and n not in outputs))
        found.append(Stage(work, stage.layer, stage.prepare, stage.finish, spent))
    return tuple(found)


def hold(network: OnnxNetwork, name: str, value: Any) -> None:
    """Keeps a constant: few integers as numbers, floats as parameters, others (masks too) as buffers."""
    value = as_size(value)
    if is_size(value):
        network.sizes[name] = sizes_of(value) if isinstance(value, tuple) else value
        return
    held, own = network.get_submodule(HELD), re.sub(r"\W", "_", name)
    while hasattr(held, own):
        own += "_"
    if value.is_floating_point() and value.dim() and all_finite(value):
        held.register_parameter(own, nn.Parameter(value.clone()))
    else:
        held.register_buffer(own, value.clone())
    network.names[name] = own


def path_of(work: Work, source: Source) -> str:
    """Where the module of a node goes: the name of its weight, else of the node."""
    for name in work.inputs[0 if work.operator == "Gather" else 1 :][:1]:
        origin = source.origins.get(name, "")
        if re.fullmatch(r"[A-Za-z_][\w.]*\.weight\w*", origin):
            return origin.rpartition(".")[0]
    return re.sub(r"\W+", "_", work.name).strip("_") or work.operator.lower()


def place(network: nn.Module, path: str, module: nn.Module) -> str:
    """Puts a module under a path, or one like it where that is taken; returns the path."""
    holder, parts = network, []
    *folders, name = path.split(".")
    for folder in folders:
        while hasattr(holder, folder) and not isinstance(getattr(holder, folder), nn.Module):
            folder += "_"
        if not hasattr(holder, folder):
            holder.add_module(folder, nn.Module())
        holder = holder.get_submodule(folder)
        parts.append(folder)
    while hasattr(holder, name):
        name += "_"
    holder.add_module(name, module)
    return ".".join([*parts, name])
