# SPDX-License-Identifier: Apache-2.0
"""Linear layers, convolutions and embeddings become sequences of smaller standard layers.

The decompositions are parts of their own (see `rarefy.factorize.decompositions`), so are the choice of
ranks (given, energy, variational Bayes, budget), the fit (of weights or of outputs) and the closed-form
repair under already changed predecessors. Training afterwards is the next step of the recipe.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import nn
from torch.nn.utils import parametrize

from rarefy.budget import Budget
from rarefy.errors import RecipeError
from rarefy.factorize.decompositions import Name
from rarefy.factorize.replace import replace
from rarefy.factorize.sites import look
from rarefy.factorize.work import Work, chains_for
from rarefy.forms.shadow import bake_one
from rarefy.select import select
from rarefy.step import Context, Count, Patterns, Step
from rarefy.task import move

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
BUDGET = r"(macs|parameters|latency)=(0\.\d{1,4}|[1-9]\d{0,11}(/[1-9]\d{0,3})?(ms|us|k|m)?)"
BY_ERROR = ("greedy", "exact")


@dataclass(frozen=True)
class Factorize(Step):
    """Replaces layers by sequences of smaller ones that compute nearly the same.

    A layer stays as it is where the factors would have more weights or multiplications than it has, where it
    is not called as a plain layer (the record says why), and, on demand, where the factors are slower.

    Attributes:
        decomposition: ``"svd"`` (k x k, 1 x 1), ``"channel"`` (1 x 1, k x k), ``"spatial"`` (k x 1, 1 x k,
            closed form), ``"spatial-alternating"`` (the same by least squares in turns), ``"separable"``
            (k x 1 and 1 x k for each channel, 1 x 1), ``"tucker"``, ``"cp"``, ``"tensor-train"``. Matrices
            and windows that leave nothing to split get the SVD.
        rank: with allocation ``"given"``: a number, one number for each rank, or a share of the full rank
            (write 1.0 for all of it).
        ranks: the same for some layers by pattern, in the place of `rank`; other layers stay.
        allocation: of ranks: ``"given"``, ``"energy"``, ``"vbmf"`` (variational Bayes), or, for all layers
            together under `budget` by measured errors, ``"greedy"`` or ``"exact"`` (dynamic programming).
        energy: share of the squared singular values to keep, for allocation ``"energy"``.
        budget: for ``"greedy"`` and ``"exact"``: ``"macs=0.5"``, ``"parameters=1/4"``, ``"latency=5ms"``;
            up to 1 a share of the whole network's; latency is measured in ONNX Runtime, layer by layer.
        fit: ``"weights"``, or ``"outputs"`` on calibration data (activation-aware).
        repair: by layer, towards the original's outputs: ``"none"``, ``"bias"`` or ``"least-squares"``.
        slower: what to do with a layer whose factors take longer in ONNX Runtime by measurement: ``"allow"``
            (without measuring), ``"report"`` or ``"refuse"``.
        start: of the factors: the ``"weights"``, or ``"random"`` to train from scratch.
        norms: a batch norm behind every factor; for a random start.
        sweeps: of alternating methods, at most.
        examples: calibration examples that are seen, at most.
        damping: pull towards the weights where the calibration data say little.
        layers: which layers, see `rarefy.select.select`; embeddings must be asked for.
        exclude: layers to leave alone.
    """

    decomposition: Name = "svd"
    rank: Count | Share | tuple[Count, ...] = 0.25
    ranks: dict[str, Count | Share | tuple[Count, ...]] | None = None
    allocation: Literal["given", "energy", "vbmf", "greedy", "exact"] = "given"
    energy: Share = 0.9
    budget: Annotated[str, Field(pattern=f"^{BUDGET}$")] = "macs=0.5"
    fit: Literal["weights", "outputs"] = "weights"
    repair: Literal["none", "bias", "least-squares"] = "none"
    slower: Literal["allow", "report", "refuse"] = "allow"
    start: Literal["weights", "random"] = "weights"
    norms: bool = False
    sweeps: Count = 20
    examples: Count = 128
    damping: Annotated[float, Field(ge=0)] = 1e-4
    layers: Patterns = "*"
    exclude: Patterns = ()

    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    def __post_init__(self) -> None:
        super().__post_init__()
        Budget.parse(self.budget)
        if self.rank == () or (self.ranks is not None and () in self.ranks.values()):
            raise RecipeError("factorize: rank=[] names no rank; give a number or a share")
        if self.ranks is not None and self.allocation != "given":
            raise RecipeError(
                f"factorize: ranks are given by hand and allocation={self.allocation} would choose them; "
                "leave one of the two out"
            )
        if self.start == "random" and (self.on_data or self.allocation != "given"):
            raise RecipeError(
                "factorize: start=random knows no weights to fit; take allocation=given, fit=weights and "
                "repair=none, and train afterwards"
            )
        if self.norms and self.start != "random":
            raise RecipeError(
                "factorize: norms=True is for start=random; weights have none to keep"
            )
        object.__setattr__(self, "needs", frozenset({"calibration"} if self.on_data else ()))

    @property
    def on_data(self) -> bool:
        """Whether calibration data are read."""
        return self.fit == "outputs" or self.repair != "none" or self.allocation in BY_ERROR

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Chooses ranks, factorises layer by layer, and puts the factors into the layers' places."""
        example = move(context.task.example, context.device)
        chosen = select(model, self.layers, exclude=self.exclude)
        sites, reasons = look(model.eval(), chosen, example, self.decomposition)
        for site in sites:
            if parametrize.is_parametrized(site.layer.module, "weight"):
                bake_one(site.layer.module)
        work = Work(model, self, context, sites)
        chains = chains_for(work)
        notes = [f"'{path}' stays as it is: it {reason}" for path, reason in reasons.items()]
        context.record.setdefault("notes", []).extend([*notes, *work.notes])
        context.record["layers"] = work.rows
        return replace(model, chains, example) if chains else model
