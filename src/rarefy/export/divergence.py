# SPDX-License-Identifier: Apache-2.0
"""The first layer whose output in the exported file is not what it is in the network."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rarefy.export.difference import Difference
from rarefy.export.inputs import first_examples
from rarefy.export.onnx import graph_of
from rarefy.export.runner import Runner
from rarefy.forms.activations import CHILD, ActivationQuantizer, quantizers_of
from rarefy.loops.modes import device_of
from rarefy.task import Inputs, call, move, tensors_of

if TYPE_CHECKING:
    from onnx import ModelProto

SCOPES = "pkg.torch.onnx.name_scopes"
EXAMPLES = 4


def first_diverging_layer(
    model: nn.Module, runtime: Runner, inputs: Inputs, *, tolerance: float, noise: float
) -> str | None:
    """Path of the module where network and program part, or None where that can't be told.

    The network is exported anew, this time keeping from which module every value comes; these values are
    fetched from the program under suspicion. If they all agree although the outputs don't, the fault lies
    in the fused integer kernels: then the values behind the activation quantisers are fetched, which leaves
    the kernels fused.

    Args:
        model: in eval mode.
        runtime: of the program.
        inputs: a batch on which their outputs differ.
        tolerance: of a value, as a fraction of its range.
        noise: a difference that rounding alone explains.
    """
    few = first_examples(inputs, runtime.batch or EXAMPLES)
    values = values_of_modules(graph_of(model, few))
    return locate(model, runtime, few, values, tolerance, noise)


def locate(
    model: nn.Module,
    runtime: Runner,
    inputs: Inputs,
    values: dict[str, str],
    tolerance: float,
    noise: float,
) -> str | None:
    """The same when the name of the value that each module ends with is known."""
    order, reference = outputs_of_modules(model, inputs)
    names = known_values(runtime.program)
    compared = [path for path in order if values.get(path) in names]
    quantisers = [
        path for path in compared if isinstance(model.get_submodule(path), ActivationQuantizer)
    ]
    for paths in (compared, quantisers):
        wanted = {path: values[path] for path in paths}
        errors = layer_errors(runtime, inputs, wanted, reference)
        culprit = jump(errors, tolerance, noise)
        if culprit is not None:
            return owner(model, culprit)
    return None


def jump(errors: dict[str, float], tolerance: float, noise: float) -> str | None:
    """Where the error leaves the noise: the largest growth over all earlier layers.

    Looked for among the layers up to the first one beyond the tolerance; None if no layer is beyond it.
    """
    paths = list(errors)
    beyond = next((i for i, path in enumerate(paths) if errors[path] > tolerance), None)
    if beyond is None:
        return None
    highest, growth = noise, {}
    for path in paths[: beyond + 1]:
        growth[path] = errors[path] / highest
        highest = max(highest, errors[path])
    return max(growth, key=growth.__getitem__)


def layer_errors(
    runtime: Runner, inputs: Inputs, wanted: dict[str, str], reference: dict[str, Tensor]
) -> dict[str, float]:
    """For every module's path the largest difference of its output, as a fraction of its range."""
    if not wanted:
        return {}
    probe = runtime.probe(list(wanted.values()))
    results = dict(zip(probe.output_names, tensors_of((call(probe, inputs),)), strict=True))
    errors = {}
    for path, name in wanted.items():
        if results[name].shape == reference[path].shape:
            difference = Difference()
            difference.add(reference[path], results[name])
            errors[path] = difference.relative
    return errors


def values_of_modules(graph: Any) -> dict[str, str]:
    """For every module's path the name of the value that it ends with in an exported graph."""
    found: dict[str, str] = {}
    for node in graph.graph:
        text = node.metadata_props.get(SCOPES)
        for scope in ast.literal_eval(text)[:-1] if text else ():
            path = scope.partition("@")[0]  # a module's second run is called path@1
            if path and node.outputs:
                found[path] = node.outputs[0].name
    return found


def outputs_of_modules(model: nn.Module, inputs: Inputs) -> tuple[list[str], dict[str, Tensor]]:
    """Paths of the modules that give one float tensor, as they end, and what they gave last."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.pop(path, None)  # a module that runs again ends later
            outputs[path] = output.detach().cpu()

    with watched(model, keep), torch.no_grad():
        call(model, move(inputs, device_of(model)))
    return list(outputs), outputs


@contextmanager
def watched(model: nn.Module, keep: Any) -> Iterator[None]:
    """Calls ``keep(path, output)`` whenever a module but the outermost ends."""
    handles = [
        module.register_forward_hook(lambda _, __, output, path=path: keep(path, output))
        for path, module in model.named_modules()
        if path and ".parametrizations" not in f".{path}"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def known_values(program: Any) -> set[str]:
    """Names of the values that a program computes."""
    from rarefy.export.session import read_proto

    proto: ModelProto = read_proto(program)
    return {name for node in proto.graph.node for name in node.output}


def owner(model: nn.Module, path: str) -> str:
    """The module that a user knows: for an activation quantiser the module whose call it rounds."""
    holder = quantizers_of(model)
    if holder is None or not path.startswith(f"{CHILD}."):
        return path
    site = holder.sites[int(path.rpartition(".")[2])]
    return site.rpartition(":")[0] or site
