# SPDX-License-Identifier: Apache-2.0
"""Kernels lie channels last while a network trains, where the network can run so, and it learns the same."""

import copy

import torch
from torch import Tensor, nn

from rarefy.loops.fit import fit
from rarefy.loops.memory_format import channels_last
from rarefy.loops.optimise import Training
from rarefy.task import Task


class Net(nn.Module):
    """Two convolutions with a norm and dropout; rows are found by a view or a reshape."""

    def __init__(self, by_view: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.drop = nn.Conv2d(6, 4, 3, padding=1), nn.Dropout(0.5)
        self.head, self.by_view = nn.Linear(4 * 36, 5), by_view

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.second(self.norm(self.first(x)).relu()).relu())
        return self.head(h.view(len(x), -1) if self.by_view else h.reshape(len(x), -1))


def layouts(model: nn.Module) -> list[bool]:
    kernels = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    return [k.is_contiguous(memory_format=torch.channels_last) for k in kernels]


def test_kernels_move_where_the_network_runs_so() -> None:
    x = torch.randn(4, 3, 6, 6)
    for by_view in (False, True):
        model = Net(by_view)
        own, values = list(model.parameters()), copy.deepcopy(model.state_dict())
        with channels_last(model) as settle:
            settle(x)
            assert layouts(model) == [not by_view, not by_view]
            assert all(p is q for p, q in zip(own, model.parameters(), strict=True))
        assert all(k.is_contiguous() for k in model.state_dict().values())
        assert all(torch.equal(v, values[name]) for name, v in model.state_dict().items())


def test_looking_draws_no_random_number() -> None:
    model, x = Net(False), torch.randn(4, 3, 6, 6)
    torch.manual_seed(3)
    wanted = torch.rand(5)
    torch.manual_seed(3)
    with channels_last(model) as settle:
        settle(x)
        torch.testing.assert_close(torch.rand(5), wanted, rtol=0, atol=0)


def test_a_network_without_convolutions_is_not_run() -> None:
    calls: list[int] = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda *_: calls.append(1))
    with channels_last(model) as settle:
        settle(torch.randn(1, 3))
    assert not calls


def test_the_same_is_learned_in_either_layout() -> None:
    """A view keeps the usual layout; otherwise the two networks do the same."""
    torch.manual_seed(0)
    x, y = torch.randn(48, 3, 6, 6), torch.randint(0, 5, (48,))
    batches = list(zip(x.split(16), y.split(16), strict=True))
    task = Task("random", x[:2], train=batches, validation=batches)
    moved, kept = Net(False), Net(True)
    kept.load_state_dict(moved.state_dict())
    moved.drop.p = kept.drop.p = 0.0  # its random numbers fall on values in the order of memory
    settings = Training(epochs=3, rate=0.05)
    for model in (moved, kept):
        fit(model, task, settings, seed=0)
    for name, value in moved.state_dict().items():
        torch.testing.assert_close(value, kept.state_dict()[name], rtol=1e-3, atol=1e-5)
