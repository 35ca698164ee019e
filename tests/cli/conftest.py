# SPDX-License-Identifier: Apache-2.0
"""One trained network as a file, and one result of a compression, for all tests of commands."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from .command import rarefy

RECIPE = "steps:\n  - prune-weights: {sparsity: 0.8}\n  - distill: {epochs: 1}\n  - static-int8\n"


@pytest.fixture(scope="session")
def weights(digits_network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits network as a .safetensors file."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(digits_network.state_dict(), str(path))
    return path


@pytest.fixture(scope="session")
def result(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compressed digits network; only to be read."""
    folder = tmp_path_factory.mktemp("result")
    recipe = folder / "pruned.yaml"
    recipe.write_text(RECIPE)
    command = ("compress", "zoo:digits-net", "digits", "--weights", weights)
    done = rarefy(*command, "--recipe", recipe, "--out", folder / "out")
    assert (done.code, done.err) == (0, "")
    assert f"report: {folder / 'out' / 'report.html'}" in done.out
    return folder / "out"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which the command is started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
