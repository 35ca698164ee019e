# SPDX-License-Identifier: Apache-2.0
"""Rounding to a trellis: the best of all ways, less error for the same bits, errors made up for."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from rarefy.quantize.priced_rounding import LARGEST, prepare, priced_codes, prices_of, step_for
from rarefy.quantize.rate_distortion import RateDistortion, coded_along
from rarefy.quantize.trellis_rounding import FINER, trellis_codes
from rarefy.step import Context
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import coding_name
from rarefy.store.trellis import indices_of, integers_along
from rarefy.task import Task

FREE = torch.zeros(2 * LARGEST + 1)


def test_the_best_of_all_ways_is_found() -> None:
    W = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0))
    sweep = prepare(torch.eye(5).double().unsqueeze(0), torch.ones(1, 12), 1e-9, stored=True)
    codes, _ = trellis_codes(W, sweep, 0.4, 0.0, FREE)
    every = integers_along(np.array(list(product(range(-5, 6), repeat=5)), dtype=np.int32))
    reachable = torch.from_numpy(every).float() * 0.4
    best = torch.cdist(W[0], reachable).amin(1) ** 2
    found = ((W - 0.4 * codes)[0] ** 2).sum(1)
    assert torch.allclose(found, best, rtol=1e-3, atol=1e-5)


def test_codes_lie_along_the_trellis_across_blocks() -> None:
    W = torch.randn(3, 7, 75, generator=torch.Generator().manual_seed(1))
    sweep = prepare(torch.eye(75).double().expand(3, 75, 75), torch.ones(3, 7), stored=True)
    bits = prices_of((W / 0.6).round().int())
    codes, indices = trellis_codes(W, sweep, 0.3, 0.01, bits)
    assert np.array_equal(
        indices_of(codes.reshape(21, 75).numpy()), indices.reshape(21, 75).numpy()
    )


def test_half_a_decibel_better_than_a_grid_of_the_same_bytes() -> None:
    W = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(2))
    H, ones = torch.eye(64).double().unsqueeze(0), torch.ones(1, 200)
    slope, found = 0.004, []
    step = step_for(prepare(H, ones, 1e-9), slope)
    for finer in (1.0, FINER):
        sweep, size = prepare(H, ones, 1e-9, stored=True), finer * step
        if finer == 1:
            codes = priced_codes(W, sweep, size, slope, prices_of((W / size).round().int()))
        else:
            codes = coded_along(W, sweep, size, slope)
        values = (codes[0] * np.float32(size)).numpy() + np.float32(0)
        bits = 8 * len(encode_tensor(values)) / W.numel()
        found.append(
            10 * np.log10(float(((W[0] - torch.from_numpy(values)) ** 2).mean())) + 6.02 * bits
        )
    assert found[1] < found[0] - 0.5


def test_errors_are_made_up_for() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    W, H = torch.randn(1, 16, 40, generator=generator), (x.T @ x / 500).double().unsqueeze(0)

    def harm(codes: torch.Tensor) -> float:
        e = (W - 0.5 * codes).double()
        return float(((e @ H) * e).sum())

    alone = prepare(torch.eye(40).double().unsqueeze(0), torch.ones(1, 16), stored=True)
    sweep = prepare(H, torch.ones(1, 16), stored=True)
    blind, _ = trellis_codes(W, alone, 0.5, 0.0, FREE)
    codes, _ = trellis_codes(W, sweep, 0.5, 0.0, FREE)
    assert harm(codes) < 0.6 * harm(blind)


def test_the_step_writes_trellises_that_the_coder_sees(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    found = RateDistortion(bits=3, trellis=True).apply(model, context)
    layers = [m for m in found.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    weights = [m.weight.detach().numpy() for m in layers]
    names = [coding_name(encode_tensor(w), w.dtype, w.shape) for w in weights]
    along = sum(w.size for w, name in zip(weights, names, strict=True) if "trellis" in name)
    assert along > 0.8 * sum(w.size for w in weights)  # small ones may take many bits
    assert context.record["bits"] == pytest.approx(3 * sum(w.size for w in weights), rel=0.08)
