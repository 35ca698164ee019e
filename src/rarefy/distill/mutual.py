# SPDX-License-Identifier: Apache-2.0
"""Networks that learn together and from each other, without a trained teacher.

Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, 2017, arXiv 1706.00384 (peers); Zhu, Gong, Lan: Knowledge
Distillation by On-the-Fly Native Ensemble, 2018, arXiv 1806.04606 (a gated ensemble of the peers as teacher;
here of whole networks, without a common trunk).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.distill.turns import Turns
from rarefy.loops.losses import imitation_loss
from rarefy.loops.repair import part_seed, remember, watch_over
from rarefy.loops.train import Batch, train
from rarefy.loops.training import TrainedStep
from rarefy.measure.quality import evaluate
from rarefy.step import Context, Positive
from rarefy.task import Task, call, logits_of, move


class Peers(nn.Module):
    """Networks of one shape that see the same inputs.

    Args:
        networks: the first one answers in evaluation.
        outputs: numbers in an answer, if a gate weighs the peers.
    """

    def __init__(self, networks: Sequence[nn.Module], outputs: int = 0) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        number = len(networks)
        self.gate = nn.Linear(number * outputs, number) if outputs else None

    def forward(self, *args: Any, turn: int | None = None, **kwargs: Any) -> Any:
        """The first one's outputs; in a `turn` those of all, of which only one carries gradients."""
        if turn is None:
            return self.networks[0](*args, **kwargs)
        found = []
        for number, network in enumerate(self.networks):
            with torch.set_grad_enabled(number == turn):
                found.append(network(*args, **kwargs))
        return found

    def ensemble(self, answers: Sequence[Tensor]) -> Tensor:
        """The peers' answers, weighed for each example by the gate; their mean without one."""
        each = torch.stack([a.float() for a in answers], 1)  # (B, peers, …)
        if self.gate is None:
            return each.mean(1)
        weights = self.gate(each.detach().flatten(1)).softmax(1)
        return (weights.view(*weights.shape, *[1] * (each.dim() - 2)) * each).sum(1)


@torch.no_grad()
def redraw(model: nn.Module, noise: float | None) -> nn.Module:
    """Another start for a network, in place.

    Args:
        model: a copy.
        noise: added to every weight of two or more axes, as a share of the spread of its entries; None draws
            every layer anew that knows how (`reset_parameters`) and wears no form.
    """
    if noise is None:
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None and not parametrize.is_parametrized(module):
                reset()
        return model
    for p in model.parameters():
        if p.dim() > 1 and p.is_floating_point():
            p.add_(noise * p.std() * torch.randn_like(p))
    return model


@dataclass(frozen=True)
class MutualLearning(TrainedStep):
    """Trains several copies of the network, each on the labels and on what the others answer; one is kept.

    The copies take turns on each batch. The one with the best validation metric is returned, or the first
    where there is no validation data.

    Attributes:
        epochs: passes over the training data, of every copy.
        rate: highest learning rate.
        peers: how many learn together.
        teacher: of each copy: ``"peers"``, the mean divergence from the others, or ``"ensemble"``, all of
            them weighed by a gate that learns too.
        strength: factor of what is learnt from the others.
        temperature: softens answers; 1 in the paper of peers, 3 in that of ensembles.
        noise: how far the other copies start from the network, as a share of each weight's spread; default:
            their layers are drawn anew. The first one starts as it is.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`.
    """

    peers: Annotated[int, Field(ge=2, le=16)] = 2
    teacher: Literal["peers", "ensemble"] = "peers"
    strength: Positive = 1.0
    temperature: Positive = 1.0
    noise: Positive | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"train", "labels"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains all copies; the network at hand is the first of them."""
        task, label = context.task, self.key()
        watch, seed = watch_over(context, label, None), part_seed(context.seed, label)
        with torch.no_grad():
            answers = logits_of(call(model.eval(), move(task.example, context.device)))
        outputs = answers[0].numel() if self.teacher == "ensemble" else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            others = [redraw(copy.deepcopy(model), self.noise) for _ in range(self.peers - 1)]
            together = Peers([model, *others], outputs).to(context.device)
        turns = Turns(task.batches("train"), self.peers)
        settings = self.training()
        for number, batch in enumerate(train(together, turns, settings, seed=seed, watch=watch)):
            batch.minimise(self.loss(batch, number % self.peers, together, task))
        remember(context.record, label, watch.history)
        return self.best(together, context)

    def loss(self, batch: Batch, turn: int, together: Peers, task: Task) -> Tensor:
        """The loss of the peer whose turn it is."""
        found = call(lambda *a, **k: batch.model(*a, turn=turn, **k), batch.inputs)
        answers = [logits_of(outputs) for outputs in found]
        loss = task.loss(found[turn], batch.targets)
        if self.teacher == "ensemble":
            mixed = together.ensemble(answers)
            loss = loss + task.loss(mixed, batch.targets)
            targets = [mixed.detach()]
        else:
            targets = [a for number, a in enumerate(answers) if number != turn]
        gaps = [imitation_loss(answers[turn], t.detach(), self.temperature) for t in targets]
        return loss + self.strength * torch.stack(gaps).mean()

    def best(self, together: Peers, context: Context) -> nn.Module:
        """The peer with the best validation metric; all metrics are remembered."""
        networks = list(together.networks)
        if context.task.validation is None:
            return networks[0].eval()
        found = [evaluate(n, context.task, "validation") for n in networks]
        context.record["peers"] = [quality.value for quality in found]
        sign = 1 if found[0].higher_is_better else -1
        chosen = max(range(len(found)), key=lambda i: (sign * found[i].value, -i))
        return networks[chosen].eval()
