# SPDX-License-Identifier: Apache-2.0
"""Tensors that lie in files instead of memory, so that the system may drop what nobody is reading.

The file is mapped privately: what is written to such a tensor stays in memory, page by page, and never
reaches the file. So a network whose tensors lie in files can be trained, changed and copied like any other;
it only needs memory for what has been changed. Each tensor has a file of its own, which starts at a page.
"""

import contextlib
import copy
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import FileError

LEAST = 1 << 20
"""Tensors of fewer bytes stay in memory."""


def in_file(tensor: Tensor, folder: Path) -> Tensor:
    """The same values in a file in `folder`, which loses its name at once and goes with the tensor.

    Args:
        tensor: contiguous, on the CPU.
        folder: on a file system with room for it.

    Raises:
        FileError: the file can't be written.
    """
    octets = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix="tensor-")
        try:
            with os.fdopen(handle, "wb") as file:
                octets.tofile(file)
            size = tensor.numel()
            mapped = torch.from_file(name, shared=False, size=size, dtype=tensor.dtype)
        finally:
            with contextlib.suppress(PermissionError):  # Windows keeps it as long as it is mapped
                os.unlink(name)
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"'{folder}' has no room for a tensor: {reason}") from error
    return mapped.view(tensor.shape)


def aside(tensor: Tensor) -> Tensor:
    """The tensor, in a file of the system's folder for temporary ones if it is large."""
    return in_file(tensor, Path(tempfile.gettempdir())) if movable(tensor) else tensor


def movable(tensor: Tensor) -> bool:
    """Whether a tensor is worth a file and can lie in one: large, plain, on the CPU, nobody's view."""
    size = tensor.numel() * tensor.element_size()
    return (
        size >= LEAST
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.untyped_storage().nbytes() == size
    )


def tensors_in(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module, and of those below it, shared ones once."""
    seen: set[int] = set()
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def move_to_files(module: nn.Module, folder: Path, stay: Collection[int] = ()) -> None:
    """Moves the larger tensors of a module and of those below it to files; nothing else changes.

    Args:
        module: its parameters stay the objects that they are.
        folder: for the files.
        stay: ids of tensors that somebody else holds and that are left alone.
    """
    for tensor in tensors_in(module):
        if id(tensor) not in stay and movable(tensor):
            tensor.data = in_file(tensor, folder)


def copy_to_files(model: nn.Module, folder: Path) -> nn.Module:
    """A copy of a network whose larger tensors lie in files; what a plain copy would be otherwise."""
    known: dict[int, Any] = {}
    for tensor in tensors_in(model):
        if movable(tensor) and tensor.grad is None:
            moved = in_file(tensor, folder)
            if isinstance(tensor, nn.Parameter):
                moved = nn.Parameter(moved, requires_grad=tensor.requires_grad)
            known[id(tensor)] = moved
    return copy.deepcopy(model, known)
