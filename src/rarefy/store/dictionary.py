# SPDX-License-Identifier: Apache-2.0
"""Strings that headers, notes and graphs are likely to hold, for the deflate of format version 1.

A decoder needs these very bytes, so nothing here may change within a format version. The most
likely strings stand last, where references to them are shortest.
"""

import struct

from rarefy.store.fields import varint

_OPERATORS = (
    "Sqrt",
    "Tanh",
    "Slice",
    "Unsqueeze",
    "Squeeze",
    "Split",
    "Resize",
    "Erf",
    "Where",
    "Expand",
    "Shape",
    "Cast",
    "ConstantOfShape",
    "ConvTranspose",
    "HardSwish",
    "HardSigmoid",
    "LeakyRelu",
    "Sigmoid",
    "Gelu",
    "Pow",
    "Sub",
    "Div",
    "Mul",
    "MatMul",
    "Pad",
    "GlobalAveragePool",
    "Clip",
    "Identity",
    "Add",
    "Relu",
)

_NOTES = (
    '"environment":{"python":"","torch":"","numpy":"","onnxruntime":"","platform":"","threads":2}',
    '"hash":"","hashes":{"sha256":"","model":"","weights":""},"parity":{"max_abs":0.0,"samples":',
    '{"rarefy":"0.1.0","model":"zoo:lenet5","task":"mnist","seed":0,"recipe":"steps:\\n',
    '","stages":[{"name":"baseline","metric":{"name":"accuracy","value":0.99',
    '},"parameters":431080,"nonzero":431080,"macs":2293000,"bytes":{"safetensors":1724',
    ',"onnx":172,"rfy":44},"latency_ms":{"runtime":"onnxruntime","batch":1,"threads":2,"median":0.',
    ',"iqr":[0.0,0.0]},"seconds":0.0},{"name":"',
)

_NAMES = (
    "layer1.0.conv1.weight layer1.0.bn1.running_mean layer1.0.bn1.running_var layer2.0.downsample.0"
    ".weight layer3.0.conv2.weight features.0.weight blocks.0.attn.qkv.weight blocks.0.mlp.fc1.bias"
    " classifier.weight classifier.bias head.weight num_batches_tracked conv1.weight conv1.bias "
    "conv2.weight conv2.bias fc1.weight fc1.bias fc2.weight fc2.bias _quantized _scale _zero_point "
)

_Value = int | float | str | tuple[int, ...]

_NODES: tuple[tuple[str, tuple[tuple[str, _Value], ...]], ...] = (
    ("LayerNormalization", (("stash_type", 1), ("epsilon", 1e-5), ("axis", -1))),
    ("Softmax", (("axis", -1),)),
    ("Gather", (("axis", 0),)),
    ("ReduceMean", (("noop_with_empty_axes", 0), ("keepdims", 1))),
    ("Concat", (("axis", 1),)),
    ("Transpose", (("perm", (0, 2, 1, 3)),)),
    ("Transpose", (("perm", (0, 2, 1)),)),
    ("BatchNormalization", (("training_mode", 0), ("momentum", 0.9), ("epsilon", 1e-5))),
    (
        "AveragePool",
        (
            ("dilations", (1, 1)),
            ("ceil_mode", 0),
            ("count_include_pad", 1),
            ("pads", (0, 0, 0, 0)),
            ("auto_pad", "NOTSET"),
            ("strides", (2, 2)),
            ("kernel_shape", (2, 2)),
        ),
    ),
    ("QuantizeLinear", (("saturate", 1), ("block_size", 0), ("output_dtype", 0), ("axis", 1))),
    ("DequantizeLinear", (("block_size", 0), ("output_dtype", 0), ("axis", 0))),
    ("Flatten", (("axis", 1),)),
    ("Reshape", (("allowzero", 1),)),
    (
        "MaxPool",
        (
            ("storage_order", 0),
            ("dilations", (1, 1)),
            ("ceil_mode", 0),
            ("pads", (0, 0, 0, 0)),
            ("auto_pad", "NOTSET"),
            ("strides", (2, 2)),
            ("kernel_shape", (2, 2)),
        ),
    ),
    ("Gemm", (("beta", 1.0), ("transB", 1), ("alpha", 1.0), ("transA", 0))),
    (
        "Conv",
        (
            ("group", 1),
            ("pads", (1, 1, 1, 1)),
            ("auto_pad", "NOTSET"),
            ("strides", (1, 1)),
            ("dilations", (1, 1)),
            ("kernel_shape", (3, 3)),
        ),
    ),
    (
        "Conv",
        (
            ("group", 1),
            ("pads", (0, 0, 0, 0)),
            ("auto_pad", "NOTSET"),
            ("strides", (1, 1)),
            ("dilations", (1, 1)),
            ("kernel_shape", (5, 5)),
        ),
    ),
)
"""Operators with their attributes in the order in which PyTorch's exporter writes them."""


def _attribute(name: str, value: _Value) -> bytes:
    """An attribute as it stands inside a serialised ONNX node."""
    if isinstance(value, tuple):
        kind, body = 7, b"".join(bytes([0x40, item]) for item in value)
    elif isinstance(value, int):
        kind, body = 2, b"\x18" + (varint(value) if value >= 0 else b"\xff" * 9 + b"\x01")
    elif isinstance(value, float):
        kind, body = 1, b"\x15" + struct.pack("<f", value)
    else:
        kind, body = 3, bytes([0x22, len(value)]) + value.encode()
    body = bytes([0x0A, len(name)]) + name.encode() + body + bytes([0xA0, 0x01, kind])
    return bytes([0x2A, len(body)]) + body


def _operator(name: str) -> bytes:
    """An operator's name as it stands inside a serialised ONNX node."""
    return bytes([0x22, len(name)]) + name.encode()


DICTIONARY = b"".join(
    [
        "".join(_NOTES).encode(),
        _NAMES.encode(),
        *(_operator(name) for name in _OPERATORS),
        *(_operator(name) + b"".join(_attribute(*a) for a in known) for name, known in _NODES),
        b"\x08\n\x12\x07pytorch\x1a\x0c2.14.1+cu130:\n\x01\n\x01x\n\x0bconv.weight\n\tconv.bias"
        b"\x12\x06conv2d\n\x06linear\x12\x04relu\x12\x06relu_1\n\x08conv2d_1\x12\x08linear_1"
        b"\x12\nmain_graph*\x12\x08\n\x10\x01B\tfc.biasJ\x00*\x16\x08\x08\x10\x01B\nfc.weightJ\x00"
        b"*\r\x08\x02\x10\x07B\x05val_7J\x00Z \n\x05input\x12\x1b\n\x19\x08\x01\x12\x15\n\x07\x12"
        b"\x05batch\n\x02\x08\x03\n\x02\x08 \n\x02\x08 b\x1f\n\x06output\x12\x13\n\x11\x08\x01\x12\r"
        b"\n\x07\x12\x05batch\n\x02\x08\nB\x04\n\x00\x10\x14",
    ]
)
"""About three kilobytes that `text.compress` may refer to."""
