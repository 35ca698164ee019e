# SPDX-License-Identifier: Apache-2.0
"""Operators beyond the standard that ONNX Runtime contributes and that exported files may use."""

from typing import Any

DOMAIN = "com.microsoft"
LSTM = "DynamicQuantizeLSTM"
CONTRIBUTED = {(DOMAIN, LSTM)}


def dynamic_quantize_lstm() -> Any:
    """DynamicQuantizeLSTM as an operator that onnxscript can call; three results.

    ONNX Runtime's list of contributed operators says what its inputs mean.
    """
    from onnx.defs import OpSchema
    from onnxscript import values

    floats, codes, whole = ["tensor(float)"], ["tensor(int8)"], ["tensor(int32)"]
    kinds = {
        "X": "T", "W": "T2", "R": "T2", "B": "T", "sequence_lens": "T1", "initial_h": "T",
        "initial_c": "T", "P": "T", "W_scale": "T", "W_zero_point": "T2", "R_scale": "T",
        "R_zero_point": "T2",
    }  # fmt: skip
    optional = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        LSTM,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(n, t, param_option=optional) for n, t in kinds.items()],
        outputs=[OpSchema.FormalParameter(name, "T") for name in ("Y", "Y_h", "Y_c")],
        type_constraints=[("T", floats, ""), ("T1", whole, ""), ("T2", codes, "")],
        attributes=[
            OpSchema.Attribute("direction", OpSchema.AttrType.STRING),
            OpSchema.Attribute("hidden_size", OpSchema.AttrType.INT),
        ],
    )
    return values.Op(values.Opset(DOMAIN, 1), LSTM, schema)
