# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes for the readers of `.rfy` files, guided by the code that they reach.

    python benchmarks/fuzzing.py out/fuzzing -max_total_time=600 -timeout=20 -rss_limit_mb=1500

Needs `atheris` (extra `fuzz`); arguments are libFuzzer's: the folder keeps inputs that reach something new,
and an input that crashes, hangs or asks for too much memory is written to a file and ends the run. The first
byte of an input says what the others are: a payload with dtype and shape, the header of a large file or of a
small one (checksums are made to fit, or no input would pass them), or a whole file as it is. Payloads are
decoded without and with the loops that numba compiles (extra `fast`); both have to find the same.
"""

import hashlib
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import atheris

from rarefy.store import compiled  # as it is: numba can't compile what atheris has instrumented

with atheris.instrument_imports(include=["rarefy.store"]):
    from rarefy.store.archive import DIGEST, MAGIC, TRAILER, VERSION
    from rarefy.store.compact import FRONT
    from rarefy.store.decoding import coding_name, decode_tensor
    from rarefy.store.fields import varint
    from rarefy.store.keys import DTYPES, dtype_named
    from rarefy.store.rfy import read
    from rarefy.store.text import STORED
    from rarefy.store.trellis import integers_along

import numpy as np

from rarefy.errors import FileError
from rarefy.store.coding import encode_tensor
from rarefy.store.rfy import write

MOST = 1 << 8
"""Values of a tensor that are decoded; a file may well state gigabytes of zeros."""

PAYLOAD, LARGE, SMALL, FILE = range(4)


def fuzzed(data: bytes, path: Path) -> None:
    """Reads hostile bytes; anything but a result or a `FileError` is a finding.

    Args:
        data: as the module says.
        path: of a file to write.
    """
    if len(data) < 4:
        return
    kind, rest = data[0] & 3, data[1:]
    with suppress(FileError):
        if kind == PAYLOAD:
            payload(rest)
        elif kind == LARGE:
            half = rest[0] % len(rest)
            whole(large(rest[1:half], rest[half:]), path)
        elif kind == SMALL:
            half = rest[0] % len(rest)
            whole(small(rest[1:half], rest[half:]), path)
        else:
            whole(rest, path)


def payload(rest: bytes) -> None:
    """One tensor: number of its dtype, number of its dimensions, the dimensions, the payload."""
    dtype = dtype_named(DTYPES[rest[0] % len(DTYPES)])
    rank = rest[1] % 5
    shape = tuple(rest[2 : 2 + rank])
    if len(shape) == rank and prod(shape) <= MOST:
        data = rest[2 + rank :]
        with suppress(FileError):
            coding_name(data, dtype, shape)
        found = []
        for read_before in (-sys.maxsize, compiled.WORTH):
            compiled._read = read_before
            found.append(decoded(data, dtype, shape))
        assert found[0] == found[1]


def decoded(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes | None:
    """The bytes of the tensor, or None where the payload is refused."""
    try:
        found = decode_tensor(data, dtype, shape)
    except FileError:
        return None
    assert (found.dtype, found.shape) == (dtype, shape)
    return found.tobytes()


def large(payloads: bytes, plain: bytes) -> bytes:
    """A large file with this header, its checksums right."""
    block = varint(len(plain)) + bytes([STORED]) + plain
    data = MAGIC + bytes([VERSION]) + payloads + block
    data += TRAILER.pack(len(block), zlib.crc32(block))
    return data + hashlib.sha256(data).digest()[:DIGEST]


def small(payloads: bytes, block: bytes) -> bytes:
    """A small file with this header, its checksum right."""
    data = FRONT + payloads + block + varint(len(block))[::-1]
    return data + zlib.crc32(data).to_bytes(4, "little")


def whole(data: bytes, path: Path) -> None:
    """A file: notes and all tensors that are not too large."""
    path.write_bytes(data)
    with read(path) as archive:
        with suppress(FileError):
            assert isinstance(archive.info, dict)
        for name, _, shape in archive.layout():
            if prod(shape) <= MOST:
                with suppress(FileError):
                    assert archive[name].shape == shape


def seeds(path: Path) -> Iterator[bytes]:
    """Inputs that are right: tensors in all codings, and files."""
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random((12, 20)) < 0.1, rng.integers(-3, 4, (12, 20)), 0)
    tensors = {
        "weight": rng.normal(size=(9, 11)).astype(np.float32),
        "codes": (sparse * 0.5 + 0).astype(np.float32),
        "bytes": sparse.astype(np.int8),
        "rows": (rng.laplace(size=(14, 18)) * np.exp(rng.normal(size=(14, 1)))).astype(np.int16),
        "along": (integers_along(sparse) * 0.5 + 0).astype(np.float32),
        "steps": (sparse * 2.0 ** rng.integers(-3, 3, (12, 1)) + 0).astype(np.float32),
        "count": np.arange(200),
    }
    for array in tensors.values():
        head = bytes([PAYLOAD, DTYPES.index(array.dtype.name), array.ndim, *array.shape])
        for coder in ("auto", "huffman", "ans", "mixing"):
            yield head + encode_tensor(array, coder)
    for coder in ("auto", "raw"):
        write(path, tensors, coder=coder, info={"a": 1}, program=b"program")
        yield bytes([FILE]) + path.read_bytes()


def main() -> None:
    """Runs libFuzzer; the folder that is its first argument gets the seeds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.rfy")
        given = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
        if given:
            given[0].mkdir(parents=True, exist_ok=True)
            for data in seeds(path):
                (given[0] / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        atheris.Setup(sys.argv, lambda data: fuzzed(data, path))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
