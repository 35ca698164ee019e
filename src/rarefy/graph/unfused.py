# SPDX-License-Identifier: Apache-2.0
"""Networks without what hides operators: fused kernels, and results kept from an earlier run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Keeps PyTorch from replacing layers of `model` by fused kernels; nothing is differentiated."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn


def forget(model: nn.Module) -> None:
    """Lets a network drop what it computed from its parameters and keeps; its modes stay.

    Attention biases, say, are looked up once and kept until the mode changes.
    """
    for holder in model.modules():
        if type(holder).train is not nn.Module.train:  # nobody else notices a change of mode
            was = [(module, module.training) for module in holder.modules()]
            holder.train()
            holder.eval()
            for module, mode in was:
                module.training = mode
