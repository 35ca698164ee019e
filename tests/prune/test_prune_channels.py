# SPDX-License-Identifier: Apache-2.0
"""The step: budgets met, layers chosen, rounds rolled back and resumed, masks kept, errors in a sentence."""

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, RecipeError
from rarefy.forms.mask import mask_of
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_criteria import BY_GRADIENT, BY_WEIGHT, unit_scores
from rarefy.prune.prune_channels import Criterion, PruneChannels
from rarefy.prune.prune_weights import PruneWeights
from rarefy.step import Context
from rarefy.task import Task

CRITERIA = Criterion.__args__  # type: ignore[attr-defined]


class Net(nn.Module):
    """A stem, a residual block with norms, and two linear layers, for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.n1 = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.n2 = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.fc1, self.fc2 = nn.Linear(12 * 16, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n0(self.stem(x)).relu()
        x = (x + self.n2(self.b(self.n1(self.a(x)).relu()))).relu()
        return self.fc2(self.fc1(nn.functional.max_pool2d(x, 2).flatten(1)).relu())


@pytest.fixture(scope="module")
def few(digits_task: Task) -> Task:
    torch.manual_seed(0)
    roles = {
        role: list(itertools.islice(digits_task.batches(role), 3))
        for role in ("train", "validation", "calibration")
    }
    return dataclasses.replace(digits_task, **roles, test=roles["validation"])  # type: ignore[arg-type]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def context(model: nn.Module, task: Task, folder: Path | None = None) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0, {}, folder)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "norm-scale"])
def test_every_criterion_cuts_half(criterion: str, net: nn.Module, few: Task) -> None:
    ctx = context(net, few)
    step = PruneChannels(criterion=criterion, allocation="local", layers=("stem", "a"))  # type: ignore[arg-type]
    found = step.apply(copy.deepcopy(net), ctx)
    assert (found.stem.out_channels, found.b.out_channels, found.a.out_channels) == (6, 6, 8)  # type: ignore[union-attr]
    assert found.fc1.weight.shape == (24, 6 * 16)  # type: ignore[union-attr]
    assert found(few.example).shape == (len(few.example), 10)  # type: ignore[arg-type]
    assert ctx.record["difference"] <= 1e-4
    assert {(g["name"], g["before"], g["after"]) for g in ctx.record["groups"]} == {
        ("stem", 12, 6),
        ("a", 16, 8),
    }
    assert ctx.record["parameters"] == [parameters(net), parameters(found)]
    assert ctx.record["macs"] == [macs(net, few.example), macs(found, few.example)]
    again = step.apply(copy.deepcopy(net), context(net, few))
    pairs = zip(found.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_stays_has_the_highest_scores(net: nn.Module, few: Task) -> None:
    weight = net.a.weight.detach().clone()  # type: ignore[union-attr]
    found = PruneChannels(criterion="l1", layers="a").apply(net, context(net, few))
    best = weight.abs().sum((1, 2, 3)).topk(8).indices.sort().values
    assert torch.equal(found.a.weight, weight[best])  # type: ignore[union-attr]


@pytest.mark.parametrize("allocation", ["global", "local", "lamp"])
@pytest.mark.parametrize("target", ["parameters", "macs"])
def test_budgets_are_met_and_not_overdone(
    target: str, allocation: str, net: nn.Module, few: Task
) -> None:
    count = parameters if target == "parameters" else lambda m: macs(m, few.example)
    step = PruneChannels(sparsity=0.55, target=target, allocation=allocation)  # type: ignore[arg-type]
    found = step.apply(copy.deepcopy(net), context(net, few))
    share = count(found) / count(net)
    assert 0.36 < share <= 0.45  # one channel of the stem is up to 8 % of this small network


def test_a_latency_budget_is_met_by_the_clock_it_is_given(net: nn.Module, few: Task) -> None:
    ctx = context(net, few)
    step = PruneChannels(sparsity=0.4, target="latency", round_to=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rarefy.prune.channel_cut.cost_of", shares_of_work)
        found = step.apply(copy.deepcopy(net), ctx)
    told = ctx.record["rounds"][-1]["latency"]
    assert told == macs(found, few.example) / macs(net, few.example)
    assert 0.45 < told <= 0.6


def test_a_latency_budget_leaves_the_widths_that_the_runtime_likes(
    net: nn.Module, few: Task
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rarefy.prune.channel_cut.cost_of", shares_of_work)
        found = PruneChannels(sparsity=0.4, target="latency").apply(net, context(net, few))
    assert (found.a.out_channels, found.fc1.out_features % 8) == (8, 0)  # type: ignore[union-attr,operator]


def shares_of_work(target: str, model: nn.Module, example: Tensor):  # type: ignore[no-untyped-def]
    """A clock that doesn't jitter."""
    assert target == "latency"
    first = macs(model, example)
    return lambda network: macs(network, example) / first


def test_sparsities_by_pattern(net: nn.Module, few: Task) -> None:
    step = PruneChannels(sparsities={"a": 0.25, "type:Linear": 0.5})
    found = step.apply(net, context(net, few))
    assert (found.stem.out_channels, found.a.out_channels, found.fc1.out_features) == (12, 12, 12)  # type: ignore[union-attr]


def test_excluded_layers_keep_all_with_whom_they_are_coupled(net: nn.Module, few: Task) -> None:
    found = PruneChannels(exclude=("b",)).apply(net, context(net, few))
    assert (found.stem.out_channels, found.b.out_channels) == (12, 12)  # type: ignore[union-attr]
    assert found.a.out_channels < 16  # type: ignore[union-attr,operator]


def test_multiples(net: nn.Module, few: Task) -> None:
    found = PruneChannels(round_to=8, sparsity=0.45).apply(net, context(net, few))
    assert found.fc1.out_features % 8 == found.a.out_channels % 8 == 0  # type: ignore[union-attr,operator]


def test_rounds_reach_the_same_size_and_follow_the_schedule(net: nn.Module, few: Task) -> None:
    ctx = context(net, few)
    step = PruneChannels(allocation="local", rounds=3, schedule="linear", layers="a")
    found = step.apply(net, ctx)
    assert [row["cut"]["a"] for row in ctx.record["rounds"]] == [3, 2, 3]  # 2.67, 5.33 and 8 of 16
    assert found.a.out_channels == 8  # type: ignore[union-attr]


def test_a_round_that_costs_too_much_is_undone(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = context(model, task)
    step = PruneChannels(
        sparsity=0.9, allocation="local", rounds=4, schedule="linear", tolerance=0.05
    )
    found = step.apply(copy.deepcopy(model), ctx)
    rows = ctx.record["rounds"]
    assert rows[-1]["undone"]
    assert not any(row["undone"] for row in rows[:-1])
    before = evaluate(model, task, "validation").value
    assert before - evaluate(found, task, "validation").value <= 0.05
    kept = {g["name"]: g["after"] for g in ctx.record["groups"]}
    sizes = {g["name"]: g["before"] for g in ctx.record["groups"]}
    taken = {n: sum(row["cut"].get(n, 0) for row in rows[:-1]) for n in sizes}
    assert kept == {n: sizes[n] - taken[n] for n in sizes}
    assert "was undone" in ctx.record["notes"][-1]


def test_an_interrupted_run_goes_on_after_its_last_round(
    net: nn.Module, few: Task, tmp_path: Path
) -> None:
    step = PruneChannels(rounds=3, schedule="linear", epochs=1, criterion="taylor")
    torch.manual_seed(0)
    whole = context(net, few)
    expected = step.apply(copy.deepcopy(net), whole)
    import rarefy.prune.channel_rounds as loop

    ctx, real = context(net, few, tmp_path), loop.keep_network

    def stops(model: nn.Module, context: Context, key: str, done: int) -> None:
        real(model, context, key, done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "keep_network", stops)
        with pytest.raises(KeyboardInterrupt):
            step.apply(copy.deepcopy(net), ctx)
    ctx = context(net, few, tmp_path)
    found = step.apply(copy.deepcopy(net), ctx)
    pairs = zip(expected.state_dict().items(), found.state_dict().items(), strict=True)
    assert all(n == m and torch.equal(a, b) for (n, a), (m, b) in pairs)
    assert ctx.record["groups"] == whole.record["groups"]
    assert ctx.record["rounds"] == whole.record["rounds"]


def test_masked_networks_can_be_cut(net: nn.Module, few: Task) -> None:
    sparse = PruneWeights(sparsity=0.6).apply(net, context(net, few))
    with torch.no_grad():  # what lies under the mask must not count
        sparse.a.parametrizations.weight.original[~mask_of(sparse.a)] = 100.0  # type: ignore[union-attr,index,arg-type]
    heard = sparse.a.weight.detach().abs().sum((1, 2, 3))  # type: ignore[union-attr]
    best = heard.topk(8).indices.sort().values
    weight, mask = sparse.a.weight.detach().clone(), mask_of(sparse.a).clone()  # type: ignore[union-attr,arg-type]
    found = PruneChannels(criterion="l1", layers="a").apply(sparse, context(sparse, few))
    assert torch.equal(found.a.weight, weight[best])  # type: ignore[union-attr]
    assert torch.equal(mask_of(found.a), mask[best])  # type: ignore[arg-type]
    assert torch.equal(mask_of(found.b), found.b.weight != 0)  # type: ignore[union-attr,arg-type]


def test_batch_norms_are_measured_anew(net: nn.Module, few: Task) -> None:
    found = PruneChannels(repair="norms", layers="a").apply(net, context(net, few))
    x = torch.cat([batch[0] for batch in few.batches("calibration")])
    with torch.no_grad():
        mean = found.stem(x).mean((0, 2, 3))  # type: ignore[operator]
    assert torch.allclose(found.n0.running_mean, mean, atol=0.02)  # type: ignore[union-attr]
    assert few.batches("calibration")


def test_scores_do_not_depend_on_what_was_drawn_before(net: nn.Module, few: Task) -> None:
    from rarefy.graph.coupling import couple

    groups = couple(net, few.example).groups
    for criterion in ("random", "fisher"):
        one = unit_scores(net, groups, criterion, few, 64, 7)
        torch.rand(9)
        two = unit_scores(net, groups, criterion, few, 64, 7)
        assert all(torch.equal(one[n], two[n]) for n in one)
    assert set(BY_WEIGHT) | set(BY_GRADIENT) < set(CRITERIA)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sparsity": 0.95}, "would take more of a group than largest=0.9"),
        ({"sparsities": {"a": 0.97}}, "would take more of a group than largest=0.9"),
        ({"rounds": 3}, "3 rounds of a one-shot schedule"),
        ({"sparsities": {"a": 0.5}, "target": "macs"}, "target='macs' can't be met"),
        ({"sparsity": 1.0}, "sparsity=1.0 is not allowed"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        PruneChannels(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "kind", "sentence"),
    [
        ({"layers": "nowhere.*"}, RecipeError, "'nowhere.*' matches no layer"),
        ({"exclude": "*"}, ModelError, "every channel is protected"),
        ({"layers": "fc2"}, ModelError, "every channel is protected"),
        ({"layers": "fc1", "criterion": "norm-scale"}, ModelError, "no norm scales its units"),
        ({"sparsity": 0.99, "target": "macs"}, ModelError, "the largest cut leaves macs="),
        ({"sparsities": {"fc9": 0.5}}, RecipeError, "'fc9' matches no layer"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_changed(
    fields: dict[str, object], kind: type[Exception], sentence: str, net: nn.Module, few: Task
) -> None:
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(kind, match=sentence.replace("*", r"\*")) as caught:
        PruneChannels(**fields).apply(net, context(net, few))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net(few.example).shape[1] == 10  # type: ignore[arg-type]


def test_a_network_that_fails_is_named(few: Task) -> None:
    broken = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="can't be followed on the example"):
        PruneChannels().apply(broken, context(broken, few))


def test_needs_follow_from_what_is_read() -> None:
    assert PruneChannels().needs == frozenset()
    assert PruneChannels(criterion="taylor").needs == {"train", "labels"}
    assert PruneChannels(criterion="fisher").needs == {"calibration"}
    assert PruneChannels(epochs=1, repair="bias").needs == {"train", "calibration"}
