# SPDX-License-Identifier: Apache-2.0
"""Networks of other floats, taken as float32: methods compute in it, and CPUs have kernels for it."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.batches import changed, mapped
from rarefy.task import ROLES, Task


def in_float32(model: nn.Module, task: Task) -> tuple[nn.Module, Task]:
    """Network and task, both in float32 if a parameter is in another float; else as they are.

    Values of float16 and bfloat16 stay what they are; the step `half-precision` stores 16 bits again.

    Args:
        model: not changed; what is returned may be a copy.
        task: its batches are widened as they come.

    Examples:
        >>> task = Task("ones", example=torch.ones(1, 3).half(), labelled=False)
        >>> model, task = in_float32(nn.Linear(3, 2).half(), task)
        >>> model(task.example).dtype
        torch.float32
    """
    floats = {t.dtype for t in model.parameters() if t.is_floating_point()}
    if floats <= {torch.float32}:
        return model, task
    given = {role: getattr(task, role) for role in ROLES}
    roles: dict[str, Any] = {role: changed(b, _wide) for role, b in given.items() if b is not None}
    return copy.deepcopy(model).float(), replace(task, example=_wide(task.example), **roles)


def _wide(values: Any) -> Any:
    def change(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    return mapped(values, change)
