# SPDX-License-Identifier: Apache-2.0
"""Weights in groups: exact round trips, the best range, what a file holds and how a runtime multiplies it."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import Tensor, nn

from rarefy.errors import RecipeError
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import check_parity
from rarefy.forms.grid import Grid, from_codes, grid_for_range, to_codes
from rarefy.forms.groups import InGroups, from_groups, in_groups
from rarefy.forms.shadow import find
from rarefy.forms.snapshot import restore, snapshot
from rarefy.quantize.weight_only import WeightOnly, best_affine, whole_groups
from rarefy.step import Context
from rarefy.store.pack import load_onnx, pack
from rarefy.task import Task


class Mixed(nn.Module):
    """A table, a recurrent layer, a product, a convolution and a head, (B, tokens) to (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 48)
        self.rnn = nn.LSTM(48, 32, batch_first=True, bidirectional=True)
        self.product, self.conv = nn.Linear(64, 64), nn.Conv1d(64, 40, 3)
        self.head = nn.Linear(40, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.product(self.rnn(self.table(tokens))[0]).relu()
        return self.head(self.conv(x.transpose(1, 2)).mean(2))


TOKENS = torch.randint(0, 60, (4, 7), generator=torch.Generator().manual_seed(1))


def rounded(model: nn.Module, x: Tensor, **how: Any) -> nn.Module:
    task = Task("toy", x, calibration=[x], labelled=False)
    context = Context(task, model, torch.device("cpu"))
    return WeightOnly(**how).apply(copy.deepcopy(model).eval(), context)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 70), st.sampled_from([16, 32, 64]))
def test_groups_come_back(rows: int, columns: int, size: int) -> None:
    matrix = torch.randn(rows, columns)
    groups = in_groups(matrix, size)
    assert groups.shape == (rows * -(-columns // size), size)
    assert torch.equal(from_groups(groups, matrix.shape), matrix)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([4, 8]), st.booleans(), st.sampled_from([20, 64, 100])
)
def test_weights_on_the_grid_are_kept_exactly(
    seed: int, bits: int, symmetric: bool, columns: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    grid = Grid(bits, signed=symmetric, symmetric=symmetric)
    lowest = -grid.high if symmetric else grid.low
    codes = torch.randint(lowest, grid.high + 1, (6, columns), generator=draw)
    codes[:, ::16] = lowest  # every group uses its whole range
    codes[:, 1::16] = grid.high
    zero = 0 if symmetric else int(torch.randint(1, grid.high, (), generator=draw))
    layer = nn.Linear(columns, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_((codes - zero) * 0.25)
    found = rounded(nn.Sequential(layer), torch.randn(2, columns), bits=bits, symmetric=symmetric)
    assert torch.equal(found[0].weight, layer.weight)
    assert torch.equal(found[0].parametrizations.weight.original.long(), codes)


def test_the_best_range_is_no_worse_than_the_widest() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 32) ** 3
    for symmetric in (True, False):
        grid = Grid(4, signed=symmetric, symmetric=symmetric)
        low, high = rows.amin(1), rows.amax(1)
        wide = grid_for_range(low, high, grid)
        errors = []
        for scale, zero in (wide, best_affine(rows, grid)):
            back = from_codes(to_codes(rows, scale, zero, grid, 0), scale, zero, 0)
            errors.append((back - rows).square().sum(1))
        assert bool((errors[1] <= errors[0] * (1 + 1e-6)).all())
        assert errors[1].sum() < 0.985 * errors[0].sum()


@pytest.mark.parametrize(("bits", "symmetric", "most"), [(4, False, 0.23), (8, True, 0.36)])
def test_files_are_small_and_run_as_they_are_stored(
    bits: int, symmetric: bool, most: float, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    found = rounded(model, TOKENS, bits=bits, symmetric=symmetric)
    program = export_onnx(found, TOKENS)
    assert check_parity(found, program, [TOKENS]).max_relative < 0.01
    weights = sum(p.nbytes for p in model.parameters())
    assert sum(len(t.raw_data) for t in program.graph.initializer) < most * weights
    types = {t.name: t.data_type for t in program.graph.initializer}
    if bits == 4:
        for name in ("product.weight", "conv.weight", "head.weight"):
            assert types[name] == TensorProto.UINT4
        assert types["table.weight"] == TensorProto.UINT8  # two codes a byte, to be looked up
    kernels = OnnxRuntime(program).node_counts()
    assert kernels["MatMulNBits"] == 2
    size = save_onnx(program, tmp_path / "model.onnx")
    assert pack(tmp_path / "model.onnx", tmp_path / "model.rfy") < size
    assert (
        load_onnx(tmp_path / "model.rfy").SerializeToString(deterministic=True)
        == (tmp_path / "model.onnx").read_bytes()
    )
    assert torch.equal(restore(copy.deepcopy(model), *snapshot(found))(TOKENS), found(TOKENS))


def test_openvino_gets_groups_that_fill_their_rows() -> None:
    from rarefy.export.openvino import OpenVino

    assert [whole_groups(n, 32) for n in (64, 500, 25, 37, 9)] == [32, 20, 25, 37, 9]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 20), nn.Linear(20, 37), nn.ReLU(), nn.Linear(37, 5))
    tokens = TOKENS % 30
    task = Task("toy", tokens, calibration=[tokens], labelled=False)
    context = Context(task, model, torch.device("cpu"), runtime="openvino")
    found = WeightOnly().apply(copy.deepcopy(model).eval(), context)
    program = OpenVino(export_onnx(found, tokens), threads=1)
    assert torch.allclose(program(tokens), found(tokens), atol=1e-4)


def test_smaller_groups_are_closer() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 32)), torch.randn(16, 256)
    errors = [
        float((rounded(model, x, bits=bits, group_size=size)(x) - model(x)).norm())
        for bits, size in ((8, 32), (4, 16), (4, 32), (4, 256))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.1 * errors[1]


def test_kernels_of_convolutions_keep_their_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2), nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(2, 8, 6, 6)
    found = rounded(model, x, bits=8)
    for layer, before in zip(found, model, strict=True):
        assert find(layer, InGroups) is not None
        assert layer.weight.shape == before.weight.shape
        assert (layer.weight - before.weight).abs().max() < before.weight.abs().max() / 100
    assert (found(x) - model(x)).abs().max() < 0.02 * model(x).abs().max()


def test_bad_settings_end_in_a_sentence() -> None:
    with pytest.raises(RecipeError, match=r"group_size=24 is not allowed: .*16, 32, 64"):
        WeightOnly(group_size=24)
    with pytest.raises(RecipeError, match="bits=3 is not allowed"):
        WeightOnly(bits=3)  # type: ignore[arg-type]
