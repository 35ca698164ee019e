# SPDX-License-Identifier: Apache-2.0
"""The largest scores of many tensors, chosen exactly without ever joining, copying or sorting them.

The bits of a float, read as an integer, order it among floats of its sign. So the k-th smallest of any number
of tensors is found digit by digit from histograms of 16 bits each (radix selection; Knuth, The Art of
Computer Programming, volume 3, section 5.2.5), a small piece of one tensor at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

PIECE = 1 << 18  # scores looked at together
DIGIT = 16


@dataclass(frozen=True)
class Each(Sequence[Tensor]):
    """Tensors that are made when they are asked for, and made anew every time.

    Attributes:
        make: the tensor at a place.
        length: how many there are.
    """

    make: Callable[[int], Tensor]
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> "Each": ...
    def __getitem__(self, place: int | slice) -> "Tensor | Each":
        if isinstance(place, slice):
            chosen = range(self.length)[place]
            return Each(lambda i: self.make(chosen[i]), len(chosen))
        if not -self.length <= place < self.length:
            raise IndexError(f"there are {self.length} tensors and none at place {place}")
        return self.make(place % self.length)


def each(function: Callable[..., Tensor], *tensors: Sequence[Any]) -> Each:
    """`function` of the items of some sequences, one after the other, made when asked for.

    Examples:
        >>> [t.item() for t in each(torch.abs, [torch.tensor(-1.0), torch.tensor(2.0)])]
        [1.0, 2.0]
    """
    return Each(lambda i: function(*(sequence[i] for sequence in tensors)), len(tensors[0]))


def keep_most(scores: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Masks of the `keep` largest scores of all tensors together; ties go to the earlier one.

    Needs memory for the masks, one tensor of scores and a megabyte.

    Args:
        scores: of any shapes and one dtype, read several times, one after the other.
        keep: how many are kept.

    Returns:
        One bool tensor for each.
    """
    total = sum(s.numel() for s in scores)
    if keep >= total or keep <= 0:
        return [torch.full(s.shape, keep > 0, device=s.device) for s in scores]
    limit = kth_smallest(scores, total - keep)
    masks = [compared(s, limit, torch.gt) for s in scores]
    spare = keep - sum(int(m.sum()) for m in masks)
    for mask, s in zip(masks, scores if spare else [], strict=False):
        tied = first_true(compared(s, limit, torch.eq).flatten(), spare)
        spare -= int(tied.sum())
        mask |= tied.view(mask.shape)
        if not spare:
            break
    return masks


def compared(scores: Tensor, limit: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A comparison with the limit, in the limit's type."""
    flat, limit = scores.flatten(), limit.to(scores.device)
    result = torch.empty_like(flat, dtype=torch.bool)
    for piece, out in zip(flat.split(PIECE), result.split(PIECE), strict=True):
        out.copy_(how(piece.to(limit.dtype), limit))
    return result.view(scores.shape)


def first_true(flags: Tensor, most: int) -> Tensor:
    """The flags, (n,), of which only the first `most` stay; changed in place."""
    for piece in flags.split(PIECE):
        found = int(piece.sum())
        if found > most:
            piece[piece.nonzero().flatten()[most:]] = False
        most -= min(found, most)
    return flags


def kth_smallest(parts: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest value, (), of all tensors together, as `torch.kthvalue` of them joined.

    Args:
        parts: of any shapes, read once for every 16 bits of a value; NaN counts as the largest.
        k: from 1 to the number of values.

    Raises:
        ValueError: there are fewer than `k` values.

    Examples:
        >>> kth_smallest([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
        tensor(2.)
    """
    total = sum(part.numel() for part in parts)
    if not 1 <= k <= total:
        raise ValueError(f"of {total} values there is no smallest number {k}")
    bits = 64 if any(part.dtype == torch.float64 for part in parts) else 32
    key, low, left = 0, bits, total  # of the bits from `low` on the value's are known to be `key`
    while low and left > PIECE:
        low -= DIGIT
        start = key << DIGIT if low < bits - DIGIT else -1 << (DIGIT - 1)  # the sign is in front
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for keys in pieces(parts, bits):
            digits = (alike(keys, key, low + DIGIT) >> low) - start
            counts += torch.bincount(digits, minlength=1 << DIGIT).cpu()
        before = counts.cumsum(0)
        digit = int(torch.searchsorted(before, k))
        left = int(counts[digit])
        k -= int(before[digit]) - left
        key = start + digit
    if low:
        rest = torch.cat([alike(keys, key, low).cpu() for keys in pieces(parts, bits)])
        key = int(rest.kthvalue(k).values)
    pattern = torch.tensor(key, dtype=torch.int64 if bits == 64 else torch.int32)
    return folded(pattern).view(torch.float64 if bits == 64 else torch.float32)


def pieces(parts: Sequence[Tensor], bits: int) -> Iterator[Tensor]:
    """Integers in the order of the values, a piece of a tensor at a time."""
    for part in parts:
        for piece in part.detach().flatten().split(PIECE):
            values = piece.double() if bits == 64 else piece.float()
            keys = folded(values.view(torch.int64 if bits == 64 else torch.int32))
            yield torch.where(values.isnan(), torch.iinfo(keys.dtype).max, keys)


def alike(keys: Tensor, key: int, low: int) -> Tensor:
    """Those whose bits from `low` on are `key`; all of them where nothing is known yet."""
    return keys[keys >> low == key] if low < torch.iinfo(keys.dtype).bits else keys


def folded(pattern: Tensor) -> Tensor:
    """The bits of floats as signed integers in the order of the floats, and back: it undoes itself."""
    last = torch.iinfo(pattern.dtype)
    return pattern ^ ((pattern >> (last.bits - 1)) & last.max)
