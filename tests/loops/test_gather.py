# SPDX-License-Identifier: Apache-2.0
"""Gathering from a running network; Fisher information against closed forms."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError, TaskError
from rarefy.forms.mask import set_mask
from rarefy.loops.fisher import Fisher, gather_fisher
from rarefy.loops.gather import gather
from rarefy.loops.gradients import batch_gradients
from rarefy.loops.histogram import Histogram
from rarefy.loops.statistics import ChannelMoments, Range, SecondMoment
from rarefy.select import select


class Network(nn.Module):
    """A convolution and a linear layer, with dropout and batch norm to be silenced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, groups=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 6, 6, generator=generator) for n in (3, 5)]


def test_gather_sees_inputs_outputs_and_rows() -> None:
    torch.manual_seed(0)
    model = Network().train()
    wanted = {
        ("", "input"): Range(),
        ("conv", "output"): ChannelMoments(),
        ("conv", "rows"): SecondMoment(),
        ("fc", "input"): Histogram(64),
    }
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert gather(model, batches(), wanted) is wanted  # type: ignore[arg-type]
    x = torch.cat(batches())
    with torch.no_grad():
        y = model.conv(x)
        hidden = model.eval().norm(y).relu()
    assert float(wanted["", "input"].low) == float(x.min())  # type: ignore[attr-defined]
    torch.testing.assert_close(
        wanted["conv", "output"].mean.float(),  # type: ignore[attr-defined]
        y.mean((0, 2, 3)),
    )
    rows = F.unfold(x, 3).transpose(1, 2).reshape(-1, 9).double()
    torch.testing.assert_close(wanted["conv", "rows"].mean(), rows.T @ rows / len(rows))  # type: ignore[attr-defined]
    assert wanted["fc", "input"].total() == hidden.numel()  # type: ignore[attr-defined]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_gather_keeps_modes_and_detaches_after_a_failure() -> None:
    model = Network().train()
    with pytest.raises(RuntimeError):
        gather(model, [torch.randn(2, 7, 6, 6)], {("conv", "input"): Range()})
    assert all(module.training for module in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_gather_names_what_is_wrong() -> None:
    with pytest.raises(ModelError, match=r"'cnv'.*did you mean 'conv'"):
        gather(Network(), batches(), {("cnv", "input"): Range()})
    with pytest.raises(ModelError, match="no matrix form"):
        gather(Network(), batches(), {("norm", "rows"): SecondMoment()})
    with pytest.raises(TaskError, match="no calibration batch"):
        gather(Network(), [], {("conv", "input"): Range()})


def labelled() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(x, torch.randint(0, 3, (len(x),), generator=generator)) for x in batches()]


def by_hand(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Mean of squared gradients, one example after the other, in float64."""
    model = model.double().eval()
    total = {name: torch.zeros_like(model.get_submodule(name).weight) for name in names}
    count = 0
    for x, y in labelled():
        for i in range(len(x)):
            model.zero_grad()
            F.cross_entropy(model(x[i : i + 1].double()), y[i : i + 1]).backward()
            for name in names:
                layer = select(model, name)[0]
                total[name] += layer.stored.grad.square()  # type: ignore[union-attr]
            count += 1
    model.float()
    return {name: (t / count).detach() for name, t in total.items()}


def test_fisher_is_the_mean_of_single_examples_squares() -> None:
    torch.manual_seed(0)
    model = Network().train()
    found = gather_fisher(model, labelled(), select(model), F.cross_entropy)
    assert found.count == 8
    assert all(module.training for module in model.modules())
    expected = by_hand(model, ["conv", "fc"])
    for name, f in found.diagonal().items():
        torch.testing.assert_close(f, expected[name], rtol=1e-3, atol=1e-7)


def test_opposite_gradients_do_not_cancel() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = [(torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [3.0]]))]
    layers = select(model)
    # d(wx - 3)^2/dw = -6 x at w = 0: single gradients are -6 and 6, their mean is 0
    found = gather_fisher(model, data, layers, F.mse_loss).diagonal()[""]
    assert float(found) == 36.0
    (mean,) = next(batch_gradients(model, data, layers, F.mse_loss))
    assert float(mean) == 0.0


def test_fisher_of_softmax_regression() -> None:
    """The expected Fisher of softmax regression is E[x_j² p_k (1 - p_k)] on the diagonal."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    p = model(x).softmax(1).detach()
    expected = torch.einsum("nk,nj->kj", p * (1 - p), x.square()) / len(x)
    found = torch.zeros(3, 4, dtype=torch.float64)
    layers = select(model)
    for k in range(3):  # the expectation over labels drawn from the model, one label at a time
        for n in range(len(x)):
            one = [(x[n : n + 1], torch.tensor([k]))]
            f = gather_fisher(model, one, layers, F.cross_entropy).diagonal()[""]
            found += float(p[n, k]) * f / len(x)
    torch.testing.assert_close(found.float(), expected)


class Branching(nn.Module):
    """Control flow that depends on data, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * 2 if float(y.detach().sum()) > 0 else y


def test_fisher_where_vmap_refuses() -> None:
    torch.manual_seed(0)
    model, x, y = Branching(), torch.randn(7, 4), torch.arange(7) % 3
    found = gather_fisher(model, [(x, y)], select(model), F.cross_entropy).diagonal()["fc"]
    expected = torch.zeros(3, 4)
    for i in range(7):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        expected += model.fc.weight.grad.square() / 7  # type: ignore[union-attr]
    torch.testing.assert_close(found.float(), expected)


def test_fisher_of_dressed_weights_is_by_the_weight_in_use() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    keep = torch.rand(3, 4) > 0.5
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        plain.weight *= keep
    set_mask(model, keep)
    data = [(torch.randn(5, 4), torch.arange(5) % 3)]
    found = gather_fisher(model, data, select(model), F.cross_entropy).diagonal()[""]
    expected = gather_fisher(plain, data, select(plain), F.cross_entropy).diagonal()[""]
    torch.testing.assert_close(found, expected)
    assert bool((found[~keep] > 0).any())


def test_fisher_merges() -> None:
    torch.manual_seed(0)
    model = Network()
    layers, data = select(model), labelled()
    whole = gather_fisher(model, data, layers, F.cross_entropy)
    parts = [gather_fisher(model, [batch], layers, F.cross_entropy) for batch in data]
    merged = Fisher().merge(parts[1]).merge(parts[0])
    assert merged.count == whole.count
    for name, f in whole.diagonal().items():
        torch.testing.assert_close(merged.diagonal()[name], f)
    with pytest.raises(ModelError, match="no example"):
        Fisher().diagonal()


def test_batch_gradients_leave_the_network_alone() -> None:
    model = Network().train()
    model.fc.weight.requires_grad_(False)
    layers = select(model)
    first = next(batch_gradients(model, labelled(), layers, F.cross_entropy))
    assert [g.shape for g in first] == [layer.weight.shape for layer in layers]
    assert all(bool(g.any()) for g in first)
    assert not model.fc.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_batch_gradients_refuse_what_has_none() -> None:
    model = Network()
    with torch.no_grad():
        model.fc.bias.fill_(torch.inf)
    with pytest.raises(ModelError, match="can't be scored"):
        next(batch_gradients(model, labelled(), select(model), F.cross_entropy))
