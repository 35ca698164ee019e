# SPDX-License-Identifier: Apache-2.0
"""The network with channels zeroed, which a cut must agree with.

Every entry of a parameter that would go is zero. A mean, a norm or a product of two activations looks at
the channels that stay, as it will in the cut network: a layer norm does not divide by channels that are not
there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rarefy.graph.book import Book
from rarefy.graph.fields import Fields, along, kept_along
from rarefy.graph.operators import argument_names
from rarefy.graph.unfused import forget, unfused
from rarefy.task import Inputs, call, tensors_of

REDUCING = {"mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "prod", "logsumexp"}
NORMS = {"native_layer_norm", "_fused_rms_norm", "native_group_norm"}
COUNTING = REDUCING | NORMS | {"bmm"}
BATCH_NORMS = {"native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"}


def counts_positions(name: str, func: Any, args: Any) -> bool:
    """Whether an operator looks at all positions of an axis: a batch norm if it takes statistics itself."""
    if name not in BATCH_NORMS:
        return name in COUNTING
    return bool(args[argument_names(func).index("training")])


def first_tensor(args: Any) -> Tensor:
    """The operand whose positions an operator counts."""
    tensor: Tensor = args[0]
    return tensor


class Masking(TorchDispatchMode):
    """Lets operators that count positions see only those that stay.

    Args:
        counted: see `Book`.
        removed: which labels go, shape (count + 1,).
    """

    def __init__(self, counted: dict[int, tuple[str, Fields]], removed: Tensor) -> None:
        super().__init__()
        self.counted, self.removed, self.ran = counted, removed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_weight_norm_interface":  # a direction of zeros has no length
            weight, length = func(*args, **(kwargs or {}))
            return torch.nan_to_num(weight), length
        if not counts_positions(name, func, args):
            return func(*args, **(kwargs or {}))
        self.ran += 1
        expected, fields = self.counted.get(self.ran, (name, ()))
        if expected != name:
            raise RuntimeError(f"it runs {name} where it ran {expected} before")
        if not fields:
            return func(*args, **(kwargs or {}))
        x = first_tensor(args)
        kept = {
            axis: stays.nonzero()[:, 0].to(x.device)
            for axis in range(x.dim())
            if (stays := kept_along(fields, axis, self.removed)) is not None and not stays.all()
        }
        if not kept:
            return func(*args, **(kwargs or {}))
        return only_kept(func, args, kwargs or {}, kept)


def only_kept(func: Callable[..., Any], args: Any, kwargs: Any, kept: dict[int, Tensor]) -> Any:
    """An operator applied to the positions that stay along the axes that it counts."""
    name = func.overloadpacket.__name__  # type: ignore[attr-defined]
    x = args[0]
    if name == "bmm":
        if 2 not in kept:
            return func(*args, **kwargs)
        return func(x.index_select(2, kept[2]), args[1].index_select(1, kept[2]))
    if name in REDUCING:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        axes = (
            range(x.dim())
            if dims is None
            else [d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)]
        )
        for axis in axes:
            if axis in kept:
                x = x.index_select(axis, kept[axis])
        return func(x, *args[1:], **kwargs)
    if name in BATCH_NORMS:
        return batch_norm_of_kept(func, args, kept)
    return norm_of_kept(func, name, args, kept)


def batch_norm_of_kept(func: Callable[..., Any], args: Any, kept: dict[int, Tensor]) -> Any:
    """A batch norm with statistics of the positions that stay; the others give zero."""
    x = args[0]
    small = x
    for axis, index in kept.items():
        small = small.index_select(axis, index) if axis != 1 else small
    result, *statistics = func(small, *args[1:])
    for axis, index in kept.items():
        if axis != 1:
            shape = [*result.shape[:axis], x.shape[axis], *result.shape[axis + 1 :]]
            result = result.new_zeros(shape).index_copy(axis, index, result)
    return (result, *statistics)


def norm_of_kept(func: Callable[..., Any], name: str, args: Any, kept: dict[int, Tensor]) -> Any:
    """A norm over the positions that stay; the others give zero."""
    x, rest = args[0], list(args[1:])
    axis = 1 if name == "native_group_norm" else x.dim() - 1
    if axis not in kept:
        return func(*args)
    index = kept[axis]
    small = x.index_select(axis, index)
    if name == "native_group_norm":
        weight, bias, n, channels, space, groups, eps = rest
        owners = index // (channels // groups)
        values = [
            pick(weight, index),
            pick(bias, index),
            n,
            len(index),
            space,
            len(owners.unique()),
            eps,
        ]
    else:
        shape, *parameters = rest
        values = [[*shape[:-1], len(index)], *(pick(p, index) for p in parameters)]
    result, *others = func(small.contiguous(), *values)
    zeros = torch.zeros_like(x, memory_format=torch.contiguous_format)
    return (zeros.index_copy(axis, index, result), *others)


def pick(parameter: Any, index: Tensor) -> Any:
    """The entries of a norm's parameter that stay."""
    return parameter.index_select(-1, index) if isinstance(parameter, Tensor) else parameter


def zeros_beside(values: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """A copy of a tensor with zeros everywhere but at the positions that stay along some axes."""
    stays = torch.ones((), dtype=torch.bool, device=values.device)
    for axis, positions in kept.items():
        each = torch.zeros(values.shape[axis], dtype=torch.bool, device=values.device)
        each[positions.to(values.device)] = True
        stays = stays & each.reshape(along(len(each), axis, values.dim()))
    return torch.where(stays, values, values.new_zeros(()))


@torch.no_grad()
def masked_outputs(
    model: nn.Module,
    book: Book,
    removed: Tensor,
    example: Inputs,
    shaken: dict[str, Tensor] | None = None,
) -> list[Tensor]:
    """What the network gives with zeros in place of everything that goes.

    Args:
        model: in eval mode; not changed.
        book: of its labels.
        removed: which labels go, shape (count + 1,).
        example: the one that the labels were found on.
        shaken: values to use in place of some parameters, see `shake`.
    """
    zeroed, parameters = dict(shaken or {}), dict(model.named_parameters())
    for name, kept in book.kept(removed).items():
        if name in parameters:
            zeroed[name] = zeros_beside(zeroed.get(name, parameters[name].detach()), kept)
    # matmul takes another path for weights that want a gradient
    zeroed = {n: nn.Parameter(v, parameters[n].requires_grad) for n, v in zeroed.items()}
    with unfused(model), Masking(book.counted, removed):
        return outputs_with(model, zeroed, example)


@torch.no_grad()
def outputs_with(model: nn.Module, values: dict[str, Tensor], example: Inputs) -> list[Tensor]:
    """What the network, in eval mode, gives with other values in place of some parameters."""
    forget(model)
    with replaced(model, values):
        return tensors_of(call(model, example))


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts other tensors in place of parameters and buffers meanwhile, wherever they are held."""
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    new = {id(tensor): values[name] for name, tensor in named if name in values}
    places = [
        (held, key, tensor)
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for key, tensor in held.items()
        if id(tensor) in new
    ]
    try:
        for held, key, tensor in places:
            held[key] = new[id(tensor)]  # type: ignore[assignment]
        yield
    finally:
        for held, key, tensor in places:
            held[key] = tensor  # type: ignore[assignment]


def shake(model: nn.Module) -> dict[str, Tensor]:
    """Random values for parameters that are zero or nearly so, behind which nothing could be seen.

    Residual branches and heads often start at zero, and a layer scale at 1e-6: outputs would agree
    whatever was cut.
    """
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.1 * torch.randn(p.shape, generator=generator).to(p)
        for name, p in model.named_parameters()
        if p.numel() and p.dim() and is_tiny(p.detach())
    }


def is_tiny(values: Tensor) -> bool:
    """Whether no number is as large as a thousandth; most tensors tell by their first numbers."""
    if float(values.flatten()[:64].abs().max()) >= 1e-3:
        return False
    return float(values.abs().max()) < 1e-3
