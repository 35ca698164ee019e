# SPDX-License-Identifier: Apache-2.0
"""The network as it will be stored: every weight finished, in eval mode, on the CPU."""

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.shadow import Form, bake, bake_one, dressed, forms_of
from rarefy.store.mapped import move_to_files, tensors_in


def finished(model: nn.Module) -> nn.Module:
    """A copy of `model` with baked weights, in eval mode on the CPU; `model` stays as it is.

    Tensors that lie on the CPU already are shared with `model`, not copied, so the copy costs little memory;
    don't train it. Foreign parametrizations (weight norm, for one) become dense weights.

    Raises:
        ModelError: the network can't be copied, or lies on the meta device and has no values.
    """
    result = sharing_copy(model, on_cpu)
    for _, module, name in list(dressed(result)):
        if not isinstance(forms_of(module, name)[-1], Form):
            bake_one(module, name)
    return bake(result).eval()


def baked_copy(model: nn.Module, folder: Path) -> nn.Module:
    """A copy of `model` as it would be stored, where it is; what needs no baking is shared with `model`.

    Args:
        model: stays as it is.
        folder: where the larger tensors that have to be made are kept in files.

    Raises:
        ModelError: the network can't be copied.
    """
    result = sharing_copy(model, lambda tensor: tensor)
    held = {id(tensor) for tensor in tensors_in(model)}
    return bake(result, lambda module: move_to_files(module, folder, held))


def sharing_copy(model: nn.Module, place: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose modules are its own and whose tensors are what `place` gives for the model's.

    Raises:
        ModelError: the network can't be copied.
    """
    shared: dict[int, object] = {}
    for module in model.modules():
        for tensor in (
            *module._parameters.values(),
            *module._buffers.values(),
            *vars(module).values(),
        ):
            if isinstance(tensor, Tensor) and id(tensor) not in shared:
                shared[id(tensor)] = place(tensor)
    try:
        return copy.deepcopy(model, shared)
    except (TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"the {type(model).__name__} can't be copied for export: {reason}"
        ) from error


def on_cpu(tensor: Tensor) -> Tensor:
    """The tensor itself if it is on the CPU, a detached copy otherwise.

    Raises:
        ModelError: a tensor without values.
    """
    if tensor.is_meta:
        raise ModelError("the network lies on the meta device and has no weights; load them first")
    if tensor.device.type == "cpu":
        return tensor if tensor.is_leaf else tensor.detach()
    moved = tensor.detach().cpu()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(moved, requires_grad=tensor.requires_grad)
    return moved
