# SPDX-License-Identifier: Apache-2.0
"""Readers of data sets on small generated files, whole and damaged."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarefy.errors import TaskError
from rarefy.zoo.datasets import cifar10, idx, image_folder, image_zip, jpeg_array, mnist
from rarefy.zoo.images import Images, decode

DRAW = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    head = b"\0\0\x08" + bytes([array.ndim])
    return head + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def encoded(array: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def write_idx(folder: Path, dots: bool = False, zipped: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    for part, count in (("train", 5), ("t10k", 3)):
        held[f"{part}-images-idx3-ubyte"] = DRAW.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        held[f"{part}-labels-idx1-ubyte"] = DRAW.integers(0, 10, count, dtype=np.uint8)
    for name, array in held.items():
        name = name.replace("-idx", ".idx") if dots else name
        data = idx_bytes(array)
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(data) if zipped else data)
    return held


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    held = write_idx(tmp_path, zipped=zipped)
    train, test = mnist(tmp_path)
    assert np.array_equal(train.pixels, held["train-images-idx3-ubyte"])
    assert np.array_equal(test.labels, held["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("folder", [".", "MNIST/raw", "FashionMNIST/raw"])
def test_idx_files_as_torchvision_lays_and_names_them(tmp_path: Path, folder: str) -> None:
    held = write_idx(tmp_path / folder, dots=folder == ".")
    assert np.array_equal(mnist(tmp_path)[1].pixels, held["t10k-images-idx3-ubyte"])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: data[:-1], "is damaged: 15 bytes for a shape of"),
        (lambda data: data[:6], "is cut short"),
        (lambda data: b"", "is no IDX file"),
        (lambda data: b"\0\0\x0d" + data[3:], "is no IDX file of unsigned bytes"),
        (lambda data: data + b"x", "17 bytes for a shape"),
    ],
)
def test_damaged_idx_files(
    tmp_path: Path, damage: Callable[[bytes], bytes], complaint: str
) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(idx_bytes(np.zeros((1, 4, 4), np.uint8))))
    with pytest.raises(TaskError, match=complaint):
        idx(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx_bytes(np.zeros((1, 4, 4), np.uint8)))
    for data in (whole[:-9], b"no gzip at all"):
        path.write_bytes(data)
        with pytest.raises(TaskError, match=r"train-images-idx3-ubyte\.gz"):
            idx(path)


def test_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(TaskError, match="has no file t10k-labels-idx1-ubyte"):
        mnist(tmp_path)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    x, y = DRAW.integers(0, 256, (4, 5, 5), dtype=np.uint8), np.arange(4)
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    train, test = mnist(path)
    assert np.array_equal(train.pixels, x)
    assert len(test.labels) == 2


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    with pytest.raises(TaskError, match="there is no file"):
        mnist(path)
    np.savez(path, x_train=np.zeros(1), y_train=np.zeros(1))
    with pytest.raises(TaskError, match="not 'x_test'; is it the right data set"):
        mnist(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"text"):
        path.write_bytes(data)
        with pytest.raises(TaskError, match=r"is no readable \.npz file"):
            mnist(path)


def test_pickles_inside_npz_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    evil = np.array([Path], dtype=object)
    np.savez(path, x_train=evil, y_train=evil, x_test=evil, y_test=evil)
    with pytest.raises(TaskError, match="is no readable"):
        mnist(path)


def records(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels as CIFAR-10 stores them."""
    return (
        DRAW.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
        DRAW.integers(0, 10, count, dtype=np.uint8),
    )


BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def binary(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    held = [records(2) for _ in BATCHES]
    for name, (pixels, labels) in zip(BATCHES, held, strict=True):
        rows = np.concatenate([labels[:, None], pixels.reshape(len(pixels), -1)], 1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return held


def assert_cifar(found: tuple[Images, Images], held: list[tuple[np.ndarray, np.ndarray]]) -> None:
    train, test = found
    assert np.array_equal(train.labels, np.concatenate([labels for _, labels in held[:5]]))
    expected = np.concatenate([pixels for pixels, _ in held[:5]]).transpose(0, 2, 3, 1)
    assert np.array_equal(train.pixels, expected)
    assert np.array_equal(test.pixels, held[5][0].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin"])
def test_cifar_binary(tmp_path: Path, folder: str) -> None:
    held = binary(tmp_path / folder)
    assert_cifar(cifar10(tmp_path), held)


def test_cifar_archive(tmp_path: Path) -> None:
    held = binary(tmp_path / "made")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for path in sorted((tmp_path / "made").iterdir()):
            tar.add(path, f"cifar-10-batches-bin/{path.name}")
    assert_cifar(cifar10(tmp_path), held)
    whole = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(whole[:-200])
    with pytest.raises(TaskError, match="is no whole archive"):
        cifar10(tmp_path)


def test_cifar_python_batches_are_read_without_unpickling(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    held = [records(3) for _ in BATCHES]
    for name, (pixels, labels) in zip(BATCHES, held, strict=True):
        batch = {b"data": pixels.reshape(len(pixels), -1), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    assert_cifar(cifar10(tmp_path), held)


def test_damaged_cifar(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"holds no CIFAR-10: expected cifar10_train\.npz"):
        cifar10(tmp_path)
    binary(tmp_path)
    data = (tmp_path / "data_batch_2.bin").read_bytes()
    (tmp_path / "data_batch_2.bin").write_bytes(data[:-1])
    with pytest.raises(TaskError, match=r"data_batch_2\.bin"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(TaskError, match=r"there is no data_batch_2\.bin"):
        cifar10(tmp_path)


def write_jpegs(path: Path, count: int) -> np.ndarray:
    arrays = [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(count)]
    files = [encoded(array, "jpeg") for array in arrays]
    offsets = np.cumsum([0, *map(len, files)])
    data = np.frombuffer(b"".join(files), np.uint8)
    np.savez(path, jpeg=data, offsets=offsets, labels=np.arange(count, dtype=np.uint8))
    return np.stack(arrays)


def test_jpeg_arrays(tmp_path: Path) -> None:
    arrays = write_jpegs(tmp_path / "cifar10_train.npz", 4)
    write_jpegs(tmp_path / "cifar10_test_1.npz", 2)
    write_jpegs(tmp_path / "cifar10_test_2.npz", 3)
    train, test = cifar10(tmp_path)
    assert int(np.abs(train.pixels.astype(int) - arrays).max()) <= 2  # flat images survive JPEG
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [0, 1, 0, 1, 2]


def test_damaged_jpeg_arrays(tmp_path: Path) -> None:
    path = tmp_path / "j.npz"
    np.savez(path, jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 9]), labels=np.array([1]))
    with pytest.raises(TaskError, match=r"j\.npz"):
        jpeg_array(path)


def test_decoding_scales_the_short_side_and_crops_the_centre() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 255
    assert decode(encoded(wide)).shape == (20, 40, 3)
    found = decode(encoded(wide), 10, 10)
    assert found.shape == (10, 10, 3)
    assert (found[:, :3] == 0).all()
    assert (found[:, -3:] == 255).all()
    assert decode(encoded(wide[..., 0])).shape == (20, 40, 3)  # gray becomes RGB
    palette = Image.fromarray(wide).convert("P")
    file = io.BytesIO()
    palette.save(file, "png")
    assert decode(file.getvalue()).shape == (20, 40, 3)


def write_tree(folder: Path, classes: tuple[str, ...], count: int = 2) -> None:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = np.full((9, 9, 3), 50 * place, np.uint8)
            (folder / name / f"{i}.png").write_bytes(encoded(image))


def test_image_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", ("bee", "ant"), 3)
    write_tree(tmp_path / "val", ("bee", "ant"))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    train, test, names = image_folder(tmp_path, 8, 8)
    assert train is not None
    assert names == ("ant", "bee")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.pixels.shape == (4, 8, 8, 3)
    assert [int(p[0, 0, 0]) for p in test.pixels] == [50, 50, 0, 0]
    only, _, _ = image_folder(tmp_path / "val", 8, 8)
    assert only is None


def test_damaged_image_folders(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="holds no folders of images"):
        image_folder(tmp_path, 8, 8)
    write_tree(tmp_path / "train", ("ant", "bee", "cow"))
    write_tree(tmp_path / "val", ("ant", "cow"))
    with pytest.raises(TaskError, match="bee"):
        image_folder(tmp_path, 8, 8)
    write_tree(tmp_path / "val", ("bee",))
    (tmp_path / "val" / "bee" / "0.png").write_bytes(b"no image")
    with pytest.raises(TaskError, match=r"0\.png"):
        image_folder(tmp_path, 8, 8)


def test_image_zip(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for label, place in ((7, "a"), (0, "deep/b"), (12, "c")):
            name = f"{place.rpartition('/')[0]}/{label}_{place[-1]}.png".lstrip("/")
            archive.writestr(name, encoded(np.full((10, 12, 3), label, np.uint8)))
        archive.writestr("readme.txt", "none")
    found = image_zip(path, 8, 8)
    assert found.labels.tolist() == [7, 0, 12]
    assert found.pixels.shape == (3, 8, 8, 3)
    assert [int(p[0, 0, 0]) for p in found.pixels] == [7, 0, 12]


def test_damaged_image_zip(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with pytest.raises(TaskError, match="there is no file"):
        image_zip(path, 8, 8)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(TaskError, match="is no readable zip file"):
        image_zip(path, 8, 8)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat_1.png", encoded(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(TaskError, match=r"found cat_1\.png"):
        image_zip(path, 8, 8)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1_cat.png", b"no image")
    with pytest.raises(TaskError, match=r"1_cat\.png"):
        image_zip(path, 8, 8)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "none")
    with pytest.raises(TaskError, match=r"images\.zip"):
        image_zip(path, 8, 8)
