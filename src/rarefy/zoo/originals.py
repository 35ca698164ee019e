# SPDX-License-Identifier: Apache-2.0
"""Data sets as torchvision and Hugging Face keep them: CIFAR-10's Python batches, and parquet files.

The Python batches are pickles. They are never unpickled: the pickle's opcodes are read as data, and only
byte strings and small integers are taken from them.
"""

import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from rarefy.errors import TaskError
from rarefy.zoo.images import Images, decode

RECORD = 3072  # bytes of a 3 x 32 x 32 image


def python_batch(data: bytes, source: str) -> Images:
    """Images and labels of one of CIFAR-10's Python batches.

    Raises:
        TaskError: the opcodes hold no such batch.
    """
    pixels, labels = b"", []
    key, collecting = "", False
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if isinstance(argument, (str, bytes)) and len(argument) > 1000:
                raw = argument if isinstance(argument, bytes) else argument.encode("latin-1")
                pixels = max(pixels, raw, key=len)
            elif isinstance(argument, (str, bytes)):
                key = argument if isinstance(argument, str) else argument.decode("latin-1")
                collecting = key == "labels"
            elif collecting and isinstance(argument, int) and opcode.name.startswith("BININT"):
                labels.append(argument)
            elif opcode.name == "APPENDS":
                collecting = False
    except ValueError as error:
        raise TaskError(f"'{source}' is no Python batch of CIFAR-10: {error}") from None
    if not labels or len(pixels) != RECORD * len(labels):
        raise TaskError(f"'{source}' holds {len(pixels)} bytes of pixels for {len(labels)} labels")
    array = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(array, np.array(labels, np.uint8))


def cifar_python(folder: Path) -> tuple[Images, Images]:
    """CIFAR-10 as torchvision unpacks it (``cifar-10-batches-py``)."""
    names = [f"data_batch_{i}" for i in range(1, 6)]
    missing = [n for n in (*names, "test_batch") if not (folder / n).is_file()]
    if missing:
        raise TaskError(f"'{folder}' has no file {missing[0]}")
    parts = [python_batch((folder / name).read_bytes(), str(folder / name)) for name in names]
    train = Images(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    return train, python_batch((folder / "test_batch").read_bytes(), str(folder / "test_batch"))


def parquet_split(files: list[Path], gray: bool) -> Images:
    """Images of Hugging Face parquet files: a column of encoded images and one of integer labels.

    Raises:
        TaskError: pyarrow is missing, or the columns are not as expected.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise TaskError("parquet files need pyarrow: pip install pyarrow") from None
    pixels, labels = [], []
    for file in files:
        table = parquet.read_table(file)
        image = next((n for n in ("img", "image") if n in table.column_names), None)
        label = next((n for n in ("label", "fine_label") if n in table.column_names), None)
        if image is None or label is None:
            raise TaskError(
                f"'{file}' has columns {', '.join(table.column_names)}, not image and label"
            )
        rows: list[Any] = table.column(image).to_pylist()
        decoded = [decode(row["bytes"] if isinstance(row, dict) else row) for row in rows]
        pixels += [array[..., 0] for array in decoded] if gray else decoded
        labels += table.column(label).to_pylist()
    return Images(np.stack(pixels), np.array(labels, np.uint8))


def parquet_directory(directory: Path, gray: bool = False) -> tuple[Images, Images] | None:
    """Train and test images of a Hugging Face data set's folder, or None if it holds no parquet files."""
    train, test = (sorted(directory.rglob(f"{split}-*.parquet")) for split in ("train", "test"))
    if not train or not test:
        return None
    return parquet_split(train, gray), parquet_split(test, gray)
