# SPDX-License-Identifier: Apache-2.0
"""Networks of other floats come out as what their values are in float32."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from rarefy.cli.app import app
from rarefy.float32 import in_float32
from rarefy.task import Task

NETWORK = """
import torch
from torch import nn
from rarefy.task import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)
    def forward(self, image, shift):
        features = torch.relu(self.norm(self.convolution(image))).mean((2, 3))
        return self.linear(features) + shift

def model():
    torch.manual_seed(0)
    return Net().to(torch.{dtype})

def task():
    random = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(8, 3, 9, 9, generator=random).to(torch.{dtype}), torch.ones(8, 1).to(torch.{dtype}))
        for _ in range(3)
    ]
    return Task("random", example=batches[0], validation=batches, calibration=batches, labelled=False)
"""


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)


def data(dtype: torch.dtype) -> Task:
    x, y = (
        torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).to(dtype),
        torch.arange(8) % 2,
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    return Task("toy", example=x[:2], train=loader, validation=iter_again(x, y))


class iter_again:
    """Batches that can't be counted."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.batch = (x, y)

    def __iter__(self):
        yield self.batch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_the_same_and_nothing_is_changed(dtype: torch.dtype) -> None:
    model, task = network(dtype).eval(), data(dtype)
    wide, given = in_float32(model, task)
    assert {p.dtype for p in model.parameters()} == {dtype} == {task.example.dtype}
    for mine, found in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(mine.float(), found)
    assert len(given.train) == 2
    assert not hasattr(given.validation, "__len__")
    for role in ("train", "validation", "test", "calibration"):
        for _ in range(2):  # again and again
            for (x, y), (was, labels) in zip(given.batches(role), task.batches(role), strict=True):
                assert x.dtype == torch.float32
                assert torch.equal(x, was.float())
                assert torch.equal(y, labels)
                assert torch.equal(wide(x), network(dtype).float().eval()(was.float()))


def test_float32_is_left_as_it_is() -> None:
    model, task = network(torch.float32), data(torch.float32)
    model.register_buffer("table", torch.ones(2, dtype=torch.float64))
    assert in_float32(model, task) == (model, task)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_of_other_floats(tmp_path: Path, dtype: str, runtime: str) -> None:
    file, recipe, out = tmp_path / "net.py", tmp_path / "int8.yaml", tmp_path / "out"
    file.write_text(NETWORK.replace("{dtype}", dtype))
    recipe.write_text("steps:\n  - static-int8: {}\n")
    arguments = [
        "compress",
        f"{file}:model",
        f"{file}:task",
        "--recipe",
        str(recipe),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, [*arguments, "--runtime", runtime])
    assert result.exit_code == 0, result.output
    document = json.loads((out / "measurements.json").read_text())
    assert document["parity"]["passed"]
    assert document["stages"][-1]["metric"]["value"] > 0.8
    exported = CliRunner().invoke(
        app, ["export", f"{file}:model", f"{file}:task", "--out", str(out / "as")]
    )
    assert exported.exit_code == 0, exported.output
    assert "parity holds on 24 inputs" in exported.output
