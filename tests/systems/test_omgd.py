# SPDX-License-Identifier: Apache-2.0
"""A generator of digits at a quarter of its width: no discriminator, no hold on teachers, better digits."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.generator import DISCRIMINATE, LEARN, TEACH, DistillGenerator, Workshop
from rarefy.loops.features import features
from rarefy.loops.fit import fit
from rarefy.loops.modes import copy_state
from rarefy.loops.optimise import Training
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Metric, Task


class Painter(nn.Module):
    """Noise (B, 16) to pictures (B, 1, 8, 8)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start, self.norm = nn.Linear(16, width * 4), nn.BatchNorm2d(width)
        self.up1 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.up2 = nn.ConvTranspose2d(width, 1, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.start(z).unflatten(1, (-1, 2, 2))).relu()
        return self.up2(self.norm1(self.up1(x)).relu()).tanh()


def nearness(made: Tensor, real: Tensor) -> Tensor:
    return -(made - real).square().flatten(1).mean(1)


@pytest.fixture(scope="module")
def painting(digits_task: Task) -> Task:
    """Real digits between -1 and 1, each with its whitened principal components as noise."""
    torch.manual_seed(3)
    real = torch.cat([x for x, _ in digits_task.batches("train")])
    real = (real / 1.5).clamp(-1, 1)
    flat = real.flatten(1) - real.flatten(1).mean(0)
    u, _, _ = torch.linalg.svd(flat, full_matrices=False)
    z = u[:, :16] * len(real) ** 0.5
    batches = DataLoader(TensorDataset(z, real), 64, shuffle=True)
    return Task(
        "painting", z[:4], train=batches, loss=F.mse_loss, metric=Metric("nearness", nearness)
    )


def workshop(task: Task) -> tuple[Workshop, Tensor, Tensor]:
    torch.manual_seed(0)
    shop = DistillGenerator().furnish(Painter(8), Painter(32), task.example)
    z, real = next(iter(task.batches("train")))
    return shop.train(), z, real


def touched(shop: Workshop) -> set[str]:
    return {n.partition(".")[0] for n, p in shop.named_parameters() if p.grad is not None}


def test_everybody_learns_from_the_right_side(painting: Task) -> None:
    shop, z, real = workshop(painting)
    for turn, sides in (
        (DISCRIMINATE, {"judge"}), (TEACH, {"teachers"}), (LEARN, {"student", "adapters"}),
    ):  # fmt: skip
        shop.zero_grad()
        shop(z, turn=turn, real=real).backward()
        assert touched(shop) == sides
    assert shop.pairs  # intermediate channels are compared too


def test_teachers_do_not_know_that_they_have_a_student(painting: Task) -> None:
    torch.manual_seed(2)
    batches = list(itertools.islice(painting.batches("train"), 3))

    def teachers(student: nn.Module, channels: float) -> dict[str, Tensor]:
        kept = {}
        furnish = DistillGenerator.furnish

        def keep(self: DistillGenerator, *args: nn.Module) -> Workshop:
            kept["shop"] = furnish(self, *args)  # type: ignore[arg-type]
            return kept["shop"]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DistillGenerator, "furnish", keep)
            torch.manual_seed(0)
            original = Painter(32).eval()
            step = DistillGenerator(epochs=1, optimiser="adam", channels=channels)
            few = dataclasses.replace(painting, train=batches)
            step.apply(student, Context(few, original, torch.device("cpu"), 0))
        return copy_state(kept["shop"].teachers)

    torch.manual_seed(1)
    one, other = teachers(Painter(8), 1.0), teachers(Painter(4), 0.0)
    assert all(torch.equal(t, other[n]) for n, t in one.items())


def frechet(model: nn.Module, classifier: nn.Module, real: Tensor) -> float:
    """The Fréchet distance of the classifier's last features, of made and real digits."""
    z = torch.randn(1000, 16, generator=torch.Generator().manual_seed(9))
    sides = []
    with torch.no_grad(), features(classifier, ["fc2:input"]) as seen:
        for x in (model.eval()(z), real):
            classifier(1.5 * x)
            sides.append(seen["fc2:input"].double())
    means, covariances = [s.mean(0) for s in sides], [s.mT.cov() for s in sides]
    values = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0)
    traces = covariances[0].trace() + covariances[1].trace() - 2 * values.sqrt().sum()
    return float((means[0] - means[1]).square().sum() + traces)


def test_a_quarter_of_the_width_paints_better_digits(
    painting: Task, digits_network: nn.Module
) -> None:
    prune, distill = load_recipe("omgd").steps
    assert isinstance(prune, PruneChannels)
    assert isinstance(distill, DistillGenerator)
    torch.manual_seed(0)
    paired = Training(epochs=6, rate=0.01, optimiser="adam")
    original = fit(Painter(32), painting, paired)  # paints already
    context = Context(painting, original, torch.device("cpu"), 0)
    settings = {"epochs": 3, "optimiser": "adam", "rate": 0.003}
    quarter = dataclasses.replace(prune, sparsity=0.75, exclude="up2")
    student = quarter.apply(copy.deepcopy(original), context)
    assert student.up1.weight.shape[1] == 8  # type: ignore[union-attr, index, operator]
    torch.manual_seed(1)
    alone = Painter(8).eval()
    step = dataclasses.replace(distill, **settings)  # type: ignore[arg-type]
    taught = step.apply(student, context)
    # alone: a network as small is itself what learns from a discriminator
    kept: list[nn.Module] = []
    furnish = DistillGenerator.furnish

    def keep(self: DistillGenerator, *args: nn.Module) -> Workshop:
        shop = furnish(self, *args)  # type: ignore[arg-type]
        kept.append(shop.teachers[0])
        return shop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillGenerator, "furnish", keep)
        step.apply(copy.deepcopy(alone), dataclasses.replace(context, teacher=alone.eval()))
    real = torch.cat([x for _, x in painting.batches("train")])
    assert frechet(taught, digits_network, real) < frechet(kept[0], digits_network, real)
