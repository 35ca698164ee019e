# SPDX-License-Identifier: Apache-2.0
"""The tensors of an ONNX model as arrays that are loaded when they are asked for, wherever their data are."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.store.keys import DTYPES
from rarefy.store.onnx_file import Data, read_model

FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
"""Fields of a tensor that hold data beside `raw_data`."""


class Loaded(Mapping[str, NDArray[Any]]):
    """Arrays that are loaded when they are asked for."""

    def __init__(self, loads: dict[str, Callable[[], NDArray[Any]]]) -> None:
        self._loads = loads

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._loads[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._loads)

    def __len__(self) -> int:
        return len(self._loads)


def plain_loader(proto: Any, data: Data) -> Callable[[], NDArray[Any]] | None:
    """How to load the array of a proto whose data are elsewhere; None unless they are plain."""
    from onnx import TensorProto, helper

    if proto.data_type in (TensorProto.UNDEFINED, TensorProto.STRING) or proto.HasField("segment"):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    plain = data.size == prod(proto.dims) * dtype.itemsize and bits_of(dtype) == 8 * dtype.itemsize
    if dtype.name not in DTYPES or not plain or any(len(getattr(proto, f)) for f in FIELDS):
        return None
    shape, little = tuple(proto.dims), dtype.newbyteorder("<")
    return lambda: np.asarray(data.load()).view(little).reshape(shape)


def initializer_arrays(program: Any) -> tuple[Any, Iterator[tuple[str, NDArray[Any]]]]:
    """The main graph, and name and values of its initialisers, loaded one after the other.

    Args:
        program: an `onnx.ModelProto`, or the path of a file, whose graph then lacks the data.

    Raises:
        FileError: the file is missing or no ONNX file.
    """
    from onnx import ModelProto, numpy_helper

    data: Mapping[int, Data] = {}
    model, folder = program, ""
    if not isinstance(program, ModelProto):
        model, data = read_model(Path(program))
        folder = str(Path(program).parent)

    def arrays() -> Iterator[tuple[str, NDArray[Any]]]:
        for place, proto in enumerate(model.graph.initializer):
            load = plain_loader(proto, data[place]) if place in data else None
            if place in data and load is None:
                proto.raw_data = data[place].load().tobytes()
            yield proto.name, load() if load else np.asarray(numpy_helper.to_array(proto, folder))

    return model.graph, arrays()


def bits_of(dtype: np.dtype[Any]) -> int:
    """Bits of one value as ONNX packs it."""
    for name, bits in (("int4", 4), ("float4", 4), ("int2", 2), ("float6", 6)):
        if name in dtype.name:
            return bits
    return 8 * dtype.itemsize
