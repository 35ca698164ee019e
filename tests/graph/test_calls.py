# SPDX-License-Identifier: Apache-2.0
"""Every call is seen, under a name that stays."""

import torch
from torch import Tensor, nn

from rarefy.graph.calls import CallWatcher, record_calls


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x


class Net(nn.Module):
    """The same block twice, a functional relu, an operator and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Inner()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.block(self.block(x))) * y
        return self.head(x.mean((2, 3))), x


INPUTS = (torch.randn(2, 2, 4, 4), torch.randn(1))


def test_sites_are_named_by_module_function_and_place() -> None:
    calls = record_calls(Net(), INPUTS)
    assert [c.site for c in calls.calls] == [
        "block.conv:conv2d#0",
        "block:add#0",
        "block.conv:conv2d#1",
        "block:add#1",
        ":relu#0",
        ":mul#0",
        ":mean#0",
        "head:linear#0",
    ]
    again = record_calls(Net(), INPUTS)
    assert [c.site for c in again.calls] == [c.site for c in calls.calls]


def test_tensors_are_followed_from_producer_to_consumer() -> None:
    model = Net()
    calls = record_calls(model, INPUTS)
    by_site = {c.site: c for c in calls.calls}
    consumers, producers = calls.consumers(), calls.producers()
    first, second = by_site["block.conv:conv2d#0"], by_site["block:add#0"]
    assert first.inputs[0] == calls.inputs[0]
    assert [c.site for c in consumers[calls.inputs[0]]] == ["block.conv:conv2d#0", "block:add#0"]
    assert producers[second.inputs[0]] is first
    assert [producers[n].site for n in calls.outputs] == ["head:linear#0", ":mul#0"]
    assert sorted(c.site for c in consumers[calls.outputs[1]]) == [":mean#0"]
    assert set(calls.parameters.values()) == {
        "block.conv.weight", "block.conv.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert calls.parameters[first.inputs[1]] == "block.conv.weight"
    assert first.shapes == ((2, 2, 4, 4),)
    assert by_site[":mean#0"].arguments == (None, (2, 3))


def test_recording_changes_nothing() -> None:
    model = Net().train()
    expected = model(*INPUTS)[0]
    record_calls(model, INPUTS)
    assert model.training
    assert torch.equal(model(*INPUTS)[0], expected)
    assert not model._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_hooks_are_gone_after_a_failure() -> None:
    model = nn.Linear(2, 2)
    watcher = CallWatcher(model)
    try:
        with watcher.watching():
            model(torch.zeros(1, 3))
    except RuntimeError:
        pass
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert model(torch.zeros(1, 2)).shape == (1, 2)


def test_unused_parameters_have_no_number() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    calls = record_calls(Spare(), torch.zeros(1, 2))
    assert set(calls.parameters.values()) == {"used.weight", "used.bias"}
