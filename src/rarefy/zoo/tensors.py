# SPDX-License-Identifier: Apache-2.0
"""Trained weights from files, checked before they enter a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarefy.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def load_weights(model: "nn.Module", path: Path) -> None:
    """Loads tensors by name into `model`; all must be there and fit.

    Raises:
        ModelError: missing, foreign or misshapen tensors, or NaN among them.
    """
    import torch

    state = read_tensors(path)
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing or foreign or wrong:
        found = (
            f"'{missing[0]}' is missing" if missing
            else f"'{foreign[0]}' is unknown to the network" if foreign
            else f"'{wrong[0]}' is {tuple(state[wrong[0]].shape)} instead of {tuple(own[wrong[0]].shape)}"
        )  # fmt: skip
        raise ModelError(f"the weights of '{path}' are of another architecture: {found}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"the weights of '{path}' hold NaN or infinity in '{name}'; train again"
            )
    model.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Any]:
    """Named tensors of a .safetensors, .rfy or tensors-only PyTorch file.

    Raises:
        ModelError: the file is missing or is none of these.
    """
    import torch

    if not path.is_file():
        raise ModelError(f"there is no file of weights '{path}'")
    if path.suffix == ".rfy":
        from rarefy.store.pack import load_tensors

        return {name: torch.from_numpy(array.copy()) for name, array in load_tensors(path).items()}
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise ModelError(f"'{path}' is no readable safetensors file: {error}") from None
    raise ModelError(
        f"'{path}' is neither .safetensors nor .rfy; save the weights with safetensors"
    )
