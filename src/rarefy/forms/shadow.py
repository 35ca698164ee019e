# SPDX-License-Identifier: Apache-2.0
"""A compressed weight in the making is a parametrization; `bake` turns it into what is stored.

Forms stand on a tensor in the order of their registration (mask, then codebook, then grid …). Optimisers
train through them, state dicts hold them, and nothing else keeps a second copy of the weight.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Form(nn.Module):
    """A parametrization of a weight.

    Class attributes:
        kind: the word for it in tables and in the order check: ``"mask"``, ``"codebook"``, ``"quantised"``.
    """

    kind: ClassVar[str]

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Stores the finished `weight` in `module` under `name`; dense unless a form knows better."""
        store_dense(module, name, weight)


def store_dense(module: nn.Module, name: str, weight: Tensor) -> None:
    """Puts a plain parameter in the place of whatever holds the weight."""
    unparametrize(module, name)
    setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=True))


def unparametrize(module: nn.Module, name: str) -> None:
    """Removes a parametrization together with its originals, and registers nothing instead."""
    if parametrize.is_parametrized(module, name):
        # the originals may be smaller than the weight, so they can't be left in its place
        del module.parametrizations[name]  # type: ignore[operator, union-attr]
        if not module.parametrizations:
            restore_class(module)
        else:
            separate_class(module)
            delattr(type(module), name)
    elif name in module._parameters:
        del module._parameters[name]


def restore_class(module: nn.Module) -> None:
    """Gives a module without parametrizations its original class back."""
    del module._modules["parametrizations"]
    for number, hook in list(module._forward_hooks.items()):
        if hook is refresh:
            del module._forward_hooks[number]
    module.__class__ = type(module).__bases__[0]


def separate_class(module: nn.Module) -> None:
    """Gives a parametrized module a class of its own.

    `parametrize` keeps properties in the module's class, and copies share that class: what is put on or
    taken off one copy would show on all of them.
    """
    shared = type(module)
    body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, body)


def dress(module: nn.Module, name: str, form: Form) -> None:
    """Puts `form` on the tensor `name` of `module`, above the forms that are there."""
    if parametrize.is_parametrized(module) and not parametrize.is_parametrized(module, name):
        separate_class(module)
    parametrize.register_parametrization(module, name, form, unsafe=True)
    if isinstance(module, nn.RNNBase) and refresh not in module._forward_hooks.values():
        module.register_forward_hook(refresh)


@torch.no_grad()
def refresh(module: nn.RNNBase, *_: Any) -> None:
    """Leaves a recurrent network weights of its own without a history: with one it could not be copied."""
    module._init_flat_weights()


def forms_of(module: nn.Module, name: str = "weight") -> list[nn.Module]:
    """The forms that stand on a tensor, lowest first; empty for a plain parameter."""
    if not parametrize.is_parametrized(module, name):
        return []
    return list(module.parametrizations[name])  # type: ignore[index]


def find(module: nn.Module, kind: type[Any], name: str = "weight") -> Any | None:
    """The form of a kind on a tensor, or None."""
    return next((form for form in forms_of(module, name) if isinstance(form, kind)), None)


def dressed(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every tensor that wears a form: (dotted path of the module, the module, name of the tensor)."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                yield path, module, name


@torch.no_grad()
def bake(model: nn.Module, after: Callable[[nn.Module], Any] | None = None) -> nn.Module:
    """Finishes every weight in the making: the topmost form decides how the weight is stored.

    Masks become zeros, codebooks values of few levels, grids integer codes with scales. The network
    computes the same as before.

    Args:
        model: changed in place.
        after: called with the module of each weight when that is finished.
    """
    for _, module, name in list(dressed(model)):
        top = forms_of(module, name)[-1]
        if isinstance(top, Form):
            top.baked(module, name, getattr(module, name).detach())
            if after is not None:
                after(module)
    return model


@torch.no_grad()
def bake_one(module: nn.Module, name: str = "weight") -> Tensor:
    """Makes one weight dense again, values unchanged, and returns it."""
    weight = getattr(module, name).detach().clone()
    store_dense(module, name, weight)
    return weight
