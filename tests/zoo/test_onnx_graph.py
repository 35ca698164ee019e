# SPDX-License-Identifier: Apache-2.0
"""ONNX files become networks that compute the same, have the weights' names, and can be compressed."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.errors import FileError, ModelError
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import check_parity
from rarefy.prune.prune_channels import PruneChannels
from rarefy.quantize.dynamic_int8 import DynamicInt8
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context, Step
from rarefy.store.pack import load_onnx, pack
from rarefy.task import Task
from rarefy.zoo.models import load_model


def exported(model: nn.Module, x: Tensor, path: Path, opset: int = 17) -> Path:
    """A file of PyTorch's older exporter, which leaves the batch open as told."""
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            model.eval(), (x,), str(path), dynamo=False, opset_version=opset, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    return path


def torchvision(name: str) -> nn.Module:
    from torchvision import models

    return models.get_model(name, num_classes=7)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize(
    ("build", "shape", "opset"),
    [
        (lambda: torchvision("resnet18"), (3, 64, 64), 17),
        (lambda: torchvision("mobilenet_v3_small"), (3, 64, 64), 11),
        (encoder, (5, 32), 17),
    ],
    ids=["resnet18", "mobilenet_v3_small", "encoder"],
)
def test_known_networks_come_back(build: Any, shape: Any, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, *shape)
    path = exported(model, x, tmp_path / "net.onnx", opset)
    found, runtime = load_model(str(path)), OnnxRuntime(path, threads=1)
    for batch in (x, torch.randn(5, *shape)):
        theirs = runtime(batch)
        assert (found(batch) - theirs).abs().max() < 1e-4 * theirs.abs().max()
    stored = sum(p.numel() for p in found.parameters())
    assert stored <= sum(p.numel() for p in model.parameters()) * 1.01


class Classifier(nn.Module):
    """Two convolutions, a residual sum, and two linear layers over sizes read from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.fc, self.head = nn.Linear(12 * 16, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = nn.functional.max_pool2d((x + self.norm(self.conv(x))).relu(), 2)
        return self.head(self.fc(x.reshape(x.shape[0], -1)).relu())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ours."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    save_onnx(export_onnx(Classifier().eval(), torch.randn(2, 1, 8, 8)), path)
    return path


IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_weights_keep_their_names(source: Path) -> None:
    found = load_model(str(source))
    names = {name for name, p in found.named_parameters() if p.dim() > 1}
    assert names == {f"{layer}.weight" for layer in ("stem", "conv", "fc", "head")}
    assert isinstance(found.get_submodule("norm"), nn.BatchNorm2d)


@pytest.mark.parametrize(
    "step",
    [StaticInt8(examples=8), DynamicInt8(), PruneChannels(sparsity=0.5)],
    ids=lambda s: s.key(),
)
def test_steps_work_on_it(step: Step, source: Path) -> None:
    original = load_model(str(source))
    task = Task("images", IMAGES[:2], calibration=[IMAGES], validation=[IMAGES], labelled=False)
    context = Context(task, original, torch.device("cpu"))
    found, _ = apply_step(step, copy.deepcopy(original), context)
    program = export_onnx(found, task.example)
    assert check_parity(found, program, [IMAGES]).passed
    held = sum(len(t.raw_data) for t in program.graph.initializer)
    assert held < 0.75 * sum(p.nbytes for p in original.parameters())


class Upsampling(nn.Module):
    """ReLU6 and its bound as a summand, a border of ones, and an image made twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(nn.functional.pad(x, (1, 1, 1, 1), value=1.0))) + 6.0
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.last(torch.clamp(x, 0.5, 7.0))


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model


def shifted_windows() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2

    sizes = {"patch_size": [2, 2], "embed_dim": 16, "depths": [2], "num_heads": [2]}
    return SwinTransformer(**sizes, window_size=[3, 3], num_classes=5, block=SwinTransformerBlockV2)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "older"])
@pytest.mark.parametrize("build", [vision_transformer, shifted_windows])
def test_sizes_that_follow_from_the_batch_are_exported_again(
    build: Any, ours: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x, path = build().eval(), torch.randn(2, 3, 32, 32), tmp_path / "net.onnx"
    if ours:
        save_onnx(export_onnx(model, x), path)
    else:
        exported(model, x, path)
    found, more = load_model(str(path)), torch.randn(5, 3, 32, 32)
    assert torch.allclose(found(more), model(more), rtol=1e-3, atol=1e-4)
    program = export_onnx(found, x)
    assert program.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert check_parity(found, program, [x, more]).passed


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "older"])
@pytest.mark.parametrize("step", [StaticInt8(examples=8), None], ids=["int8", "as it is"])
@pytest.mark.parametrize(
    "build", [Upsampling, lambda: torchvision("mobilenet_v2")], ids=["upsampling", "mobilenet_v2"]
)
def test_bounds_borders_and_scales_are_exported_again(
    build: Any, step: Step | None, ours: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 3, 32, 32)
    path = tmp_path / "net.onnx"
    if ours:
        save_onnx(export_onnx(model, x), path)
    else:
        exported(model, x, path)
    found = load_model(str(path))
    assert torch.allclose(found(x), model(x), rtol=1e-3, atol=1e-3)
    task = Task("images", x, calibration=[x], validation=[x], labelled=False)
    if step is not None:
        found, _ = apply_step(step, found, Context(task, model, torch.device("cpu")))
    assert check_parity(found, export_onnx(found, x), [x]).passed


def test_an_archive_is_as_good_as_the_file(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "model.rfy")
    first, second = load_model(str(source)), load_model(str(tmp_path / "model.rfy"))
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_packing_needs_no_pytorch(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from rarefy.cli import main\n"
        "try:\n main(sys.argv[1:])\n"
        "except SystemExit as stop:\n assert not stop.code\n"
        "assert 'onnx' in sys.modules and 'torch' not in sys.modules"
    )
    out = tmp_path / "m.rfy"
    subprocess.run([sys.executable, "-c", code, "pack", str(source), "--out", str(out)], check=True)
    assert load_onnx(out).SerializeToString(deterministic=True) == source.read_bytes()


def graph(nodes: list[Any], held: dict[str, np.ndarray], kind: int = 1, opset: int = 20) -> Any:
    """A model of nodes that turn ``x`` (batch, 4) into ``y``."""
    ends = [helper.make_tensor_value_info(n, kind, ["batch", None]) for n in ("x", "y")]
    ends[0].type.tensor_type.shape.dim[1].dim_value = 4
    inits = [numpy_helper.from_array(value, name) for name, value in held.items()]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], inits)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def test_weights_in_another_file_are_read(tmp_path: Path) -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    x = torch.randn(3, 4)
    assert torch.allclose(load_model(str(tmp_path / "m.onnx"))(x), x @ torch.from_numpy(W))
    (tmp_path / "w.bin").unlink()
    with pytest.raises(FileError, match="m.onnx' is no readable ONNX file"):
        load_model(str(tmp_path / "m.onnx"))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": W.astype(np.float16)},
        TensorProto.FLOAT16,
    )
    onnx.save(model, tmp_path / "m.onnx")
    found, x = load_model(str(tmp_path / "m.onnx")), torch.randn(3, 4)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert torch.allclose(found(x), OnnxRuntime(tmp_path / "m.onnx")(x).float(), atol=0.02)


def test_one_weight_for_two_layers_and_sizes_from_the_input(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
        helper.make_node("Concat", ["b1", "four"], ["wanted"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("MatMul", ["p", "w"], ["q"]),
        helper.make_node("Reshape", ["q", "wanted"], ["y"]),
    ]
    held = {
        "w": np.eye(4, dtype=np.float32) * 2,
        "zero": np.int64(0) * np.ones((), np.int64),
        "axis": np.array([0]),
        "four": np.array([2, 2]),
    }
    model = graph(nodes, held)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    found = load_model(str(tmp_path / "m.onnx"))
    for batch in (1, 3):
        x = torch.randn(batch, 4)
        assert torch.allclose(found(x), (4 * x).view(batch, 2, 2))
    program = export_onnx(found, torch.randn(2, 4))
    assert program.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_product_without_a_weight_keeps_its_bias(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "x"], ["p"]),  # of two computed matrices
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("MatMul", ["m", "n"], ["r"]),  # of two stored ones
        helper.make_node("Add", ["b", "r"], ["s"]),
        helper.make_node("Mul", ["q", "s"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    held = {n: rng.normal(size=(4, 4)).astype(np.float32) for n in "mn"}
    held["b"] = rng.normal(size=4).astype(np.float32)
    onnx.save(graph(nodes, held), tmp_path / "m.onnx")
    x = torch.randn(2, 4)
    found = load_model(str(tmp_path / "m.onnx"))(x)
    m, n, b = (torch.from_numpy(held[name]) for name in "mnb")
    assert torch.allclose(found, (x.T @ x + b) * (m @ n + b), atol=1e-5)


def test_infinity_in_a_mask_is_no_damage(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Less", ["x", "zero"], ["hidden"]),
        helper.make_node("Where", ["hidden", "infinity", "x"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "w"], ["y"]),
    ]
    held = {
        "zero": np.zeros((), np.float32),
        "infinity": np.full(1, -np.inf, np.float32),
        "w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32),
    }
    onnx.save(graph(nodes, held), tmp_path / "m.onnx")
    network, x = load_model(str(tmp_path / "m.onnx")), torch.rand(6, 4) - 0.2
    task = Task("rows", x[:2], calibration=[x], validation=[x], labelled=False)
    context = Context(task, network, torch.device("cpu"))
    found, _ = apply_step(DynamicInt8(), copy.deepcopy(network), context)
    assert torch.allclose(found(x), network(x), atol=0.05)


def test_what_can_not_be_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    cases = {
        r"uses the operator Hardmax \(1 times, first in node 'odd'\)": helper.make_node(
            "Hardmax", ["x"], ["y"], name="odd"
        ),
        "uses the operator com.example::Magic, which is not of the ONNX standard": helper.make_node(
            "Magic", ["x"], ["y"], domain="com.example"
        ),
    }
    for sentence, node in cases.items():
        onnx.save(graph([node], {}), path)
        with pytest.raises(ModelError, match=sentence):
            load_model(str(path))
    of_constants = [
        helper.make_node("Hardmax", ["k"], ["h"], name="odd"),
        helper.make_node("Add", ["x", "h"], ["y"]),
    ]
    onnx.save(graph(of_constants, {"k": np.ones((2, 4), np.float32)}), path)
    with pytest.raises(ModelError, match=r"uses the operator Hardmax \(1 times"):
        load_model(str(path))
    largest = helper.make_node("ScatterND", ["x", "at", "new"], ["y"], reduction="max")
    held = {"at": np.zeros((1, 2), np.int64), "new": np.ones(1, np.float32)}
    onnx.save(graph([largest], held), path)
    with pytest.raises(ModelError, match=r"uses the operator ScatterND \(1 times"):
        load_model(str(path))
    codes = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    onnx.save(graph([codes], {"s": np.ones((), np.float32), "z": np.zeros((), np.uint8)}), path)
    with pytest.raises(ModelError, match="is quantised already .* give the float file"):
        load_model(str(path))
    onnx.save(graph([helper.make_node("Relu", ["x"], ["y"])], {}), path)
    with pytest.raises(ModelError, match="the network takes the inputs x"):
        load_model(str(path))(torch.ones(1, 4), torch.ones(1, 4))
