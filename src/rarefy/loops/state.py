# SPDX-License-Identifier: Apache-2.0
"""Where a training stands between two epochs: its checkpoint, its record, its end."""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.loops.optimise import Average, Training
from rarefy.loops.progress import visible
from rarefy.store.checkpoint import load_state, save_state

CHECKPOINT = "training.safetensors"


@dataclass(frozen=True)
class Watch:
    """What a training reports to and is judged by.

    Attributes:
        label: names the training in the progress bar and in errors.
        evaluate: ``model -> metric`` after every epoch, for early stopping and the record; or None.
        higher_is_better: direction of that metric.
        history: receives one dict an epoch: epoch, loss, rate, seconds and, if evaluated, metric.
        folder: where a checkpoint is left after every epoch, or None.
        after_step: called after every optimiser step, for methods that project the weights.
        aloud: tells of every epoch on stderr, also where that is no terminal.
    """

    label: str = "train"
    evaluate: Callable[[nn.Module], float] | None = None
    higher_is_better: bool = True
    history: list[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None
    after_step: Callable[[], None] | None = None
    aloud: bool = False


@dataclass
class Run:
    """The state of a training between two epochs; what a checkpoint holds."""

    model: nn.Module
    optimiser: Any
    average: Average | None
    signature: str
    epoch: int = 0
    best: float | None = None
    best_state: dict[str, Tensor] | None = None
    since_best: int = 0

    def stopped(self, settings: Training) -> bool:
        """Whether patience is at an end."""
        return settings.patience is not None and self.since_best > settings.patience

    def save(self, watch: Watch) -> None:
        """Leaves a checkpoint in the folder, if there is one."""
        if watch.folder is None:
            return
        state = {
            "signature": self.signature,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.tensors if self.average else None,
            "average_steps": self.average.steps if self.average else 0,
            "best": [self.best, self.best_state, self.since_best],
            "history": watch.history,
        }
        save_state(watch.folder / CHECKPOINT, state)

    def load(self, watch: Watch) -> None:
        """Goes on from the folder's checkpoint, if it is of this very training."""
        path = watch.folder / CHECKPOINT if watch.folder else None
        if path is None or not path.is_file():
            return
        state = load_state(path)
        if state["signature"] != self.signature:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch = state["epoch"]
        self.best, self.best_state, self.since_best = state["best"]
        if self.average:
            self.average.tensors, self.average.steps = state["average"], state["average_steps"]
        watch.history[:] = state["history"]


def finish_epoch(run: Run, watch: Watch, settings: Training, loss: float, seconds: float) -> None:
    """Evaluates, records and leaves a checkpoint."""
    run.epoch += 1
    rate = run.optimiser.param_groups[0]["lr"]
    row: dict[str, Any] = {"epoch": run.epoch, "loss": loss, "rate": rate, "seconds": seconds}
    if watch.evaluate is not None:
        judged = run.model
        if run.average:
            judged = copy.deepcopy(run.model)
            run.average.store(judged)
        row["metric"] = value = watch.evaluate(judged.eval())
        sign = 1 if watch.higher_is_better else -1
        if run.best is None or sign * value > sign * run.best:
            run.best, run.since_best = value, 0
            if settings.patience is not None:
                run.best_state = {k: v.detach().clone() for k, v in judged.state_dict().items()}
        else:
            run.since_best += 1
    watch.history.append(row)
    if visible() or watch.aloud:
        report(watch.label, row, settings.epochs)
    run.save(watch)


def report(label: str, row: dict[str, Any], epochs: int) -> None:
    """One line on stderr about a finished epoch."""
    metric = f", metric {row['metric']:.4f}" if "metric" in row else ""
    text = f"{label}: epoch {row['epoch']}/{epochs}, loss {row['loss']:.4f}{metric}, {row['seconds']:.0f} s"
    print(text, file=sys.stderr, flush=True)


def conclude(run: Run, watch: Watch) -> None:
    """Puts the best or the averaged weights into the model and removes the checkpoint."""
    if run.best_state is not None:
        run.model.load_state_dict(run.best_state)
    elif run.average:
        run.average.store(run.model)
    run.model.eval()
    if not all(
        math.isfinite(float(p.detach().abs().max())) for p in run.model.parameters() if p.numel()
    ):
        raise ModelError(
            f"'{watch.label}' ended with weights that are not finite; lower the learning rate"
        )
    if watch.folder is not None:
        (watch.folder / CHECKPOINT).unlink(missing_ok=True)
