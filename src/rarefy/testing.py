# SPDX-License-Identifier: Apache-2.0
"""The conformance suite that every method must pass, ours and yours: `check_step`."""

import contextlib
import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rarefy.compress import apply_step, check
from rarefy.errors import FileError, RecipeError
from rarefy.export.onnx import export_onnx
from rarefy.export.parity import check_parity
from rarefy.forms.shadow import bake, forms_of
from rarefy.forms.snapshot import restore, snapshot
from rarefy.graph.calls import record_calls
from rarefy.graph.fold import foldable
from rarefy.measure.quality import batches_of
from rarefy.recipe import Recipe
from rarefy.select import select
from rarefy.step import Context, Step
from rarefy.store.pack import pack
from rarefy.task import Task, call, logits_of, tensors_of

GROWTH = 1.02  # retrained float weights may code a little worse than the original's
ROUNDING = 1e-5  # of the output's range


class ConformanceError(AssertionError):
    """A promise that a step breaks, in a sentence."""


@dataclass(frozen=True)
class Subject:
    """A step, and a network and task to try it on.

    Every check works on copies; nothing that is given here is changed.
    """

    step: Step
    model: nn.Module
    task: Task
    seed: int = 0

    @cached_property
    def teacher(self) -> nn.Module:
        """What is handed in as the untouched original."""
        return copy.deepcopy(self.model).eval()

    def apply(self, step: Step | None = None) -> nn.Module:
        """The step's result on a fresh copy of the network."""
        context = Context(self.task, self.teacher, torch.device("cpu"), self.seed)
        return apply_step(step or self.step, copy.deepcopy(self.model).eval(), context)[0]

    @cached_property
    def once(self) -> nn.Module:
        """The result that most checks look at; they copy it before they change it."""
        return self.apply()

    @cached_property
    def program(self) -> bytes:
        """The exported result."""
        return export_onnx(bake(copy.deepcopy(self.once)), self.task.example).SerializeToString()

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """What a network gives on the task's example, in eval mode."""
        with torch.no_grad():
            return [t.clone() for t in tensors_of(call(model.eval(), self.task.example))]


def check_step(step: Step, model: nn.Module, task: Task, *, seed: int = 0) -> None:
    """Checks everything that a method promises.

    The list is `PROMISES`: output shape, layers that were not selected, seed, teacher, YAML, further
    training, snapshot, baking, export, size of the file.

    Args:
        step: the method, with little training.
        model: a small network on the CPU; it stays untouched.
        task: data that the step needs, few.
        seed: of every application.

    Raises:
        ConformanceError: naming the step, what it promised and what was found.
        RarefyError: the step can't be applied to this network and task at all.

    Examples:
        def test_my_method():
            check_step(MyMethod(sparsity=0.5), model, task)
    """
    check(model, task, Recipe((step,)))
    subject = Subject(step, model, task, seed)
    for promise in PROMISES:
        complaint = promise(subject)
        if complaint is not None:
            raise ConformanceError(f"{step}: {complaint}")


def survives_yaml(subject: Subject) -> str | None:
    """A recipe's text holds all fields."""
    text = Recipe((subject.step,)).to_yaml()
    try:
        (back,) = Recipe.from_yaml(text).steps
    except RecipeError as error:
        if "there is no method" not in str(error):
            return f"its YAML can't be read again: {error}"
        # a method of the user's own is not in the list of methods, but its fields are data all the same
        back = type(subject.step)(**json.loads(json.dumps(subject.step.settings())))
    return None if back == subject.step else f"its YAML reads as {back}"


def keeps_shape(subject: Subject) -> str | None:
    """The outputs have the shapes that they had."""
    before = [tuple(t.shape) for t in subject.outputs(subject.teacher)]
    after = [tuple(t.shape) for t in subject.outputs(subject.once)]
    return None if before == after else f"outputs of shape {before} became {after}"


def is_deterministic(subject: Subject) -> str | None:
    """Two applications under one seed give the same tensors, whatever was drawn before."""
    torch.rand(7)
    (one, first), (two, second) = snapshot(subject.once), snapshot(subject.apply())
    wrong = different(first, second) or (None if one == two else "the structure")
    return f"two runs under one seed differ in {wrong}" if wrong else None


def spares_teacher(subject: Subject) -> str | None:
    """The network that is handed in as teacher is the same after an application."""
    structure, tensors = snapshot(copy.deepcopy(subject.model).eval())
    if subject.once is subject.teacher:
        return "it returned the teacher"
    after, now = snapshot(subject.teacher)
    wrong = different(tensors, now) or ("the structure or mode" if after != structure else None)
    return f"it changed {wrong} of the teacher" if wrong else None


def spares_unselected(subject: Subject) -> str | None:
    """Layers that were not selected wear no form and, where nothing trains, are bit for bit the same.

    A layer whose batch norm is gone took it in, which is allowed.
    """
    names = {f.name for f in dataclasses.fields(subject.step)}
    layers = select(subject.model)
    if "layers" not in names or len(layers) < 2:
        return None
    first, trains = layers[0].name, "epochs" in names
    step = dataclasses.replace(subject.step, **{"layers": (first,)})
    with contextlib.suppress(RecipeError):  # not every method can do without its training
        step, trains = dataclasses.replace(step, **({"epochs": 0} if trains else {})), False
    result = subject.apply(step)
    calls = record_calls(copy.deepcopy(subject.model), subject.task.example)
    modules = dict(result.named_modules())
    folded = {a for a, b in foldable(subject.model, calls) if isinstance(modules[b], nn.Identity)}
    for layer in layers[1:]:
        module = modules[layer.name]
        if forms_of(module, layer.tensor):
            return f"with layers='{first}' it put a form on '{layer.name}'"
        now, w = getattr(module, layer.tensor), layer.weight
        mended = now.numel() < w.numel()  # it lost channels
        if not (mended or torch.equal(now, w) or trains or layer.name in folded):
            return f"with layers='{first}' it changed '{layer.name}'"
    return None


def trains_on(subject: Subject) -> str | None:
    """train() and backward work, and no gradient is infinite or NaN."""
    model = copy.deepcopy(subject.once).train()
    given = tree_map(
        lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), subject.task.example
    )
    logits_of(call(model, given)).float().square().mean().backward()
    trained = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
    if not trained and all(t.grad is None for t in tensors_of(given)):
        return "no gradient reaches weights or inputs afterwards"
    wrong = next((n for n, p in trained if not bool(torch.isfinite(p.grad).all())), None)  # type: ignore[arg-type]
    return f"the gradient of '{wrong}' is not finite afterwards" if wrong else None


def snapshots_exactly(subject: Subject) -> str | None:
    """The network comes back from a snapshot bit for bit, so that a stage can be resumed."""
    structure, tensors = snapshot(subject.once)
    try:
        back = restore(copy.deepcopy(subject.model), json.loads(json.dumps(structure)), tensors)
    except FileError as error:
        return f"its stage can't be resumed: {error}"
    again, found = snapshot(back)
    wrong = different(tensors, found) or (None if again == structure else "the structure")
    if wrong:
        return f"a restored snapshot differs in {wrong}"
    pairs = zip(subject.outputs(subject.once), subject.outputs(back), strict=True)
    return (
        None
        if all(torch.equal(a, b) for a, b in pairs)
        else "a restored snapshot computes other values"
    )


def bakes_exactly(subject: Subject) -> str | None:
    """Finishing the weights changes no output beyond rounding."""
    before = subject.outputs(subject.once)
    after = subject.outputs(bake(copy.deepcopy(subject.once)))
    for a, b in zip(before, after, strict=True):
        off = float((a - b).abs().max() / (a.max() - a.min()).clamp(min=1e-12))
        if off > ROUNDING:
            return f"baking moved an output by {off:.2g} of its range"
    return None


def exports_faithfully(subject: Subject) -> str | None:
    """The exported file computes in the runtime what the network computes."""
    batches = list(batches_of(subject.task, "calibration", 64))
    parity = check_parity(bake(copy.deepcopy(subject.once)), subject.program, batches)
    where = f", first in '{parity.first_diverging_layer}'" if parity.first_diverging_layer else ""
    off = f"{parity.max_relative:.2g} of the output's range, {parity.tolerance:.2g} allowed"
    return None if parity.passed else f"the exported file is off by {off}{where}"


def does_not_grow(subject: Subject) -> str | None:
    """The stored file is no larger than that of the network as it came."""
    original = export_onnx(copy.deepcopy(subject.model), subject.task.example).SerializeToString()
    with tempfile.TemporaryDirectory(prefix="rarefy-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(original)
        before = pack(path, path.with_suffix(".rfy"))
        path.write_bytes(subject.program)
        after = pack(path, path.with_suffix(".rfy"))
    grown = f"the stored file grew from {before} to {after} bytes"
    return grown if after > before * GROWTH else None


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """The first name, in quotes, under which two collections differ in a bit, or None."""
    names = sorted(one.keys() ^ other.keys()) or (
        n for n in one if not torch.equal(one[n], other[n])
    )
    return next((f"'{name}'" for name in names), None)


PROMISES: tuple[Callable[[Subject], str | None], ...] = (
    survives_yaml, keeps_shape, spares_teacher, is_deterministic, spares_unselected,
    trains_on, snapshots_exactly, bakes_exactly, exports_faithfully, does_not_grow,
)  # fmt: skip
