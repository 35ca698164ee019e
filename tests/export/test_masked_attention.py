# SPDX-License-Identifier: Apache-2.0
"""Masked attention is exported without a search for NaN and computes what PyTorch computes."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.runner import Runner


class Attention(nn.Module):
    """Two heads over four channels; a mask of tokens, or of pairs of tokens."""

    def __init__(self, pairs: bool, ends: bool) -> None:
        super().__init__()
        self.inner, self.pairs, self.ends = nn.Linear(8, 24), pairs, ends

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = mask.bool()[:, None] if self.pairs else mask.bool()[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, seen)
        return y if self.ends else y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_no_probability_is_searched_and_tokens_that_see_none_give_zeros(
    pairs: bool, ends: bool, runtime: str
) -> None:
    torch.manual_seed(0)
    model = Attention(pairs, ends).eval()
    x = torch.randn(3, 5, 8)
    mask = (torch.rand(3, 5, 5) < 0.5 if pairs else torch.rand(3, 5) < 0.5).long()
    mask[0] = 0
    program = export_onnx(model, {"x": x, "mask": mask})
    operators = operators_of(program)
    assert "IsNaN" not in operators
    assert operators["Softmax"] == 1
    with torch.no_grad():
        exact = model(x, mask)
    assert not exact[0].any()
    found = opened(runtime, program)({"x": x, "mask": mask})
    assert torch.allclose(found, exact, atol=1e-6)
    assert not found[0].any()


def operators_of(program: Any) -> Counter[str]:
    return Counter(node.op_type for node in program.graph.node)


def opened(runtime: str, program: Any) -> Runner:
    from rarefy.export.openvino import OpenVino

    return (OnnxRuntime if runtime == "onnxruntime" else OpenVino)(program)


def test_a_mask_of_numbers_stays_as_it_is() -> None:
    class Weighted(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, mask)

    x, mask = torch.randn(2, 2, 5, 4), torch.randn(2, 1, 5, 5)
    program = export_onnx(Weighted().eval(), {"x": x, "mask": mask})
    assert "ReduceMax" not in operators_of(program)
    found = OnnxRuntime(program)({"x": x, "mask": mask})
    assert torch.allclose(found, Weighted()(x, mask), atol=1e-6)
