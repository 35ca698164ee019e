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

from rarefy.graph.book import Book, Key, place_of
from rarefy.graph.fields import Fields, kept_along
from rarefy.graph.operators import argument_names
from rarefy.graph.stand_ins import zeros_beside
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
    """Lets operators see zeros in parameters, and those that count positions only what stays.

    Args:
        counted: see `Book`.
        removed: which labels go, shape (count + 1,).
        kept: place of a parameter in memory → what stays of it, see `Book.kept`.

    Attributes:
        ran: how many operators ran that count positions.
        path: see `Book`.
    """

    def __init__(
        self,
        counted: dict[int, tuple[str, Fields]],
        removed: Tensor,
        kept: Mapping[Key, Mapping[int, Tensor]],
    ) -> None:
        super().__init__()
        self.counted, self.removed, self.kept = counted, removed, kept
        self.ran = self.path = 0

    def zeroed(self, value: Any) -> Any:
        """An argument with zeros in parameters; they live no longer than the operator that reads them."""
        if isinstance(value, Tensor):
            kept = self.kept.get(place_of(value))
            return value if kept is None else zeros_beside(value.detach(), kept)
        if isinstance(value, (list, tuple)):
            return type(value)(self.zeroed(each) for each in value)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.path = hash((self.path, name))
        args = self.zeroed(args)
        kwargs = {key: self.zeroed(value) for key, value in (kwargs or {}).items()}
        if name == "_weight_norm_interface":  # a direction of zeros has no length
            weight, length = func(*args, **kwargs)
            return torch.nan_to_num(weight), length
        if not counts_positions(name, func, args):
            return func(*args, **kwargs)
        self.ran += 1
        expected, fields = self.counted.get(self.ran, (name, ()))
        if expected != name:
            raise RuntimeError(f"it runs {name} where it ran {expected} before")
        if not fields:
            return func(*args, **kwargs)
        x = first_tensor(args)
        kept = {
            axis: stays.nonzero()[:, 0].to(x.device)
            for axis in range(x.dim())
            if (stays := kept_along(fields, axis, self.removed)) is not None and not stays.all()
        }
        if not kept:
            return func(*args, **kwargs)
        return only_kept(func, args, kwargs, kept)


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


@torch.no_grad()
def masked_outputs(
    model: nn.Module,
    book: Book,
    removed: Tensor,
    example: Inputs,
    shaken: dict[str, Tensor] | None = None,
    path: int | None = None,
) -> list[Tensor]:
    """What the network gives with zeros in place of everything that goes.

    Args:
        model: in eval mode; not changed.
        book: of its labels.
        removed: which labels go, shape (count + 1,).
        example: the one that the labels were found on.
        shaken: values to use in place of some parameters, see `stand_ins.shake`.
        path: that the network must take, see `Book`; None for any.

    Raises:
        RuntimeError: it takes another path.
    """
    parameters = dict(model.named_parameters())
    # matmul takes another path for weights that want a gradient
    values = {n: nn.Parameter(v, parameters[n].requires_grad) for n, v in (shaken or {}).items()}
    kept = {
        place_of(values.get(name, parameters[name])): each
        for name, each in book.kept(removed).items()
        if name in parameters
    }
    masking = Masking(book.counted, removed, kept)
    with unfused(model), masking:
        outputs = outputs_with(model, values, example)
    if path is not None and masking.path != path:
        raise RuntimeError("it runs other operators than before")
    return outputs


@torch.no_grad()
def outputs_with(model: nn.Module, values: Mapping[str, Tensor], example: Inputs) -> list[Tensor]:
    """What the network, in eval mode, gives with other values in place of some parameters."""
    forget(model)
    with replaced(model, values):
        return tensors_of(call(model, example))


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts other tensors in place of parameters and buffers meanwhile, wherever they are held."""
    if not values:
        yield
        return
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
