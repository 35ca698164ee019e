# SPDX-License-Identifier: Apache-2.0
"""The tensors of an ONNX model, wherever they stand: taken out and put back without a trace.

A tensor that was taken out keeps name, type and dimensions, and its data field stays as an empty
one (`raw_data`) or none (typed fields). Only what can be put back identically is taken.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.keys import DTYPES
from rarefy.store.onnx_arrays import FIELDS, Loaded, bits_of, plain_loader
from rarefy.store.onnx_file import Data

LEAST_ATTRIBUTE = 256
"""Tensors in attributes of nodes are taken from this many bytes on."""


def tensor_protos(model: Any) -> Iterator[tuple[str, Any, int]]:
    """Every `TensorProto` of a model in a fixed order, functions and sub-graphs included.

    Yields:
        A name, the proto, and from how many bytes on its data are worth taking out.
    """
    yield from _graph_protos(model.graph)
    for function in model.functions:
        yield from _node_protos(function.node)
    for training in model.training_info:
        yield from _graph_protos(training.initialization)
        yield from _graph_protos(training.algorithm)


def take_tensors(model: Any, data: Mapping[int, Data] | None = None) -> Mapping[str, NDArray[Any]]:
    """Move the data of all tensors out of the model, which changes.

    Args:
        model: an `onnx.ModelProto`.
        data: of initialisers of the main graph that the model itself lacks, by their places.

    Returns:
        Arrays in the order of `tensor_protos`, under their own names; a name that is missing or
        taken gets a number. What came in `data` is loaded whenever it is asked for.

    Raises:
        FileError: a tensor without data.
    """
    taken: dict[str, Callable[[], NDArray[Any]]] = {}
    for place, (name, proto, least) in enumerate(tensor_protos(model)):
        outside = (data or {}).get(place)  # the main graph's initialisers come first
        load = plain_loader(proto, outside) if outside else None
        if outside and load is None:
            proto.raw_data = outside.load().tobytes()
        if not prod(proto.dims):
            continue
        if load is None:
            if _is_empty(proto):
                raise FileError(f"tensor '{name}' has no data; was a file of weights left behind?")
            array = _take(proto, least)
            if array is None:
                continue
            load = partial(np.asarray, array)
        key, number = name, 2
        while key in taken:
            key, number = f"{name}#{number}", number + 1
        taken[key] = load
    return Loaded(taken)


def uses_other_file(proto: Any) -> bool:
    """Whether a tensor's data stand in a file of their own."""
    from onnx.external_data_helper import uses_external_data

    return bool(uses_external_data(proto))


def put_tensors(model: Any, arrays: Iterable[NDArray[Any]]) -> None:
    """Put arrays back where `take_tensors` took them, in the same order.

    Raises:
        FileError: arrays and gaps in the model do not belong together.
    """
    rest = iter(arrays)
    for name, proto, _ in tensor_protos(model):
        if prod(proto.dims) and _is_empty(proto):
            array = next(rest, None)
            if array is None or array.shape != tuple(proto.dims):
                raise FileError(f"the file has no data for tensor '{name}' of its graph")
            _fill(proto, array)
    if next(rest, None) is not None:
        raise FileError("the file has more tensors than its graph has places for")


def _graph_protos(graph: Any) -> Iterator[tuple[str, Any, int]]:
    for proto in graph.initializer:
        yield proto.name, proto, 0
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, sparse.values, 0
        yield f"{sparse.values.name}.indices", sparse.indices, 0
    yield from _node_protos(graph.node)


def _node_protos(nodes: Iterable[Any]) -> Iterator[tuple[str, Any, int]]:
    for node in nodes:
        for attribute in node.attribute:
            name = f"{node.name or next(iter(node.output), node.op_type)}.{attribute.name}"
            for proto in _all(attribute, "t", "tensors"):
                yield name, proto, LEAST_ATTRIBUTE
            for sparse in _all(attribute, "sparse_tensor", "sparse_tensors"):
                yield name, sparse.values, LEAST_ATTRIBUTE
                yield f"{name}.indices", sparse.indices, LEAST_ATTRIBUTE
            for graph in _all(attribute, "g", "graphs"):
                yield from _graph_protos(graph)


def _all(attribute: Any, single: str, several: str) -> list[Any]:
    first = [getattr(attribute, single)] if attribute.HasField(single) else []
    return first + list(getattr(attribute, several))


def _is_empty(proto: Any) -> bool:
    return not proto.raw_data and not any(len(getattr(proto, field)) for field in FIELDS)


def _take(proto: Any, least: int) -> NDArray[Any] | None:
    """The data of a proto as an array, the proto left empty; None if they have to stay."""
    from onnx import TensorProto, helper

    if proto.data_type in (TensorProto.UNDEFINED, TensorProto.STRING) or proto.HasField("segment"):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    size = len(proto.raw_data) or prod(proto.dims) * dtype.itemsize
    if dtype.name not in DTYPES or size < least:
        return None
    array = _array(proto, dtype)
    if array is None or not (_is_plain(proto, dtype) or _returns(proto, array)):
        return None
    _clear(proto)
    return array


def _clear(proto: Any) -> None:
    if proto.raw_data:
        proto.raw_data = b""
    for field in FIELDS:
        proto.ClearField(field)


def _returns(proto: Any, array: NDArray[Any]) -> bool:
    """Whether the proto can be made from the array again, bit for bit."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    _clear(copy)
    try:
        _fill(copy, array)
    except (TypeError, ValueError, OverflowError):
        return False
    return bool(
        copy.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)
    )


def _is_plain(proto: Any, dtype: np.dtype[Any]) -> bool:
    """Whether the data are whole values in `raw_data`, which any array gives back."""
    return (
        len(proto.raw_data) == prod(proto.dims) * dtype.itemsize
        and not any(len(getattr(proto, field)) for field in FIELDS)
        and bits_of(dtype) == 8 * dtype.itemsize
    )


def _array(proto: Any, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    from onnx import numpy_helper

    if _is_plain(proto, dtype):
        values = np.frombuffer(proto.raw_data, dtype=dtype.newbyteorder("<"))
        return values.reshape(tuple(proto.dims))
    try:
        return np.asarray(numpy_helper.to_array(proto))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None  # malformed data stay in the program, where they do not matter


def _fill(proto: Any, array: NDArray[Any]) -> None:
    from onnx import helper, numpy_helper

    if proto.HasField("raw_data"):
        dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
        if array.dtype.name != dtype.name:
            raise FileError(f"tensor '{proto.name}' is {array.dtype} where the graph has {dtype}")
        if bits_of(dtype) == 8 * dtype.itemsize:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            proto.raw_data = little.tobytes()
        else:
            proto.raw_data = numpy_helper.from_array(array).raw_data
    else:
        typed = helper.make_tensor(proto.name, proto.data_type, proto.dims, array.reshape(-1))
        for field in FIELDS:
            getattr(proto, field).extend(getattr(typed, field))
