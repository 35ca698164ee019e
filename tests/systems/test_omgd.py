# SPDX-License-Identifier: Apache-2.0
"""A generator of digits at a quarter of its width, which meets no discriminator and holds no teacher back."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.generator import DISCRIMINATE, LEARN, TEACH, DistillGenerator, Workshop
from rarefy.distill.pictures import structural_similarity
from rarefy.loops.modes import copy_state
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
    batches = DataLoader(TensorDataset(z[:640], real[:640]), 64, shuffle=True)
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


def test_the_student_comes_to_paint_like_its_teachers(painting: Task) -> None:
    shop, z, _ = workshop(painting)
    learning = [*shop.student.parameters(), *shop.adapters.parameters()]
    optimiser = torch.optim.Adam(learning, 0.01)
    likeness = []
    for step in range(51):
        optimiser.zero_grad()
        shop(z, turn=LEARN).backward()
        optimiser.step()
        if step in (0, 50):
            with torch.no_grad():
                made = shop.student(z)
                likeness.append([float(structural_similarity(made, t(z))) for t in shop.teachers])
    assert all(after > before + 0.2 for before, after in zip(*likeness, strict=True))


def test_the_recipe_gives_a_small_painter(painting: Task) -> None:
    prune, distill = load_recipe("omgd").steps
    assert isinstance(prune, PruneChannels)
    assert isinstance(distill, DistillGenerator)
    torch.manual_seed(0)
    original = Painter(32).eval()
    before = copy_state(original)
    few = dataclasses.replace(painting, train=list(itertools.islice(painting.batches("train"), 2)))
    context = Context(few, original, torch.device("cpu"), 0)
    quarter = dataclasses.replace(prune, sparsity=0.75, exclude="up2")
    student = quarter.apply(copy.deepcopy(original), context)
    shapes = {n: t.shape for n, t in copy_state(student).items()}
    assert shapes["up1.weight"] == (8, 8, 4, 4)
    step = dataclasses.replace(distill, epochs=1, optimiser="adam")
    taught = step.apply(student, context)
    assert {n: t.shape for n, t in copy_state(taught).items()} == shapes  # nothing else came along
    assert all(torch.equal(t, before[n]) for n, t in copy_state(original).items())
