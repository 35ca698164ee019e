# SPDX-License-Identifier: Apache-2.0
"""Readers of the classic image data sets in the file formats in which they are found."""

import gzip
import itertools
import math
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from rarefy.errors import TaskError
from rarefy.zoo.images import Images, decode
from rarefy.zoo.originals import cifar_python, parquet_directory

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DIGITS = tuple(str(digit) for digit in range(10))
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}


def open_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, without unpickling.

    Raises:
        TaskError: the file is missing, is none, or lacks an array.
    """
    if not path.is_file():
        raise TaskError(f"there is no file '{path}'")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                held = ", ".join(archive.files)
                raise TaskError(
                    f"'{path}' holds {held}, not '{missing[0]}'; is it the right data set?"
                )
            return {name: archive[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise TaskError(f"'{path}' is no readable .npz file: {error}") from None


def idx(path: Path) -> np.ndarray:
    """An array of an IDX file (the format of MNIST), gzipped or not.

    Raises:
        TaskError: the file is no IDX file of bytes or is cut short.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise TaskError(f"'{path}' is no whole gzip file: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise TaskError(f"'{path}' is no IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise TaskError(f"'{path}' is cut short: {len(data)} bytes, the header alone has {start}")
    shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
    if len(data) - start != math.prod(shape):
        raise TaskError(f"'{path}' is damaged: {len(data) - start} bytes for a shape of {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_directory(directory: Path) -> tuple[Images, Images]:
    """Train and test images of a directory with the four IDX files of MNIST or Fashion-MNIST."""

    def find(stem: str) -> np.ndarray:
        for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
            if (directory / name).is_file():
                return idx(directory / name)
        raise TaskError(f"'{directory}' has no file {stem} or {stem}.gz")

    parts = [
        Images(find(f"{part}-images-idx3-ubyte"), find(f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    ]
    return parts[0], parts[1]


def mnist(source: Path) -> tuple[Images, Images]:
    """MNIST from one .npz (x_train, y_train, x_test, y_test) or from a directory of IDX files."""
    if source.is_dir():
        found = parquet_directory(source, gray=True)
        if found is not None:
            return found
        raws = [
            source / name / "raw" for name in ("MNIST", "FashionMNIST")
        ]  # as torchvision lays it
        return idx_directory(next((raw for raw in raws if raw.is_dir()), source))
    arrays = open_arrays(source, ("x_train", "y_train", "x_test", "y_test"))
    return Images(arrays["x_train"], arrays["y_train"]), Images(arrays["x_test"], arrays["y_test"])


def jpeg_array(path: Path) -> Images:
    """Images of an .npz with `jpeg` (all files end to end), `offsets` and `labels`."""
    arrays = open_arrays(path, ("jpeg", "offsets", "labels"))
    data, offsets = arrays["jpeg"], arrays["offsets"]
    pixels = [
        decode(data[a:b].tobytes(), source=f"{path}, image {i}")
        for i, (a, b) in enumerate(itertools.pairwise(offsets))
    ]
    return Images(np.stack(pixels), arrays["labels"])


def cifar_binary(files: dict[str, bytes]) -> tuple[Images, Images]:
    """CIFAR-10 in its binary version: records of a label and 3,072 bytes, in files by their names."""

    def batch(name: str) -> Images:
        if name not in files:
            raise TaskError(
                "the binary version of CIFAR-10 needs data_batch_1.bin to 5 and test_batch.bin: "
                f"there is no {name}"
            )
        if len(files[name]) % 3073:
            size = len(files[name])
            raise TaskError(f"'{name}' is cut short: {size} bytes are no records of 3,073")
        records = np.frombuffer(files[name], np.uint8).reshape(-1, 3073)
        return Images(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0])

    train = [batch(f"data_batch_{i}.bin") for i in range(1, 6)]
    pixels, labels = zip(*((part.pixels, part.labels) for part in train), strict=True)
    return Images(np.concatenate(pixels), np.concatenate(labels)), batch("test_batch.bin")


def archived(path: Path) -> dict[str, bytes]:
    """The regular files of a .tar.gz by their names without folders.

    Raises:
        TaskError: the archive is damaged.
    """
    found = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    found[Path(member.name).name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise TaskError(f"'{path}' is no whole archive: {error}") from None
    return found


def cifar10(directory: Path) -> tuple[Images, Images]:
    """CIFAR-10 from JPEG arrays (cifar10_train.npz, cifar10_test*.npz), the binary version or its archive.

    Python batches (as torchvision unpacks them) and Hugging Face's parquet files are read too.
    """
    train, tests = directory / "cifar10_train.npz", sorted(directory.glob("cifar10_test*.npz"))
    if train.is_file() and tests:
        parts = [jpeg_array(path) for path in tests]
        pixels = np.concatenate([p.pixels for p in parts])
        return jpeg_array(train), Images(pixels, np.concatenate([p.labels for p in parts]))
    for folder in (directory, directory / "cifar-10-batches-bin"):
        if (folder / "data_batch_1.bin").is_file():
            held = {path.name: path.read_bytes() for path in folder.glob("*_batch*.bin")}
            return cifar_binary(held)
    for folder in (directory, directory / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            return cifar_python(folder)
    found = parquet_directory(directory)
    if found is not None:
        return found
    archive = directory / "cifar-10-binary.tar.gz"
    if archive.is_file():
        return cifar_binary(archived(archive))
    raise TaskError(
        f"'{directory}' holds no CIFAR-10: expected cifar10_train.npz and cifar10_test*.npz, "
        "cifar-10-batches-bin, cifar-10-batches-py, cifar-10-binary.tar.gz, or parquet files"
    )


def tree(files: dict[str, Path], names: tuple[str, ...], size: int, crop: int) -> Images:
    """Decodes the files of one split; keys are ``class/name``."""
    order = {name: i for i, name in enumerate(names)}
    pixels = [decode(path.read_bytes(), size, crop, path) for path in files.values()]
    return Images(np.stack(pixels), np.array([order[key.split("/")[0]] for key in files]))


def image_folder(
    directory: Path, size: int, crop: int
) -> tuple[Images | None, Images, tuple[str, ...]]:
    """Images in ``class/name.jpg`` folders, or in train/ and val/ (or test/) with such folders inside."""

    def split_of(folder: Path) -> dict[str, Path]:
        found = {
            str(PurePosixPath(path.parent.name, path.name)): path
            for path in sorted(folder.glob("*/*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        if not found:
            raise TaskError(f"'{folder}' holds no folders of images, one folder for each class")
        return found

    held = next((directory / n for n in ("val", "test", "valid") if (directory / n).is_dir()), None)
    train = split_of(directory / "train") if (directory / "train").is_dir() else None
    test = split_of(held or directory)
    names = tuple(sorted({key.split("/")[0] for key in test}))
    strange = {key.split("/")[0] for key in train or test} ^ set(names)
    if strange:
        where = "only one of train and the test images"
        raise TaskError(f"'{directory}': {where} has the class folder '{min(strange)}'")
    learned = tree(train, names, size, crop) if train else None
    return learned, tree(test, names, size, crop), names


def image_zip(path: Path, size: int, crop: int) -> Images:
    """Labelled images of a zip file, named ``<class index>_<anything>.jpg``."""
    if not path.is_file():
        raise TaskError(f"there is no file '{path}'")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if Path(n).suffix.lower() in IMAGE_SUFFIXES]
            labels = [Path(name).name.split("_")[0] for name in names]
            strange = next(
                (n for n, label in zip(names, labels, strict=True) if not label.isdigit()), None
            )
            if strange is not None or not names:
                raise TaskError(
                    f"'{path}': expected images named <class index>_<name>.jpg, found {strange}"
                )
            pixels = [decode(archive.read(n), size, crop, f"{path}/{n}") for n in names]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise TaskError(f"'{path}' is no readable zip file: {error}") from None
    return Images(np.stack(pixels), np.array([int(label) for label in labels]))
