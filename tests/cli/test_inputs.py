# SPDX-License-Identifier: Apache-2.0
"""Networks, tasks and weights that are wrong: one sentence, nothing half-written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from .command import USER, files, half_done, rarefy

TRAINING = "steps:\n  - finetune: {epochs: 1}\n"


def refused(here: Path, model: str, task: str, *more: object, recipe: str = TRAINING) -> str:
    """What a compression says that must be refused; only finished stages may be left."""
    (here / "r.yaml").write_text(recipe)
    before = files(here)
    done = rarefy("compress", model, task, *more, "--recipe", "r.yaml", "--out", "deep/out")
    assert files(here) == before
    out = here / "deep" / "out"
    assert not half_done(out)
    assert (out / ".stages").is_dir() or not (here / "deep").exists()
    return done.sentence()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent", f"'{USER}' has no callable 'absent'; known: Broken, Fatal, Nothing, asking, "),
        ("number", f"'{USER}' has no callable 'number'"),
        ("raisin", "did you mean 'raising'?"),
        ("raising", f"raising' failed with ValueError: no weights today ({USER}, line "),
        ("seven", "seven' returned a value of type int; return a torch.nn.Module"),
        ("asking", "asking' asks for arguments (depth); rarefy calls it without any"),
        ("broken", "does not run on task 'points' (inputs (2, 1, 8, 8)): KeyError: 'b'"),
        ("not_finite", "'1.weight' holds NaN or infinity; give a network whose weights are finite"),
    ],
)
def test_a_network_of_the_users(name: str, complaint: str, here: Path) -> None:
    assert complaint in refused(here, f"{USER}:{name}", f"{USER}:task")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("raising", "raising' failed with ValueError: no weights today"),
        ("seven", "seven' returned a value of type int; return a rarefy.Task"),
        ("unlabelled", "step 1 (finetune) needs labels: use distill in its place"),
        ("promising", "a batch of type Tensor carries no labels; yield (inputs, targets)"),
        ("empty", "task 'void' has no train batches: its loader is empty"),
        ("nothing", "there is no batch to train on: the loader is empty"),
        ("nothing_to_judge", "task 'void' has an empty test set"),
        ("nan_loss", "the loss of 'finetune' became nan in epoch 1; lower the learning rate"),
        ("failing_loss", f"LookupError: no loss for you ({USER}, line "),
        ("twenty", "task 'twenty' has 20 classes but the network has 10 outputs"),
        ("twenty_unnamed", "label 15 does not fit a network with 10 outputs"),
    ],
)
def test_a_task_of_the_users(name: str, complaint: str, here: Path) -> None:
    assert complaint in refused(here, f"{USER}:net", f"{USER}:{name}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "there is no file 'page.py' (in 'page.py:net')"),
        ("def net(:\n", "'page.py' can't be imported: SyntaxError: invalid syntax (page.py, line 1)"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("\nraise SystemExit('run me alone')\n", "SystemExit: run me alone (page.py, line 2)"),
    ],
)  # fmt: skip
def test_a_file_that_can_not_be_imported(text: str | None, complaint: str, here: Path) -> None:
    if text is not None:
        (here / "page.py").write_text(text)
    assert complaint in refused(here, "page.py:net", "digits")


@pytest.mark.parametrize(
    ("model", "task", "complaint"),
    [
        ("zoo:digit-net", "digits", "the zoo has no network 'digit-net'; did you mean 'digits-net'?"),
        ("zoo:digits-net@mnist", "digits", "no trained weights 'digits-net@mnist' ship with rarefy"),
        ("digits-net", "digits", "'digits-net' names no model; write zoo:NAME"),
        ("torchvision:resnt18", "digits", "torchvision has no model 'resnt18'; did you mean 'resn"),
        ("zoo:digits-net", "digit", "'digit' names no task; did you mean 'digits'?"),
        ("zoo:digits-net", "mnist", "task 'mnist' needs a source: mnist:FILE.npz"),
        ("zoo:digits-net", "mnist:nowhere", "task 'mnist:nowhere': there is no 'nowhere'"),
        ("zoo:digits-net", "mnist:r.yaml", "'r.yaml' is no readable .npz file"),
        ("zoo:digits-net", "cifar10:.", "'.' holds no CIFAR-10"),
        ("zoo:digits-net", "random-images:1x-8x8", "random-images:1x-8x8 is no shape"),
        ("zoo:resnet20", "digits", "the network does not run on task 'digits' (inputs (2, 1, 8, 8))"),
        (f"{USER}:five", "digits", "task 'digits' has 10 classes but the network has 5 outputs"),
    ],
)  # fmt: skip
def test_names_and_what_does_not_fit(model: str, task: str, complaint: str, here: Path) -> None:
    assert complaint in refused(here, model, task)


def test_weights_of_another_architecture(here: Path, weights: Path) -> None:
    given = ("zoo:lenet5", "digits", "--weights", weights)
    assert (
        "are of another architecture: 'conv1.weight' is (16, 1, 3, 3) instead of (20, 1, 5, 5)"
        in refused(
            here,
            *given,  # type: ignore[arg-type]
        )
    )


def test_weights_that_can_not_be_used(here: Path, weights: Path) -> None:
    network = ("zoo:digits-net", "digits")
    (here / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    state = {"conv1.weight": torch.zeros(16, 1, 3, 3)}
    save_file(state, here / "few.safetensors")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight.data[3, 4] = float("inf")
    save_file(model.state_dict(), here / "nan.safetensors")
    for name, complaint in {
        "cut.safetensors": "'cut.safetensors' is no readable safetensors file",
        "few.safetensors": "are of another architecture: 'conv1.bias' is missing",
        "absent.rfy": "there is no file of weights 'absent.rfy'",
        "r.yaml": "'r.yaml' is neither .safetensors nor .rfy",
    }.items():
        assert complaint in refused(here, *network, "--weights", name)
    found = refused(here, f"{USER}:net", f"{USER}:task", "--weights", "nan.safetensors")
    assert "hold NaN or infinity in '1.weight'" in found


def test_what_is_no_network_any_more(here: Path, result: Path) -> None:
    assert f"'{result}' is a result's folder; name the .onnx file" in refused(
        here, str(result), "digits"
    )
    (here / "cut.onnx").write_bytes((result / "model.onnx").read_bytes()[:700])
    assert "'cut.onnx' is no readable ONNX file" in refused(here, "cut.onnx", "digits")
    assert "'absent.onnx' is no readable ONNX file" in refused(here, "absent.onnx", "digits")


def test_training_that_can_not_work(here: Path) -> None:
    points = (f"{USER}:net", f"{USER}:task")
    for out in ("weights.pt", ".", "/proc/none/w.safetensors", "weights"):
        assert f"'{out}' is no name" in (
            found := rarefy("train", *points, "--out", out).sentence()
        ) or ("'/proc/none' can't be written" in found)
    lossy = (f"{USER}:net", f"{USER}:nan_loss")
    done = rarefy("train", *lossy, "--epochs", 1, "--out", "deep/w.safetensors")
    assert "became nan in epoch 1" in done.sentence()
    assert (
        "Input should be greater"
        in rarefy("train", *points, "--epochs", 0, "--out", "w").sentence()
    )
    assert not list(here.iterdir())


@pytest.mark.parametrize("command", ["compress", "sensitivity", "export"])
def test_folders_that_can_not_be_written(command: str, here: Path) -> None:
    (here / "file").write_text("mine")
    recipe = ("--recipe", "kd") if command == "compress" else ()
    for out in ("file", "file/deep", "/proc/none"):
        done = rarefy(command, "zoo:digits-net", "digits", *recipe, "--out", out)
        assert f"'{out}' can't be written: " in done.sentence()
    assert (here / "file").read_text() == "mine"
    assert [p.name for p in here.iterdir()] == ["file"]
