# SPDX-License-Identifier: Apache-2.0
"""What commands print, the exit codes of results, and files that need no code of the network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rarefy.export.litert_runner import LiteRt
from rarefy.measure.quality import evaluate
from rarefy.zoo.tasks import digits

from .command import FILES, USER, files, rarefy, spawn

STAGE = {"name", "metric", "parameters", "nonzero", "macs", "bytes", "latency_ms", "seconds"}


def test_a_result_has_its_files_and_nothing_else(result: Path) -> None:
    assert tuple(files(result)) == FILES
    document = json.loads((result / "measurements.json").read_text())
    assert document.keys() >= {"rarefy", "model", "task", "seed", "environment", "stages"}
    assert (document["model"], document["task"], document["seed"]) == (
        "zoo:digits-net",
        "digits",
        0,
    )
    assert all(stage.keys() >= STAGE for stage in document["stages"])
    names = [stage["name"] for stage in document["stages"]]
    assert (names[0], names[-1], len(names)) == ("baseline", "artefact", 5)
    assert document["stages"][-1]["bytes"]["rfy"] == (result / "model.rfy").stat().st_size


def test_a_budget_that_is_not_met_is_code_one(here: Path) -> None:
    (here / "r.yaml").write_text("steps: [half-precision]")
    points = (f"{USER}:net", f"{USER}:task")
    goal = ("--recipe", "r.yaml", "--budget", "size=10B", "--out", "out", "--json")
    done = rarefy("compress", *points, *goal)
    assert done.code == 1
    assert done.err == "the budget was not met; the best result was saved all the same\n"
    document = json.loads(done.out)
    assert document["budget"]["met"] is False
    assert json.loads((here / "out" / "measurements.json").read_text()) == document
    assert tuple(files(here / "out")) == FILES


def test_a_result_is_measured_from_its_file_alone(result: Path) -> None:
    """In a process that never imports the code of a network."""
    program = (
        "import sys\n"
        "from rarefy.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    command = ("measure", str(result / "model.rfy"), "digits", "--json")
    run = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    stage = json.loads(run.stdout)
    saved = json.loads((result / "measurements.json").read_text())["stages"][-1]
    assert stage["metric"]["value"] == saved["metric"]["value"]
    assert stage["metric"]["through"] == "onnxruntime"
    assert stage["metric"]["value"] > 0.85
    assert stage["bytes"]["rfy"] == saved["bytes"]["rfy"]
    modules = set(run.stderr.split())
    networks = {f"rarefy.zoo.{name}" for name in ("lenet", "resnet", "vgg")}
    assert not modules & {*networks, "torchvision", "timm", "transformers"}
    folder = rarefy("measure", result, "digits", "--json")
    assert json.loads(folder.out)["metric"] == stage["metric"]


def test_documents_stand_alone_on_stdout(weights: Path) -> None:
    network = ("zoo:digits-net", "digits", "--weights", weights)
    done = rarefy("measure", *network, "--json")
    stage = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert stage.keys() >= STAGE
    assert stage["metric"]["value"] > 0.85
    assert stage["parameters"] == 38_282
    for command, keys in {
        "systems": {"id", "title", "group", "paper", "year", "status", "methods"},
        "methods": {"method", "does"},
    }.items():
        done = rarefy(command, "--json")
        rows = json.loads(done.out)
        assert (done.code, done.err) == (0, "")
        assert rows
        assert all(row.keys() == keys for row in rows)


def test_litert_has_a_file_of_its_own(here: Path, weights: Path) -> None:
    network = ("zoo:digits-net", "digits", "--weights", weights, "--runtime", "litert")
    done = rarefy("compress", *network, "--recipe", "int8", "--out", "out", "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert set(files(here / "out")) == {*FILES, "model.tflite"}
    first, last = document["stages"][0], document["stages"][-1]
    path = here / "out" / "model.tflite"
    assert last["bytes"]["tflite"] == path.stat().st_size < first["bytes"]["safetensors"] * 0.4
    assert abs(last["metric"]["value"] - first["metric"]["value"]) < 0.02
    assert document["parity"]["runtime"] == last["metric"]["through"] == "litert"
    times = [stage["latency_ms"]["runtime"] for stage in (first, last)]
    assert times == ["onnxruntime", "litert"]
    assert {product["integer"] for product in document["kernels"]} == {True}
    quality = evaluate(LiteRt(path, threads=1), digits())
    assert quality.value == last["metric"]["value"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--recipe", "mag-prune"), "from end to end; end the recipe with static-int8"),
        (("--budget", "size=1/4"), "not with litert; name a recipe too"),
    ],
)
def test_litert_wants_integers_throughout(
    here: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    done = rarefy(
        "compress", "zoo:digits-net", "digits", *arguments, "--runtime", "litert", "--out", "out"
    )
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert not (here / "out").exists()


def test_export_proves_what_it_writes(here: Path, weights: Path) -> None:
    done = rarefy("export", "zoo:digits-net", "digits", "--weights", weights, "--out", "deep/out")
    assert (done.code, done.err) == (0, "")
    assert "parity holds on" in done.out
    assert [p.name for p in (here / "deep" / "out").iterdir()] == ["model.onnx"]


def test_train_reports_on_stderr_and_leaves_weights_alone(here: Path) -> None:
    done = rarefy("train", "zoo:digits-net", "digits", "--epochs", 2, "--out", "new/w.safetensors")
    assert done.code == 0
    assert [line.split(",")[0] for line in done.err.splitlines()] == [
        f"train zoo:digits-net: epoch {n}/2" for n in (1, 2)
    ]
    assert "on 300 test examples" in done.out
    assert [p.name for p in (here / "new").iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("command", [("systems",), ("methods",), ("systems", "show", "kd")])
def test_a_module_can_be_run(command: tuple[str, ...]) -> None:
    done = spawn(*command)
    assert (done.code, done.err) == (0, "")
    assert done.out == rarefy(*command).out
