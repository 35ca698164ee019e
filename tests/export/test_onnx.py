# SPDX-License-Identifier: Apache-2.0
"""The exported file: standard, small, named like the network, int8 where the network is."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn

from rarefy.errors import FileError, ModelError
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.activations import quantize_sites, quantizers_of
from rarefy.forms.codebook import Codebook
from rarefy.forms.grid import Grid
from rarefy.forms.operators import fake_quantize
from rarefy.forms.shadow import dress, dressed

from .conftest import on_grid

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def held(proto: ModelProto) -> dict[str, TensorProto]:
    """Initialisers by name."""
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def test_a_float_network_is_exported_as_it_is(
    small: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    small.train()
    proto = export_onnx(small, X[:1])
    assert capfd.readouterr() == ("", "")
    assert small.training
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 20)]
    for name, value in small.named_parameters():
        stored = torch.from_numpy(numpy_helper.to_array(held(proto)[name]).copy())
        assert torch.equal(stored, value.detach())
    ends = (proto.graph.input[0], proto.graph.output[0])
    assert [value.name for value in ends] == ["x", "output"]
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in ends] == ["batch"] * 2
    assert not proto.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    weights = sum(4 * p.numel() for p in small.parameters())
    assert weights <= proto.ByteSize() <= weights + 1500
    with torch.no_grad():
        assert torch.allclose(OnnxRuntime(proto)(X), small.eval()(X), atol=1e-5)


def test_a_quantised_network_runs_in_integers_and_gives_the_same_bytes_twice(
    quantised: nn.Module,
) -> None:
    proto = export_onnx(quantised, X[:1])
    onnx.checker.check_model(proto, full_check=True)
    weights = held(proto)
    for name in ("conv1.weight", "conv2.weight", "fc.weight"):
        assert weights[name].data_type == TensorProto.INT8
        (reader,) = [n for n in proto.graph.node if name in n.input]
        codes = name
        if name == "conv1.weight":  # of an image, see rarefy.export.image_channels
            assert reader.op_type == "Pad"
            codes = reader.output[0]
            (reader,) = [n for n in proto.graph.node if codes in n.input]
        assert reader.op_type == "DequantizeLinear"
        assert list(reader.input) == [codes, f"{name}.scale", f"{name}.zero_point"]
        assert {a.name: a.i for a in reader.attribute} == {"axis": 0}
    assert weights["conv1.bias"].data_type == TensorProto.FLOAT
    runtime = OnnxRuntime(proto)
    counts = runtime.node_counts()
    assert counts["QLinearConv"] == 2
    assert counts["QGemm"] == 1
    assert not {"Conv", "Gemm", "MatMul", "FusedConv"} & counts.keys()
    assert runtime.precision == "int8"
    quantisers = quantizers_of(quantised)
    assert quantisers is not None
    step = quantisers.quantizers[-1].scale
    with torch.no_grad():
        steps = (runtime(X) - quantised.eval()(X)).abs() / step
    assert float(steps.max()) <= 2.01
    assert len(list(dressed(quantised))) == 3
    again = export_onnx(quantised, X[:3])
    assert again.SerializeToString(deterministic=True) == proto.SerializeToString(
        deterministic=True
    )


GRIDS = [
    (-1, 0, 255, torch.uint8),
    (-1, -7, 7, torch.int8),
    (1, -8, 7, torch.int8),
    (1, 0, 15, torch.uint8),
]


class Rounded(nn.Module):
    """Its input on several grids: the whole type and a part of it, one scale and one for each channel."""

    def __init__(self) -> None:
        super().__init__()
        for i, (axis, _, _, kind) in enumerate(GRIDS):
            scale = torch.tensor(0.05) if axis < 0 else torch.tensor([0.05, 0.2, 0.1])
            zero = torch.tensor(3) if axis < 0 else torch.tensor([0, 3, 5])
            self.register_buffer(f"scale{i}", scale)
            self.register_buffer(f"zero{i}", zero.to(kind))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            fake_quantize(x, getattr(self, f"scale{i}"), getattr(self, f"zero{i}"), axis, low, high)
            for i, (axis, low, high, _) in enumerate(GRIDS)
        )


def test_fake_quantisation_is_exact_on_wide_and_narrow_grids() -> None:
    net, x = Rounded(), torch.linspace(-20, 20, 1203).view(1, 3, 401)
    proto = export_onnx(net, x)
    producers = {node.output[0]: node for node in proto.graph.node}
    answers = OnnxRuntime(proto)(x)
    for i, (expected, (_, low, high, _)) in enumerate(zip(net(x), GRIDS, strict=True)):
        dequantize = producers[f"output_{i}"]
        quantize = producers[dequantize.input[0]]
        assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        assert all(name in held(proto) for name in dequantize.input[1:])
        clamped = quantize.input[0] in producers
        assert clamped == ((low, high) not in ((-128, 127), (0, 255)))
        assert torch.allclose(answers[i], expected, atol=1e-5)


def test_a_quantised_linear_layer_on_sequences_multiplies_in_integers() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    torch.manual_seed(0)
    net, x = Head(), torch.randn(2, 5, 8)
    on_grid(net.fc, bits=7)
    quantize_sites(net, {"input#0": (-3.0, 3.0)}, lambda _: Grid(8, signed=False, symmetric=False))
    proto = export_onnx(net, x)
    stored = held(proto)["fc.weight"]
    assert stored.data_type == TensorProto.INT8
    assert list(stored.dims) == [8, 6]
    assert "Transpose" not in {node.op_type for node in proto.graph.node}
    runtime = OnnxRuntime(proto)
    assert runtime.node_counts().get("MatMulIntegerToFloat") == 1
    with torch.no_grad():
        assert torch.allclose(runtime(x), net(x), atol=1e-4)


def test_tied_and_shared_weights_are_stored_once() -> None:
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    tokens = torch.randint(50, (2, 7))
    proto = export_onnx(Tied(), tokens)
    assert [list(t.dims) for t in proto.graph.initializer] == [[50, 16]]


def test_a_codebook_becomes_a_weight_of_few_values() -> None:
    net = nn.Sequential(nn.Linear(6, 4))
    dress(net[0], "weight", Codebook(torch.arange(24).view(4, 6) % 3, 3))
    proto = export_onnx(net, torch.randn(1, 6))
    stored = numpy_helper.to_array(held(proto)["0.weight"])
    assert stored.shape == (4, 6)
    assert len(set(stored.flatten().tolist())) == 3


def test_half_precision_stays_half(small: nn.Module) -> None:
    proto = export_onnx(small.half(), X[:2].half())
    kinds = {tensor.data_type for tensor in proto.graph.initializer if "weight" in tensor.name}
    assert kinds == {TensorProto.FLOAT16}
    answer = OnnxRuntime(proto)(X.half())
    assert answer.dtype == torch.float16
    with torch.no_grad():
        assert torch.allclose(answer.float(), small.float().eval()(X), atol=1e-2)


class TwoEnds(nn.Module):
    """Two inputs by name, two outputs."""

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return image * mask, image.sum(1)


def test_inputs_may_be_named_and_several() -> None:
    example = {"image": torch.randn(2, 4), "mask": torch.ones(2, 4)}
    proto = export_onnx(TwoEnds(), example)
    assert [v.name for v in proto.graph.input] == ["image", "mask"]
    assert [v.name for v in proto.graph.output] == ["output_0", "output_1"]
    product, total = OnnxRuntime(proto)(**example)
    assert torch.equal(product, example["image"])
    assert torch.allclose(total, example["image"].sum(1))
    renamed = export_onnx(TwoEnds(), tuple(example.values()), inputs=["a", "b"])
    assert [v.name for v in renamed.graph.input] == ["a", "b"]
    for names in (["a"], ["a", "a"]):
        with pytest.raises(ModelError, match="takes 2 inputs, but was given the names a"):
            export_onnx(TwoEnds(), example, inputs=names)


def test_a_network_for_one_batch_size_keeps_it() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 3, -1).mean(2) * torch.ones(2, 1)

    proto = export_onnx(Stubborn(), torch.randn(2, 3, 4))
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


class Branching(nn.Module):
    """Looks at a value before it decides."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x


class Eigen(nn.Module):
    """Uses an operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


def test_a_network_that_cannot_be_traced_names_its_line() -> None:
    with pytest.raises(ModelError, match=r"test_onnx.py:\d+ `if x.sum\(\) > 0:`.*torch.where"):
        export_onnx(Branching(), torch.randn(2, 4))


def test_an_operator_without_translation_is_named() -> None:
    with pytest.raises(ModelError, match=r"'aten\.linalg_eig'"):
        export_onnx(Eigen(), torch.randn(2, 4, 4))


def test_a_file_is_written_in_one_move(tmp_path: Path) -> None:
    proto = ModelProto(producer_name="a test")
    size = save_onnx(proto, tmp_path / "new" / "model.onnx")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.onnx"]
    assert (tmp_path / "new" / "model.onnx").stat().st_size == size
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="can't be written"):
        save_onnx(proto, tmp_path / "file" / "model.onnx")
