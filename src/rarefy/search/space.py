# SPDX-License-Identifier: Apache-2.0
"""What a search may choose from: how much is pruned, how it is repaired, how weights are stored."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.prune.prune_weights import PruneWeights
from rarefy.quantize.share_weights import ShareWeights
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import Recipe
from rarefy.step import Step

if TYPE_CHECKING:
    from optuna.trial import Trial

ALLOCATIONS = ("global", "lamp", "erk")
REPAIRS = ("distill", "finetune")
STORAGES = ("dense", "shared", "int8")
LEAST, MOST = 0.01, 0.9  # shares of weights that may be left; above MOST nothing is pruned
BITS = (2, 8)
RATES = (2e-3, 3e-2)


@dataclass(frozen=True)
class Space:
    """The choices that a task and a network leave open.

    Attributes:
        storages: of `STORAGES`: float32, shared values, or integers.
        repairs: of `REPAIRS`; empty without training data, then nothing is trained.
    """

    storages: tuple[str, ...] = STORAGES
    repairs: tuple[str, ...] = REPAIRS


@dataclass(frozen=True)
class Candidate:
    """One point of the space.

    Attributes:
        density: share of the weights that is left; above 0.9 nothing is pruned.
        allocation: how zeros are spread over the layers.
        storage: see `Space`.
        bits: of an index into shared values.
        repair: method of training after pruning, or ``""``.
        rate: highest learning rate of the repair.
    """

    density: float
    allocation: str
    storage: str
    bits: int
    repair: str
    rate: float

    @property
    def pruned(self) -> bool:
        """Whether any weight becomes zero."""
        return self.density <= MOST

    def steps(self, epochs: int, rounds: int = 1) -> tuple[Step, ...]:
        """The steps of this candidate.

        Args:
            epochs: of repair after pruning; the other trainings last a fraction of it.
            rounds: in which zeros are set, with some repair between.
        """
        between = max(epochs // 8, 1) if rounds > 1 and self.repair else 0
        found: list[Step] = []
        if self.pruned:
            rounds = rounds if between else 1
            found.append(
                PruneWeights(
                    sparsity=float(f"{1 - self.density:.4g}"),
                    allocation=self.allocation,  # type: ignore[arg-type]
                    schedule="cubic" if rounds > 1 else "one-shot",
                    rounds=rounds,
                    epochs=between,
                    rate=self.rate,
                )
            )
            if self.repair == "distill":
                found.append(Distill(epochs=epochs, rate=self.rate))
            elif self.repair == "finetune":
                found.append(Finetune(epochs=epochs, rate=self.rate))
        if self.storage == "shared":
            after = max(epochs // 4, 1) if self.repair else 0
            start = "linear" if after else "exact"
            found.append(ShareWeights(bits=self.bits, epochs=after, initialisation=start))  # type: ignore[arg-type]
        elif self.storage == "int8":
            found.append(StaticInt8())
        return tuple(found)

    def recipe(self, epochs: int, rounds: int) -> Recipe:
        """The candidate as a recipe with full repair."""
        return Recipe(self.steps(epochs, rounds), name="search")


def suggest(trial: "Trial", space: Space) -> Candidate:
    """The candidate that the sampler proposes for a trial."""
    storage = str(trial.suggest_categorical("storage", space.storages))
    density = trial.suggest_float("density", LEAST, 1.0, log=True)
    bits = trial.suggest_int("bits", *BITS) if storage == "shared" else BITS[1]
    allocation, repair, rate = ALLOCATIONS[0], "", RATES[0]
    if density <= MOST:
        allocation = str(trial.suggest_categorical("allocation", ALLOCATIONS))
        if space.repairs:
            repair = str(trial.suggest_categorical("repair", space.repairs))
            rate = float(f"{trial.suggest_float('rate', *RATES, log=True):.3g}")
    elif space.repairs:
        repair = space.repairs[0]
    return Candidate(density, allocation, storage, bits, repair, rate)


def coded_share(density: float, bits: int) -> float:
    """About how many of a float32 network's bytes are left: places of non-zeros and their codes.

    n (H(d) + d (b - 1)) bits for n weights of density d: an ideal coder of places needs the binary entropy
    H(d), and codes of b bits carry about one bit less, since the levels are not equally frequent.
    """
    places = 0.0
    if 0 < density < 1:
        places = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return (places + density * (bits - 1)) / 32


def density_for(share: float, bits: int) -> float:
    """The largest density whose `coded_share` is at most `share`; the least of the space if none is.

    The share falls again just below density 1, where few zeros cost more places than they save; so a network
    that fits as it is stays whole, and otherwise the density is sought where the share rises.
    """
    if coded_share(1.0, bits) <= share:
        return 1.0
    low, high = LEAST, 1 / (1 + 2.0 ** (1 - bits))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if coded_share(middle, bits) < share else (low, middle)
    return low


def first_guesses(space: Space, share: float | None) -> list[dict[str, Any]]:
    """Points worth trying first, as optuna's parameters, for a size of `share` of the float32 bytes.

    Without a wanted size the usual ones of the literature.
    """
    guesses: list[dict[str, Any]] = []
    if "int8" in space.storages:
        guesses.append({"storage": "int8", "density": 1.0})
    common: dict[str, Any] = {"allocation": ALLOCATIONS[0], "rate": 1e-2}
    if space.repairs:
        common["repair"] = space.repairs[0]
    for storage, bits in (("shared", 5), ("shared", 4), ("shared", 6), ("int8", 7), ("dense", 25)):
        if storage in space.storages:
            density = density_for(share, bits) if share is not None else 0.15
            guess = {"storage": storage, "density": density, **common}
            guesses.append({**guess, "bits": bits} if storage == "shared" else guess)
    return guesses
