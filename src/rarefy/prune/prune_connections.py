# SPDX-License-Identifier: Apache-2.0
"""Learn which connections matter, prune the others, retrain the rest, and again.

Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, 2015,
arXiv 1506.02626. Section 3: train with L2; prune below a quality factor times the layer's standard
deviation; retrain the survivors from their values at a tenth of the rate with less dropout (equation 2);
iterate; take out neurons that have lost all inputs or all outputs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from rarefy.loops.modes import device_of
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.measure.quality import batches_of
from rarefy.prune.allocation import deviation, std_mask
from rarefy.prune.connections import adjust_dropout, dropouts_before, living_connections
from rarefy.prune.dead_units import remove_dead_units
from rarefy.prune.rounds import Rounds, prune_in_rounds
from rarefy.select import Layer, select
from rarefy.step import Context, Count, Fraction, Patterns, Positive, Step
from rarefy.task import move

EXAMPLES = 64  # on which answers are compared when dead neurons are taken out


@dataclass(frozen=True)
class PruneConnections(Step):
    """The three stages of Han et al. 2015; what is pruned stays zero whatever is trained later.

    Attributes:
        quality: q; weights below q standard deviations of their layer go. The deviation is that of the
            layer when pruning begins; round k of n prunes below k/n of the final threshold.
        qualities: pattern → q of the layers that it matches, in place of `quality`; the last one counts.
        rounds: of pruning and retraining.
        epochs: of retraining after each round.
        learn: epochs of training with L2 before the first round; 0 for a network that is trained.
        rate: of that training; retraining takes a tenth.
        weight_decay: of L2.
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        tolerance: largest loss of the validation metric; a round that loses more is undone and ends the
            pruning.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    quality: Positive = 1.6
    qualities: dict[str, Annotated[float, Field(ge=0)]] | None = None
    rounds: Count = 4
    epochs: Annotated[int, Field(ge=0)] = 3
    learn: Annotated[int, Field(ge=0)] = 0
    rate: Positive = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    alpha: Fraction | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"train", "calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})
    writes: ClassVar[str | None] = "mask"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Learns, then prunes and retrains round by round."""
        chosen = select(model, self.layers, exclude=self.exclude)
        training = Training(self.learn, self.rate, weight_decay=self.weight_decay)
        repair(model, context, training, alpha=self.alpha, label="learn connections")
        factors = self.factors(model, chosen)
        spreads = {layer: deviation(layer.weight) for layer in chosen}
        examples = batches_of(context.task, "calibration", EXAMPLES)
        inputs = [move(batch, device_of(model)) for batch in examples]
        dropouts = dropouts_before(model, chosen, inputs[0])
        rates = {dropout: dropout.p for dropout in dropouts}
        connections = {layer: living_connections(layer) for layer in chosen}

        def choose(progress: float) -> list[Tensor]:
            return [std_mask(x.weight, progress * factors[x], spreads[x]) for x in chosen]

        def settle() -> None:
            removed = remove_dead_units(model, chosen, inputs)
            context.record.setdefault("dead_units", []).append(asdict(removed))
            adjust_dropout(dropouts, rates, connections)

        again = Training(self.epochs, self.rate / 10, weight_decay=self.weight_decay)
        rounds = Rounds(self.key(), self.rounds, again, self.tolerance, self.alpha)
        return prune_in_rounds(model, context, chosen, rounds, choose, settle)

    def factors(self, model: nn.Module, chosen: Sequence[Layer]) -> dict[Layer, float]:
        """The quality factor of each layer."""
        found = {layer.stored: self.quality for layer in chosen}
        for pattern, quality in (self.qualities or {}).items():
            found |= {layer.stored: quality for layer in select(model, pattern)}
        return {layer: found[layer.stored] for layer in chosen}
