# SPDX-License-Identifier: Apache-2.0
"""What units are seen to do: against full batches, closed forms, and the loss with units taken away."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.graph.coupling import couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import cut
from rarefy.prune import channel_activity as activity
from rarefy.prune.channel_sites import path_of, visible_sites
from rarefy.task import Task


class Branches(nn.Module):
    """One stem that two convolutions read, one of them behind pooling; a residual sum of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.left(F.max_pool2d(x, 2)) + self.right(F.avg_pool2d(x, 2))
        return self.fc(y.relu().flatten(1))


@pytest.fixture
def setting() -> tuple[Branches, list[Tensor], dict[str, Group]]:
    torch.manual_seed(0)
    net, batches = Branches(), [torch.randn(n, 3, 8, 8) for n in (4, 3)]
    net.norm.running_mean.uniform_(-0.3, 0.3)
    net.eval()
    return net, batches, {g.name: g for g in couple(net, batches[0]).groups}


def test_a_unit_is_seen_where_it_is_heard(setting) -> None:  # type: ignore[no-untyped-def]
    net, batches, groups = setting
    sites = visible_sites(net, list(groups.values()), batches[0])
    assert {(s.module, s.side) for s in sites["stem"]} == {("left", "input"), ("right", "input")}
    (last,) = sites["left"]
    assert (last.module, last.length, last.size) == ("fc", 64, 4)  # 16 positions of each channel
    assert path_of("fc.parametrizations.weight.original") == "fc"
    assert path_of("parametrizations.weight.original") == ""
    assert path_of("weight") == ""


def test_streaming_means_equal_those_of_all_data(setting) -> None:  # type: ignore[no-untyped-def]
    net, batches, groups = setting
    sites = visible_sites(net, list(groups.values()), batches[0])
    found = activity.activity(net, sites, batches, activity.mean_size)
    x = torch.cat(batches)
    with torch.no_grad():
        h = net.norm(net.stem(x)).relu()
        heard = [F.max_pool2d(h, 2).mean((0, 2, 3)), F.avg_pool2d(h, 2).mean((0, 2, 3))]
        y = (net.left(F.max_pool2d(h, 2)) + net.right(F.avg_pool2d(h, 2))).relu()
    assert torch.allclose(found["stem"].float(), (heard[0] + heard[1]) / 2, atol=1e-6)
    assert torch.allclose(found["left"].float(), y.mean((0, 2, 3)), atol=1e-6)
    apoz = activity.activity(net, sites, batches, activity.share_heard)
    assert torch.allclose(apoz["left"].float(), (y > 0).float().mean((0, 2, 3)), atol=1e-6)


def test_slopes_by_masks_are_those_of_the_loss(setting) -> None:  # type: ignore[no-untyped-def]
    """One mask for both readers: d/dm of each example's loss with the unit scaled by m, by differences."""
    net, batches, groups = setting
    net, x = net.double(), batches[0].double()
    labels = torch.tensor([0, 1, 2, 3])
    sites = visible_sites(net, list(groups.values()), x)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    (found,) = activity.mask_slopes(net, sites, [(x, labels)], loss)
    assert found["stem"].shape == (4, 6)

    def scaled(unit: int, factor: float) -> Tensor:
        changed = copy.deepcopy(net)
        with torch.no_grad():  # the reader's columns stand for the mask on what it reads
            changed.left.weight[:, unit] *= factor
            changed.right.weight[:, unit] *= factor
            return F.cross_entropy(changed(x), labels, reduction="none") / 4

    for unit in range(6):
        slope = (scaled(unit, 1 + 1e-5) - scaled(unit, 1 - 1e-5)) / 2e-5
        assert torch.allclose(found["stem"][:, unit], slope, atol=1e-7)


def test_slopes_leave_no_trace(setting) -> None:  # type: ignore[no-untyped-def]
    net, batches, groups = setting
    before = copy.deepcopy(net.state_dict())
    sites = visible_sites(net, list(groups.values()), batches[0])
    list(activity.mask_slopes(net, sites, [(batches[0], torch.zeros(4).long())], F.cross_entropy))
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_a_dead_channel_scores_zero_and_goes_without_a_trace(setting) -> None:  # type: ignore[no-untyped-def]
    net, batches, groups = setting
    with torch.no_grad():
        net.norm.weight[2], net.norm.bias[2] = 0.5, -50.0
    sites = visible_sites(net, [groups["stem"]], batches[0])
    for measure in (activity.mean_size, activity.share_heard, activity.rank_of_maps):
        score = activity.activity(net, sites, batches, measure)["stem"]
        assert float(score[2]) == 0
        assert float(score.sum()) > 0
    before = net(batches[0])
    coupling = couple(net, batches[0])
    cut(net, coupling, [(coupling.group("stem"), torch.tensor([2]))], batches[0])
    assert net.stem.weight.shape[0] == 5
    assert torch.allclose(net(batches[0]), before, atol=1e-6)


def test_windows_of_an_example_belong_to_it() -> None:
    """A module that sees every example in two parts, as window attention does, gives one slope each."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:  # (B, 4, 3)
            parts = x.reshape(-1, 2, 3)
            return self.b(self.a(parts).relu()).reshape(len(x), 4, 2).mean(1)

    torch.manual_seed(0)
    net, x = Windows().double(), torch.randn(3, 4, 3, dtype=torch.float64)
    sites = visible_sites(net, couple(net, x).groups, x)

    def loss(outputs: Tensor, _: None) -> Tensor:
        return outputs.square().mean()

    (together,) = activity.mask_slopes(net, sites, [(x, None)], loss)
    for i in range(3):
        (alone,) = activity.mask_slopes(net, sites, [(x[i : i + 1], None)], loss)
        assert torch.allclose(together["a"][i], alone["a"][0] / 3)


def test_drawn_answers_follow_the_network(digits_task: Task) -> None:
    torch.manual_seed(0)
    sure = torch.full((50, 4), -20.0)
    sure[:, 1] = 20.0
    assert float(activity.own_answers(sure, None)) < 1e-6
    flat = activity.own_answers(torch.zeros(50, 4), None)
    assert float(flat) == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)
    assert activity.own_answers(torch.zeros(2, 4, 3, 3), None).dim() == 0
