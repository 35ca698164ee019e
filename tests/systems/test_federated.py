# SPDX-License-Identifier: Apache-2.0
"""Row federated: error feedback loses nothing, identity is plain averaging, real bytes, five clients."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.compress import apply_step
from rarefy.errors import FileError
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.store.updates import Sender, UpdateCodec, average, decode_update, dirichlet_parts
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet

CODECS = [UpdateCodec(), UpdateCodec(0.1), UpdateCodec(1.0, 4), UpdateCodec(0.05, 5)]


@pytest.mark.parametrize("codec", CODECS)
def test_all_that_was_sent_is_all_updates_minus_the_rest(codec: UpdateCodec) -> None:
    rng, sender = np.random.default_rng(0), Sender(codec)
    true, received = np.zeros((30, 20)), np.zeros((30, 20))
    for _ in range(12):
        update = rng.normal(size=(30, 20)).astype(np.float32)
        true += update
        received += decode_update(sender.send({"w": update}), {"w": (30, 20)})["w"]
    assert np.allclose(received + sender.rest["w"], true, atol=1e-4)
    assert np.abs(sender.rest["w"]).max() < 40


@given(
    size=st.integers(1, 300),
    share=st.floats(0.01, 1),
    bits=st.sampled_from([0, 2, 8]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40)
def test_an_update_arrives_as_it_was_reduced(size: int, share: float, bits: int, seed: int) -> None:
    codec, update = UpdateCodec(share, bits), np.random.default_rng(seed).normal(size=(size,))
    back = decode_update(codec.encode({"w": update}), {"w": (size,)})["w"]
    assert np.array_equal(back, codec.reduced(update))
    assert np.count_nonzero(back) <= max(1, round(share * size))


def test_damaged_updates_are_refused() -> None:
    data = UpdateCodec().encode({"w": np.arange(6.0)})
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(FileError, match="damaged"):
            decode_update(bytes(damaged), {"w": (6,)})
    for wrong in (data[:-1], data + b"x", b"", data[:3]):
        with pytest.raises(FileError, match="damaged"):
            decode_update(wrong, {"w": (6,)})
    with pytest.raises(ValueError, match="share=0"):
        UpdateCodec(0.0)


@pytest.mark.parametrize(
    "shapes", [{"w": (3, 3)}, {"w": (6,)}, {"v": (2, 3)}, {}, {"w": (2, 3), "v": (1,)}]
)
def test_other_tensors_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    data = UpdateCodec().encode({"w": np.ones((2, 3))})  # a constant, whose coding fits every shape
    with pytest.raises(FileError, match="other names or shapes"):
        decode_update(data, shapes)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_client_that_diverged_is_told(codec: UpdateCodec, wrong: float) -> None:
    sender = Sender(codec, rest={"w": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="'w' holds NaN or infinity"):
        sender.send({"w": np.array([1, wrong, 2], np.float32)})
    assert sender.rest["w"].tolist() == [1, 1, 1]


def test_equal_entries_are_not_all_sent() -> None:
    assert np.count_nonzero(UpdateCodec(0.5).reduced(np.ones((4, 5)))) == 10


def test_parts_are_a_partition_and_small_concentrations_are_uneven() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    spreads = []
    for concentration in (0.1, 100.0):
        parts = dirichlet_parts(labels, 10, concentration, 0)
        assert sorted(np.concatenate(parts).tolist()) == list(range(2000))
        spreads.append(np.std([part.size for part in parts]))
    assert spreads[0] > 3 * spreads[1]


def trained(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """The update of one client after an epoch."""
    own = copy.deepcopy(model)
    optimiser = torch.optim.SGD(own.parameters(), 0.05, momentum=0.9)
    for part in torch.arange(len(x)).split(16):
        optimiser.zero_grad()
        F.cross_entropy(own(x[part]), y[part]).backward()
        optimiser.step()
    before = dict(model.named_parameters())
    return {n: (p - before[n]).detach().numpy() for n, p in own.named_parameters()}


def federated(
    start: nn.Module, data: tuple[Tensor, Tensor], codec: UpdateCodec, rounds: int
) -> tuple[nn.Module, int]:
    """The network after some rounds with five clients, and the bytes that these sent."""
    model, (x, y) = copy.deepcopy(start), data
    parts = [p for p in dirichlet_parts(y.numpy(), 5, 1.0, 0) if p.size]
    senders = [Sender(codec) for _ in parts]
    for _ in range(rounds):
        weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
        shapes = {n: w.shape for n, w in weights.items()}
        updates = [
            decode_update(sender.send(trained(model, x[part], y[part])), shapes)
            for sender, part in zip(senders, parts, strict=True)
        ]
        moved = average(weights, updates, [part.size for part in parts])
        model.load_state_dict({n: torch.from_numpy(w) for n, w in moved.items()})
    return model, sum(sender.sent for sender in senders)


def test_five_clients_learn_with_a_tenth_of_the_bytes(digits_task: Task) -> None:
    torch.manual_seed(0)
    batches = list(digits_task.batches("train"))
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    tests = list(digits_task.batches("test"))
    (cut,) = load_recipe("federated").steps
    start, _ = apply_step(
        cut, DigitsNet(), Context(digits_task, DigitsNet(), torch.device("cpu"), 0, {})
    )

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float(torch.cat([model(a).argmax(1) == b for a, b in tests]).float().mean())

    plain, whole = federated(start, (x, y), UpdateCodec(), 10)
    small, few = federated(start, (x, y), UpdateCodec(0.25, 4), 10)
    assert few * 10 < whole
    assert accuracy(plain) > 0.9
    assert accuracy(small) > accuracy(plain) - 0.04
