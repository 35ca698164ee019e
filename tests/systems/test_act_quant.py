# SPDX-License-Identifier: Apache-2.0
"""Row act-quant: what is concatenated shares a scale, a ReLU6 ends at 6, no rounding stands twice."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.forms.activations import quantizers_of
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


class Branches(nn.Module):
    """Two convolutions, one clipped at 6, one signed; concatenated with a third; (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 3) for _ in range(3))
        self.last, self.clip = nn.Conv2d(8, 4, 1), nn.ReLU6()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.a(x), self.b(x)], 1)
        clipped = self.clip(self.c(x))
        y = torch.cat([self.last(joined), clipped], 1)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def quantised() -> tuple[nn.Module, nn.Module, Task]:
    """The recipe on the network above."""
    torch.manual_seed(0)
    model = Branches().eval()
    with torch.no_grad():
        model.c.weight.mul_(20)  # so that much of it is clipped
    batches = [3 * torch.randn(16, 3, 8, 8) for _ in range(3)]
    task = Task("random", batches[0][:2], calibration=batches, labelled=False)
    (step,) = load_recipe("act-quant").steps
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    return step.apply(copy.deepcopy(model), context), model, task


def test_what_is_concatenated_shares_its_scale() -> None:
    found = quantizers_of(quantised()[0]).at_site()
    scales = [float(found[site].scale) for site in ("a:conv2d#0", "b:conv2d#0", ":cat#0")]
    assert scales[0] == scales[1] == scales[2]


def test_a_clip_s_range_ends_where_it_does_and_nothing_is_rounded_twice() -> None:
    found = quantizers_of(quantised()[0]).at_site()
    site = next(s for s in found if s.startswith("clip:"))
    quantizer = found[site]
    assert float(quantizer.scale) * (255 - int(quantizer.zero_point)) <= 6.0001
    assert float(quantizer.scale) * 255 >= 5.9
    assert int(quantizer.zero_point) == 0
    assert "c:conv2d#0" not in found  # the quantiser stands behind the clip alone


def test_signed_values_have_a_zero_inside_and_zero_stays_zero() -> None:
    found = quantizers_of(quantised()[0]).at_site()
    signed = found["a:conv2d#0"]
    assert 0 < int(signed.zero_point) < 255
    assert all(float(q(torch.zeros(1))) == 0 for q in found.values())


def test_the_recipe_keeps_the_accuracy(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    (step,) = load_recipe("act-quant").steps
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    assert evaluate(step.apply(model, context), task).value >= before - 0.01
