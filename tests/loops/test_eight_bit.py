# SPDX-License-Identifier: Apache-2.0
"""Optimisers with 8-bit states: torch's own steps where states stay float, close to them where coded."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rarefy.loops.eight_bit import EightBitAdam, EightBitSGD, state_bytes
from rarefy.loops.optimise import Training, build_optimiser
from rarefy.store.checkpoint import load_state, save_state

KINDS = ("sgd", "adam", "adamw")


def settings(kind: str, bits: int) -> Training:
    return Training(optimiser=kind, rate=0.01, weight_decay=0.01, state_bits=bits)  # type: ignore[arg-type]


def trained(
    model: nn.Module, kind: str, bits: int, steps: int
) -> tuple[nn.Module, object, list[float]]:
    """A few steps towards the answers of a fixed linear map; the losses of all steps."""
    model = copy.deepcopy(model)
    optimiser = build_optimiser(model.parameters(), settings(kind, bits))
    draw, losses = torch.Generator().manual_seed(1), []
    target = torch.randn(model[0].in_features, 8, generator=draw) / 10
    for _ in range(steps):
        x = torch.randn(64, model[0].in_features, generator=draw)
        loss = (model(x) - x @ target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return model, optimiser, losses


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_small_tensors_are_stepped_as_torch_does(kind: str) -> None:
    ours, _, _ = trained(network(12), kind, 8, 20)
    theirs, _, _ = trained(network(12), kind, 32, 20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_coded_states_train_as_well_in_a_quarter_of_the_room(kind: str) -> None:
    _, eight, ours = trained(network(96), kind, 8, 60)
    _, full, theirs = trained(network(96), kind, 32, 60)
    assert ours[-1] < 0.5 * ours[0]
    assert ours[-1] <= 1.1 * theirs[-1]
    large = 96 * 96
    number = 1 if kind == "sgd" else 2
    assert state_bytes(full) - state_bytes(eight) >= 0.95 * number * 3 * large  # type: ignore[arg-type]


def test_a_vanished_square_makes_no_leap() -> None:
    p = nn.Parameter(torch.zeros(4096))
    optimiser = EightBitAdam([p], 0.1)
    spiky = torch.full((4096,), 1e-4)
    spiky[0] = 1e4
    for g in (spiky, torch.zeros(4096), torch.zeros(4096)):
        before = p.detach().clone()
        p.grad = g.clone()
        optimiser.step()
        assert float((p.detach() - before).abs().max()) <= 0.1 * 3.17


def test_states_survive_a_checkpoint(tmp_path: Path) -> None:
    def steps(optimiser: torch.optim.Optimizer, p: Tensor, number: int) -> None:
        for k in range(number):
            p.grad = torch.sin(torch.arange(5000.0) * (k + 1))
            optimiser.step()

    for kind in (EightBitSGD, EightBitAdam):
        p = nn.Parameter(torch.zeros(5000))
        optimiser = kind([p], 0.01)
        steps(optimiser, p, 3)
        save_state(tmp_path / "state", {"o": optimiser.state_dict()})
        q = nn.Parameter(p.detach().clone())
        again = kind([q], 0.01)
        again.load_state_dict(load_state(tmp_path / "state")["o"])
        steps(optimiser, p, 2)
        steps(again, q, 2)
        assert torch.equal(p, q)


def test_the_decoupled_decay_is_that_of_adamw() -> None:
    p, q = (nn.Parameter(torch.ones(10)) for _ in range(2))
    ours = EightBitAdam([p], 0.1, weight_decay=0.5, decoupled=True)
    theirs = torch.optim.AdamW([q], 0.1, weight_decay=0.5)
    for _ in range(3):
        p.grad, q.grad = torch.ones(10), torch.ones(10)
        ours.step()
        theirs.step()
    assert torch.allclose(p, q, atol=1e-6)
