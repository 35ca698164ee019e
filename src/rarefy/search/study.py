# SPDX-License-Identifier: Apache-2.0
"""Asking a sampler for candidates and telling it what came of them, silently and repeatably."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

EXCESS = "excess"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps optuna from logging and from warning of what is new in it."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def constrained_study(seed: int, startup: int) -> "Study":
    """A study that maximises a score under a constraint.

    Args:
        seed: of the sampler.
        startup: trials that are drawn at random before the model of good and bad ones is used.
    """
    import optuna

    settings: dict[str, Any] = {"seed": seed, "n_startup_trials": startup}
    if not hasattr(optuna.trial.Trial, "set_constraint"):  # before optuna 5
        settings["constraints_func"] = lambda trial: [trial.user_attrs[EXCESS]]
    sampler = optuna.samplers.TPESampler(**settings)
    return optuna.create_study(direction="maximize", sampler=sampler)


def run_study(
    study: "Study",
    trials: int,
    evaluate: Callable[["Trial"], tuple[float, float]],
) -> None:
    """Asks and tells `trials` times.

    Args:
        study: from `constrained_study`.
        trials: how often.
        evaluate: trial → (score, excess); an excess above 0 means that the constraint is broken.
    """
    for _ in range(trials):
        trial = study.ask()
        score, excess = evaluate(trial)
        trial.set_user_attr(EXCESS, excess)
        if hasattr(trial, "set_constraint"):
            trial.set_constraint(EXCESS, excess)
        study.tell(trial, score)
