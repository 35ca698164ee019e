# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as differences from a base, lossless: fine-tuned weights share most bits with their origin.

The patterns of two tensors are subtracted as integers of their own width, modulo 2^width. Where training
moved a weight a little, the difference is a small integer; where it did not, zero. The base is named by its
hash, so that a difference is never applied to anything else.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.archive import Archive
from rarefy.store.hashing import hash_tensors
from rarefy.store.keys import dtype_named, patterns
from rarefy.store.rfy import read, write

Tensors = Mapping[str, NDArray[Any]]


def write_delta(path: str | os.PathLike[str], tensors: Tensors, base: Tensors) -> int:
    """Write tensors as differences from those of the same name, dtype and shape in a base.

    Args:
        path: the `.rfy` file to write.
        tensors: what is to be kept; names that the base lacks are stored whole.
        base: what a reader will have.

    Returns:
        Bytes written.
    """
    moved = {n: t for n, t in tensors.items() if n in base and _alike(t, base[n])}
    info = {
        "base": hash_tensors(base),
        "dtypes": {name: tensor.dtype.name for name, tensor in moved.items()},
    }
    return write(path, _Differences(tensors, base, set(moved)), info=info)


def read_delta(path: str | os.PathLike[str], base: Tensors) -> "Delta":
    """Open what `write_delta` wrote; tensors are put together when they are asked for.

    Raises:
        FileError: damaged, no delta, or made for another base.
    """
    archive = read(path)
    info = archive.info
    if not isinstance(info.get("base"), str) or not isinstance(info.get("dtypes"), dict):
        archive.close()
        raise FileError(f"{path} holds no differences from a base; open it with rfy.read")
    if info["base"] != hash_tensors(base):
        archive.close()
        raise FileError(
            f"{path} holds differences from a base with hash {info['base'][:12]}, and this one has "
            f"{hash_tensors(base)[:12]}; give the tensors that it was made from"
        )
    return Delta(archive, base, info["dtypes"])


class Delta(Mapping[str, NDArray[Any]]):
    """Tensors stored as differences; any one is decoded without the others."""

    def __init__(self, archive: Archive, base: Tensors, dtypes: Mapping[str, str]) -> None:
        self._archive, self._base, self._dtypes = archive, base, dtypes

    def __getitem__(self, name: str) -> NDArray[Any]:
        held = self._archive[name]
        if name not in self._dtypes:
            return held
        origin, dtype = self._base.get(name), dtype_named(str(self._dtypes[name]))
        if origin is None or origin.dtype != dtype or patterns(origin).size != held.size:
            raise FileError(f"tensor '{name}' does not fit the base's")
        folded = held.reshape(-1)
        half = folded >> folded.dtype.type(1)
        difference = half ^ (~(folded & folded.dtype.type(1)) + folded.dtype.type(1))
        return (patterns(origin) + difference).view(dtype).reshape(origin.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive)

    def __len__(self) -> int:
        return len(self._archive)


class _Differences(Mapping[str, NDArray[Any]]):
    """Differences made one at a time, when the writer asks for them."""

    def __init__(self, tensors: Tensors, base: Tensors, moved: set[str]) -> None:
        self._tensors, self._base, self._moved = tensors, base, moved

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        if name not in self._moved:
            return tensor
        difference = patterns(tensor) - patterns(self._base[name])
        top = difference.dtype.type(8 * difference.dtype.itemsize - 1)
        sign = difference >> top
        return (difference << difference.dtype.type(1)) ^ (~sign + difference.dtype.type(1))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _alike(tensor: NDArray[Any], origin: NDArray[Any]) -> bool:
    return tensor.dtype == origin.dtype and np.shape(tensor) == np.shape(origin)
