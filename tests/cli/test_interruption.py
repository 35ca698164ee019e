# SPDX-License-Identifier: Apache-2.0
"""A compression that is killed or interrupted goes on and ends in the same bytes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .command import FILES, USER, Outcome, files, rarefy, spawn

RECIPE = "steps:\n  - prune-weights: {sparsity: 0.5}\n  - distill: {epochs: 4}\n"
SAME = ("model.onnx", "model.rfy", "recipe.yaml")


def command(out: Path) -> tuple[object, ...]:
    """A compression in whose second step the network is trained for four epochs."""
    recipe = out.parent / "r.yaml"
    recipe.write_text(RECIPE)
    return "compress", f"{USER}:net", f"{USER}:fatal", "--recipe", recipe, "--out", out


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where pytest's own workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, out, log = tmp_path / "undisturbed", tmp_path / "out", tmp_path / "log"
    monkeypatch.setenv("STOP_LOG", str(log))

    def epochs() -> int:
        """Epochs that were begun since the last call."""
        begun = len(log.read_text().splitlines())
        log.write_text("")
        return begun

    assert rarefy(*command(undisturbed)).code == 0
    assert epochs() == 4

    monkeypatch.setenv("STOP_EPOCH", "2")
    monkeypatch.setenv("STOP_SIGNAL", str(int(signal.SIGINT)))
    stopped = rarefy(*command(out))
    assert (stopped.code, stopped.out) == (130, "")
    (line,) = filter(None, stopped.err.splitlines())
    assert line == (
        "rarefy: interrupted; run the same command again to go on after the last finished step"
    )
    assert epochs() == 2, "a whole one and a half"

    monkeypatch.setenv("STOP_SIGNAL", str(int(signal.SIGKILL)))
    assert spawn(*command(out)) == Outcome(-signal.SIGKILL, "", "")
    assert epochs() == 2, "the half one again, and half of the third"
    assert [p.name for p in out.iterdir()] == [".stages"]

    monkeypatch.delenv("STOP_EPOCH")
    assert rarefy(*command(out)).code == 0
    assert epochs() == 2, "the third again, and the last"
    found, expected = files(out), files(undisturbed)
    assert tuple(found) == FILES
    assert all(found[name] == expected[name] for name in SAME)
