# SPDX-License-Identifier: Apache-2.0
"""Strings that headers, notes and graphs are likely to hold, for the deflate of format version 1.

A decoder needs these very bytes, so nothing here may change within a format version. The most
likely strings stand last, where references to them are shortest.
"""

_OPERATORS = (
    "Sqrt",
    "Tanh",
    "Slice",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "Split",
    "Resize",
    "Erf",
    "LayerNormalization",
    "Softmax",
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
    "ReduceMean",
    "Pow",
    "Sub",
    "Div",
    "Mul",
    "MatMul",
    "Transpose",
    "Concat",
    "Pad",
    "AveragePool",
    "GlobalAveragePool",
    "Clip",
    "BatchNormalization",
    "QuantizeLinear",
    "DequantizeLinear",
    "Identity",
    "Reshape",
    "Flatten",
    "Add",
    "MaxPool",
    "Gemm",
    "Relu",
    "Conv",
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

_ATTRIBUTES = (
    ("axis", 2, 1),
    ("alpha", 1, b"\0\0\x80?"),
    ("beta", 1, b"\0\0\x80?"),
    ("epsilon", 1, b"\xac\xc5'7"),
    ("momentum", 1, b"fff?"),
    ("perm", 7, (1, 0)),
    ("ceil_mode", 2, 0),
    ("count_include_pad", 2, 1),
    ("auto_pad", 3, b"NOTSET"),
    ("transA", 2, 0),
    ("transB", 2, 1),
    ("allowzero", 2, 0),
    ("storage_order", 2, 0),
    ("group", 2, 1),
    ("strides", 7, (2, 2)),
    ("pads", 7, (0, 0, 0, 0)),
    ("pads", 7, (1, 1, 1, 1)),
    ("kernel_shape", 7, (5, 5)),
    ("kernel_shape", 7, (2, 2)),
    ("kernel_shape", 7, (3, 3)),
    ("strides", 7, (1, 1)),
    ("dilations", 7, (1, 1)),
)
"""Name, ONNX attribute type (1 float, 2 integer, 3 string, 7 integers) and a frequent value."""


def _attribute(name: str, kind: int, value: int | bytes | tuple[int, ...]) -> bytes:
    """An attribute as it stands inside a serialised ONNX node."""
    if isinstance(value, tuple):
        body = b"".join(bytes([0x40, item]) for item in value)
    elif isinstance(value, int):
        body = bytes([0x18, value])
    elif kind == 1:
        body = b"\x15" + value
    else:
        body = bytes([0x22, len(value)]) + value
    body = bytes([0x0A, len(name)]) + name.encode() + body + bytes([0xA0, 0x01, kind])
    return bytes([0x2A, len(body)]) + body


def _operator(name: str) -> bytes:
    """An operator's name as it stands inside a serialised ONNX node."""
    return bytes([0x22, len(name)]) + name.encode()


DICTIONARY = b"".join(
    [
        "".join(_NOTES).encode(),
        _NAMES.encode(),
        b"\x08\x08\x12\x07pytorch\x1a\x062.14.1:\x00B\x04\n\x00\x10\x12B\x0e\n\x07ai.onnx\x10\x15",
        b"input\x12 \n\x1e\x08\x01\x12\x1a\n\x07\x12\x05batch\n\x02\x08\x01\n\x02\x08\x1c\n\x02",
        b"output\x12\x18\n\x16\x08\x01\x12\x12\n\x07\x12\x05batch\n\x02\x08\n",
        *(_operator(name) for name in _OPERATORS),
        *(_attribute(*known) for known in _ATTRIBUTES),
    ]
)
"""About two kilobytes that `text.compress` may refer to."""
