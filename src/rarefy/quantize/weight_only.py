# SPDX-License-Identifier: Apache-2.0
"""Weights of 4 or 8 bits with a scale for every few of them; activations stay float, and no data are needed.

Dettmers, Zettlemoyer: The case for 4-bit precision: k-bit Inference Scaling Laws, 2022, arXiv 2212.09720
(section 5: small groups of weights with scales of their own).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from rarefy.forms.grid import Grid, from_codes, grid_for_range, to_codes
from rarefy.forms.groups import InGroups, from_groups, in_groups
from rarefy.forms.recurrent import Recurrent
from rarefy.forms.shadow import bake
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.quantize.weight_layers import choose, exchange, renewed
from rarefy.select import Layer
from rarefy.step import Context, Patterns, Step

TRIED = 20  # ranges among which that of least squared error is chosen, down to 60 % of the widest
NARROWEST = 0.6


def power_of_two(size: int) -> int:
    """Refuses sizes that no kernel takes."""
    if size < 16 or size & (size - 1):
        raise ValueError("a group has 16, 32, 64, 128, … weights")
    return size


def whole_groups(columns: int, size: int) -> int:
    """The largest even size up to `size` that divides a row, as OpenVINO wants it; else the whole row."""
    even = next((n for n in range(min(size, columns), 1, -1) if not columns % n and not n % 2), 1)
    return even if 2 * even >= size else columns


def best_affine(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every row, (rows,), with which rounding costs the least squared error.

    Args:
        rows: (rows, values).
        grid: the integers.
    """
    low, high = rows.amin(1), rows.amax(1)
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale, zero_point = grid_for_range(low, high, grid)
    least = torch.full_like(scale, float("inf"))
    best, zero = scale, zero_point
    for share in torch.linspace(1.0, NARROWEST, TRIED).tolist():
        s, z = grid_for_range(low * share, high * share, grid)
        error = (from_codes(to_codes(rows, s, z, grid, 0), s, z, 0) - rows).square().sum(1)
        better = error < least
        best, zero = torch.where(better, s, best), torch.where(better, z, zero)
        least = torch.minimum(error, least)
    return best, zero


@dataclass(frozen=True)
class WeightOnly(Step):
    """Rounds the weights of linear, convolutional, recurrent and embedding layers, and nothing else.

    Every group of a row's weights has a scale; the row of a convolution is what one of its channels reads.
    ONNX Runtime multiplies matrices as they are stored (MatMulNBits) and rounds what they read to 8 bits by
    itself; convolutions and recurrent layers are dequantised whenever they run.

    Attributes:
        bits: 4 or 8; two codes of 4 bits share a byte in the file.
        group_size: weights that share a scale, a power of two from 16; fewer are closer and larger.
        symmetric: whether 0 is in the middle of the codes; else every group has a zero point.
        layers: which layers; patterns as in `rarefy.select.select` that also mean embeddings and recurrent
            layers.
        exclude: layers to leave out.
    """

    bits: Literal[4, 8] = 4
    group_size: Annotated[int, AfterValidator(power_of_two)] = 32
    symmetric: bool = False
    layers: Patterns = "*"
    exclude: Patterns = ()

    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "quantised"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Stores codes in the places of weights."""
        chosen = choose(bake(model.eval()), self.layers, self.exclude)
        loops = []
        for layer in chosen.recurrent:
            new = Recurrent(cast(nn.RNNBase, layer.module))
            exchange(model, layer.module, new)
            loops += [Layer(layer.name, new, name) for name in new.weights()]
        for shared in holders(model, renewed([*chosen.layers, *loops], model)):
            clothe(shared, *self.coded(shared[0], context.runtime))
        return model

    def coded(self, layer: Layer, runtime: str = "onnxruntime") -> tuple[Tensor, InGroups]:
        """The codes of a weight, int8 or uint8, and the form that reads them."""
        w = finite_weight(layer).float()
        grid = Grid(self.bits, signed=self.symmetric, symmetric=self.symmetric)
        matrix = w.flatten(1)
        size = whole_groups(matrix.shape[1], self.group_size) if runtime == "openvino" else 0
        size = size or self.group_size
        rows = in_groups(matrix, size)
        scale, zero_point = best_affine(rows, grid)
        codes = from_groups(to_codes(rows, scale, zero_point, grid, 0), matrix.shape).contiguous()
        scale, zero_point = scale.view(len(w), -1), zero_point.view(len(w), -1)
        return codes, InGroups(scale, zero_point, size, grid, tuple(w.shape))
