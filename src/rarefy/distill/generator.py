# SPDX-License-Identifier: Apache-2.0
"""A small generator learns from two larger ones while these learn from a discriminator.

Ren, Wu, Xiao, Yang: Online Multi-Granularity Distillation for GAN Compression, 2021, arXiv 2108.06908: the
student sees no discriminator; a wider and a deeper teacher show it finished pictures, the wider one also its
intermediate channels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.adapters import Adapter
from rarefy.distill.maps import channel_loss
from rarefy.distill.pairing import Pair, found_pairs, outline
from rarefy.distill.pictures import FixedFeatures, picture_loss
from rarefy.distill.turns import Turns
from rarefy.loops.features import features
from rarefy.loops.modes import evaluating
from rarefy.loops.repair import part_seed, remember, watch_over
from rarefy.loops.train import Batch, train
from rarefy.loops.training import TrainedStep
from rarefy.step import Context, Positive
from rarefy.task import Inputs, call, logits_of, move

DISCRIMINATE, TEACH, LEARN = range(3)


class Refined(nn.Module):
    """A generator, deeper by residual blocks on what it gives; at first it gives the same.

    Args:
        generator: of pictures (B, C, H, W).
        shape: of its output.
        depth: blocks.
        width: channels inside.
    """

    def __init__(
        self, generator: nn.Module, shape: Sequence[int], depth: int, width: int = 16
    ) -> None:
        super().__init__()
        self.generator = generator
        C, self.pictures = shape[1], len(shape) == 4
        layer: Any = (lambda a, b: nn.Conv2d(a, b, 3, padding=1)) if self.pictures else nn.Linear
        self.blocks = nn.ModuleList(
            nn.Sequential(layer(C, width), nn.ReLU(), layer(width, C)) for _ in range(depth)
        )
        for block in self.blocks:
            last: Any = block[-1]  # type: ignore[index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = logits_of(self.generator(*args, **kwargs))
        for block in self.blocks:
            y = y + block(y)
        return y


def discriminator(shape: Sequence[int], width: int = 32) -> nn.Module:
    """A small network that tells real from made: logits (B, 1) of pictures (B, C, H, W) or vectors (B, C)."""
    if len(shape) != 4:
        return nn.Sequential(
            nn.Flatten(), nn.LazyLinear(width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )
    return nn.Sequential(
        nn.Conv2d(shape[1], width, 3, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.LazyLinear(1),
    )  # fmt: skip


class Workshop(nn.Module):
    """Everything that learns: the student, its teachers, the discriminator, the adapters.

    Args:
        student: in evaluation it answers alone.
        teachers: the wider and the deeper one.
        judge: the discriminator.
        pairs: modules of the wider teacher and of the student whose channels are compared.
        adapters: one for each pair.
        strength: weight of these channels.
    """

    def __init__(
        self, student: nn.Module, teachers: Sequence[nn.Module], judge: nn.Module,
        pairs: list[Pair], adapters: Sequence[Adapter], strength: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.teachers = student, nn.ModuleList(teachers)
        self.judge, self.pairs, self.strength = judge, pairs, strength
        self.adapters = nn.ModuleList(adapters)
        self.look: nn.Module | None = None  # at pictures
        self.shape: tuple[int, ...] = ()  # of what is made

    def forward(self, *args: Any, turn: int | None = None, real: Any = None, **kwargs: Any) -> Any:
        """The student's outputs; in a `turn` the loss of those whose turn it is."""
        if turn is None:
            return self.student(*args, **kwargs)
        if turn == LEARN:
            return self.learning(args, kwargs)
        with torch.set_grad_enabled(turn == TEACH):
            made = [logits_of(teacher(*args, **kwargs)) for teacher in self.teachers]
        if turn == TEACH:
            losses = [F.softplus(-frozen(self.judge, x)).mean() for x in made]
            return torch.stack(losses).sum()
        losses = [F.softplus(self.judge(x)).mean() for x in made]
        return F.softplus(-self.judge(real)).mean() + torch.stack(losses).mean()

    def learning(self, args: Any, kwargs: Any) -> Tensor:
        """The student's loss: no discriminator and no gradient of a teacher takes part in it."""
        with features(self.teachers[0], [t for t, _ in self.pairs]) as theirs, torch.no_grad():
            shown = [logits_of(teacher(*args, **kwargs)) for teacher in self.teachers]
        with features(self.student, [s for _, s in self.pairs]) as mine:
            own = logits_of(self.student(*args, **kwargs))
        losses = [
            picture_loss(own, t, self.look) if self.look is not None else F.mse_loss(own, t)
            for t in shown
        ]
        for (t, s), adapter in zip(self.pairs, self.adapters, strict=True):
            losses.append(self.strength * channel_loss(adapter(mine[s]), theirs[t]))
        return torch.stack(losses).sum()


def frozen(judge: nn.Module, x: Tensor) -> Tensor:
    """What a network says, with gradients to its input alone."""
    held = {n: p.detach() for n, p in judge.named_parameters()}
    result: Tensor = torch.func.functional_call(judge, held, (x,))
    return result


@dataclass(frozen=True)
class DistillGenerator(TrainedStep):
    """Trains a compressed generator from its original and a deeper one, which both learn on meanwhile.

    A batch is (inputs of the generator, real pictures). The original, and a copy with more residual blocks,
    learn with the usual loss of generators; what is trained here imitates their pictures (structure,
    features, style, smoothness) and the original's channels, and never meets the discriminator. Outputs that
    are no pictures are compared by their squared difference, and class indices count as one-hot vectors.

    Attributes:
        epochs: passes over the training data.
        rate: highest learning rate, of all networks.
        deeper: residual blocks that the deeper teacher has more than the original.
        channels: weight of the intermediate channels.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`.
    """

    rate: Positive = 0.0005
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    deeper: Annotated[int, Field(ge=1, le=16)] = 2
    channels: Annotated[float, Field(ge=0)] = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"train", "labels"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains the student in place; the teachers are copies and are thrown away."""
        task, label = context.task, self.key()
        watch, seed = watch_over(context, label, None), part_seed(context.seed, label)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shop = self.furnish(model, context.teacher, move(task.example, context.device))
        turns, settings = Turns(task.batches("train"), 3), self.training()
        for number, batch in enumerate(train(shop, turns, settings, seed=seed, watch=watch)):
            batch.minimise(self.loss(batch, number % 3, shop.shape))
        remember(context.record, label, watch.history)
        return model.eval()

    @torch.no_grad()
    def furnish(self, model: nn.Module, original: nn.Module, example: Inputs) -> Workshop:
        """The student with its teachers, discriminator and adapters, made from what the example shows."""
        with evaluating(model), evaluating(original):
            shape = logits_of(call(original, example)).shape
            pairs = self.pairs(model, original, example)
            with features(original, [t for t, _ in pairs]) as theirs:
                call(original, example)
            with features(model, [s for _, s in pairs]) as mine:
                call(model, example)
        device = next(model.parameters()).device
        # what the teachers are made of is drawn first, so that it does not depend on the student
        wide = copy.deepcopy(original).requires_grad_(True)
        deep = Refined(copy.deepcopy(original).requires_grad_(True), shape, self.deeper)
        judge = discriminator(shape).to(device)
        judge(torch.zeros(2, *shape[1:], device=device))  # tells its layers their sizes
        adapters = [Adapter(mine[s].shape, theirs[t].shape) for t, s in pairs]
        shop = Workshop(model, [wide, deep], judge, pairs, adapters, self.channels)
        shop.look = FixedFeatures(shape[1]) if len(shape) == 4 else None
        shop.shape = tuple(shape)
        return shop.to(device)

    def pairs(self, model: nn.Module, original: nn.Module, example: Inputs) -> list[Pair]:
        """Modules of the original and of the student that give maps of one size."""
        if not self.channels:
            return []
        sides = (outline(network, example) for network in (original, model))
        return found_pairs("maps", *sides)

    def loss(self, batch: Batch, turn: int, shape: Sequence[int]) -> Tensor:
        """The loss of those whose turn it is."""
        real = batch.targets
        if real.dim() == 1 and not real.is_floating_point():
            real = F.one_hot(real, shape[1]).to(torch.get_default_dtype())
        result: Tensor = call(
            lambda *a, **k: batch.model(*a, turn=turn, real=real, **k), batch.inputs
        )
        return result
