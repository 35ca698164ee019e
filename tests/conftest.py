# SPDX-License-Identifier: Apache-2.0
"""What many tests share: one thread, and a network that has really learned the embedded digits."""

import copy
import os

# Threads that wait for each other on a busy machine make small networks ten times slower; the
# environment reaches the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAREFY_QUIET"] = "1"

import pytest
import torch
from hypothesis import settings
from torch import nn

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet
from rarefy.zoo.tasks import load_task

torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a busy machine is no failure
settings.load_profile("house")


@pytest.fixture(scope="session")
def digits_task() -> Task:
    """The embedded digits: 1,297 to train, 200 held back, 300 to test."""
    return load_task("digits")


@pytest.fixture(scope="session")
def digits_network(digits_task: Task) -> nn.Module:
    """A trained network; shared by the whole session, so copy it before changing it."""
    torch.manual_seed(0)
    return fit(DigitsNet(), digits_task, Training(epochs=12, rate=0.05), seed=0)


@pytest.fixture
def digits(digits_network: nn.Module, digits_task: Task) -> tuple[nn.Module, Task]:
    """A copy of the trained network that the test may spoil, and its task."""
    return copy.deepcopy(digits_network), digits_task
