# SPDX-License-Identifier: Apache-2.0
"""What modules give and are given while a network runs, by name."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from rarefy.task import tensors_of

Features: TypeAlias = dict[str, Tensor]
INPUT = ":input"


@contextmanager
def features(model: nn.Module, names: Iterable[str]) -> Iterator[Features]:
    """The first tensor that modules gave in the latest run, by name; up to date inside the block.

    Args:
        model: runs inside the block; no hook stays behind.
        names: paths of modules, the empty one for the whole network; ``"fc:input"`` stands for what `fc` is
            given. Entries appear in the order in which they were seen first.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with features(model, ["0", "1:input"]) as seen:
        ...     _ = model(torch.ones(1, 3))
        >>> bool((seen["0"] == seen["1:input"]).all())
        True
    """
    found: Features = {}

    def keep(name: str, value: Any) -> None:
        if tensors := tensors_of(value):
            found[name] = tensors[0]

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name.removesuffix(INPUT))
            if name.endswith(INPUT):
                handle = module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: keep(name, (args, kwargs)), with_kwargs=True
                )
            else:
                handle = module.register_forward_hook(lambda _, __, y, name=name: keep(name, y))
            stack.callback(handle.remove)
        yield found
