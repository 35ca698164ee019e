# SPDX-License-Identifier: Apache-2.0
"""A folded network computes what the normalised one computed, for every kind of layer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import bake
from rarefy.graph.calls import record_calls
from rarefy.graph.fold import fold_batch_norms, foldable
from rarefy.zoo.resnet import CifarResNet


def lively(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and gains that matter."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (3, 6)),
    (lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)), (3, 6, 8)),
    (lambda: nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)), (3, 6, 8, 8)),
    (lambda: nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)), (3, 6, 8, 8)),
    (lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (3, 2, 4, 4, 4)),
    (lambda: nn.Sequential(nn.ConvTranspose1d(6, 4, 3), nn.BatchNorm1d(4)), (3, 6, 8)),
    (lambda: nn.Sequential(nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)), (3, 6, 5, 5)),
    (lambda: nn.Sequential(nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3)),
     (3, 2, 3, 3, 3)),
    (lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=False)), (3, 6, 8, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_folding_keeps_the_output(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = lively(make())
    x = torch.randn(shape)
    before = model(x).detach()
    assert fold_batch_norms(model, x) == [("0", "1")]
    assert isinstance(model[1], nn.Identity)  # type: ignore[index]
    after = model(x).detach()
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())


def test_a_masked_weight_stays_masked() -> None:
    model = lively(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    keep = torch.rand(4, 6) > 0.5
    set_mask(model[0], keep)  # type: ignore[index]
    x = torch.randn(3, 6)
    before = model(x)
    fold_batch_norms(model, x)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert bool((model[0].weight[~keep] == 0).all())  # type: ignore[index]
    bake(model)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_every_norm_of_a_residual_network_folds() -> None:
    model = lively(CifarResNet(20, width=4))
    x = torch.randn(2, 3, 16, 16)
    before = model(x).detach()
    pairs = fold_batch_norms(model, x)
    assert len(pairs) == 19
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert float((model(x).detach() - before).abs().max()) <= 1e-4 * float(before.abs().max())
    assert fold_batch_norms(model, x) == []


class Shared(nn.Module):
    """A layer whose output is also read by another, one that runs twice, a norm before its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.read_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm_first, self.after = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.loose, self.loose_norm = (
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3, track_running_stats=False),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.read(x)
        x = self.read_norm(y) + y
        x = self.twice_norm(self.twice(self.twice(x)))
        x = self.after(self.norm_first(torch.relu(x)))
        return self.loose_norm(self.loose(x)), x


def test_what_can_not_be_folded_is_left_alone() -> None:
    model = lively(Shared())
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    assert foldable(model, record_calls(model, x)) == []
    fold_batch_norms(model, x)
    assert torch.equal(model(x)[0], before[0])


def test_a_quantised_weight_is_not_touched() -> None:
    from rarefy.forms.affine import OnGrid
    from rarefy.forms.grid import Grid
    from rarefy.forms.shadow import dress

    model = lively(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    form = OnGrid(torch.tensor(0.1), torch.tensor(0, dtype=torch.int8), Grid())
    dress(model[0], "weight", form)  # type: ignore[index]
    assert fold_batch_norms(model, torch.randn(3, 6)) == []
