# SPDX-License-Identifier: Apache-2.0
"""How long a layer and the chains in its place take in ONNX Runtime, measured side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rarefy.errors import ModelError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.measure.latency import Latency, latency

OPSET = 18


def times(layer: nn.Module, chains: Sequence[nn.Module], x: Tensor, name: str) -> list[Latency]:
    """Latency of the layer and of every chain on the same input, interleaved.

    Args:
        layer: as it is.
        chains: that could replace it.
        x: its input, one example.
        name: of the layer, for errors.

    Raises:
        ModelError: the layer or a chain can't be exported.
    """
    runs: dict[str, Callable[..., Any]] = {}
    for number, module in enumerate((layer, *chains)):
        runs[str(number)] = OnnxRuntime(program(module, x, name))
    return list(latency(runs, x, rounds=15, warmup=2, budget=0.15 * len(runs)).values())


def program(module: nn.Module, x: Tensor, name: str) -> Any:
    """A layer or chain as an ONNX model.

    Chains of plain convolutions and linear layers are written down as they are; tracing takes a second each.

    Raises:
        ModelError: the exporter does not take it.
    """
    parts = list(module) if isinstance(module, nn.Sequential) else [module]
    if all(isinstance(part, nn.Linear) or is_plain(part) for part in parts):
        return written(parts, x)
    try:
        return export_onnx(module, x)
    except ModelError as error:
        raise ModelError(
            f"factorize: '{name}' can't be measured, for its replacement can't be exported: {error}; "
            "leave it out with exclude, or set slower: allow"
        ) from error


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution that pads with zeros by numbers."""
    return (
        isinstance(module, _ConvNd)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def written(parts: Sequence[nn.Module], x: Tensor) -> Any:
    """Convolutions and linear layers in a row as an ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, held, value = [], [], "x"

    def hold(name: str, tensor: Tensor) -> str:
        array = tensor.detach().float().contiguous().cpu().numpy()
        held.append(numpy_helper.from_array(array, name))
        return name

    for number, part in enumerate(parts):
        result = f"y{number}"
        weight: Tensor = part.weight  # type: ignore[assignment]
        bias: Tensor | None = part.bias  # type: ignore[assignment]
        biases = [hold(f"b{number}", bias)] if bias is not None else []
        if isinstance(part, _ConvNd):
            names = [value, hold(f"w{number}", weight), *biases]
            kind = "ConvTranspose" if isinstance(part, _ConvTransposeNd) else "Conv"
            nodes.append(helper.make_node(kind, names, [result], **attributes(part)))
        elif x.dim() == 2:
            names = [value, hold(f"w{number}", weight), *biases]
            nodes.append(helper.make_node("Gemm", names, [result], transB=1))
        else:
            product = f"p{number}" if biases else result
            names = [value, hold(f"w{number}", weight.mT)]
            nodes.append(helper.make_node("MatMul", names, [product]))
            if biases:
                nodes.append(helper.make_node("Add", [product, *biases], [result]))
        value = result
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(nodes, "chain", *ends, initializer=held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def attributes(part: _ConvNd) -> dict[str, Any]:
    """A convolution's settings in the words of ONNX."""
    found: dict[str, Any] = {
        "strides": list(part.stride),
        "dilations": list(part.dilation),
        "pads": [int(p) for p in part.padding] * 2,
        "group": part.groups,
        "kernel_shape": list(part.kernel_size),
    }
    if isinstance(part, _ConvTransposeNd):
        found["output_padding"] = list(part.output_padding)
    return found


def sample(x: Tensor) -> Tensor:
    """One example on the CPU, as a layer is called with it; random where its values are not known."""
    if x.is_floating_point():
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x.detach().cpu()
