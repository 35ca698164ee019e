# SPDX-License-Identifier: Apache-2.0
"""A measurement survives the way through JSON, and sizes are those of real files."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rarefy.errors import FileError
from rarefy.forms.mask import Mask
from rarefy.forms.shadow import dress, dressed
from rarefy.measure.latency import Latency
from rarefy.measure.measurement import Measurement, Timing, bytes_of
from rarefy.measure.quality import Quality

FOUND = Latency(2.0, (1.5, 2.5), 3.0, 0.5, (0.4, 0.6), 30, 3, 2, 1)
FULL = Measurement(
    name="artefact",
    quality=Quality("accuracy", 0.98, True, 300),
    parameters=10,
    nonzero=7,
    macs=99,
    bytes={"safetensors": 40, "onnx": 50, "rfy": 8},
    through="onnxruntime",
    latency=Timing.of(FOUND, "onnxruntime", "int8"),
    memory_bytes=1234,
    seconds=1.5,
)
BARE = Measurement("baseline", None, 10, 10, None, {})


@pytest.mark.parametrize("measured", [FULL, BARE])
def test_json_and_back(measured: Measurement) -> None:
    assert Measurement.from_dict(json.loads(json.dumps(measured.as_dict()))) == measured


def test_a_stage_has_the_promised_keys() -> None:
    stage = FULL.as_dict()
    assert list(stage) == [
        "name", "metric", "parameters", "nonzero", "macs", "bytes", "latency_ms", "memory_bytes",
        "seconds",
    ]  # fmt: skip
    assert stage["metric"] == {
        "name": "accuracy",
        "value": 0.98,
        "higher_is_better": True,
        "through": "onnxruntime",
        "examples": 300,
    }
    assert stage["latency_ms"] == {
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 2,
        "median": 2.0,
        "iqr": [1.5, 2.5],
        "cpu_median": 3.0,
        "ratio_to_baseline": 0.5,
        "ratio_iqr": [0.4, 0.6],
        "precision": "int8",
    }


@pytest.mark.parametrize("missing", ["name", "metric", "parameters", "latency_ms", "bytes"])
def test_a_stage_without_a_key_is_refused(missing: str) -> None:
    stage = FULL.as_dict()
    del stage[missing]
    with pytest.raises(FileError, match=f"'{missing}'"):
        Measurement.from_dict(stage)


def test_a_stage_with_a_foreign_latency_is_refused() -> None:
    stage = FULL.as_dict()
    stage["latency_ms"]["colour"] = "blue"
    with pytest.raises(FileError, match="colour"):
        Measurement.from_dict(stage)


def test_sizes_are_those_of_the_finished_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    bytes_of(nn.Linear(2, 2), torch.randn(1, 2))  # what torch itself keeps there, it makes once
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dress(net[0], "weight", Mask(torch.rand(64, 64) > 0.95))
    sizes = bytes_of(net, torch.randn(1, 64))
    weights = 4 * (64 * 64 + 64 + 64 * 8 + 8)
    assert weights < sizes["safetensors"] < weights + 1000
    assert weights < sizes["onnx"] < weights + 1000
    # 5% of the first weight and all of the second are left to code
    assert 4 * 64 * 8 * 0.8 < sizes["rfy"] < 4 * (64 * 8 + 64 * 64 * 0.08 + 72) + 1200
    assert len(list(dressed(net))) == 1
    assert not list(tmp_path.iterdir())
