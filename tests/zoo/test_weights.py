# SPDX-License-Identifier: Apache-2.0
"""The trained weights that ship are readable by this version, bit for bit the ones that were trained."""

import hashlib

import numpy as np
import pytest
import torch

from rarefy.store.pack import load_tensors
from rarefy.zoo.models import WEIGHTS, load_model

# first 16 digits of the SHA-256 of all tensors' bytes in the file's order
TRAINED = {"lenet5@mnist": "b4afdfc0b6e33b4c", "resnet20@cifar10": "628ba2b29263079d"}


def test_all_that_ship_are_named_and_small() -> None:
    shipped = {path.stem: path.stat().st_size for path in WEIGHTS.glob("*.rfy")}
    assert shipped.keys() == TRAINED.keys()
    assert sum(shipped.values()) <= 3_000_000


@pytest.mark.parametrize("name", TRAINED)
def test_they_are_the_ones_that_were_trained(name: str) -> None:
    tensors = load_tensors(WEIGHTS / f"{name}.rfy")
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    assert hashlib.sha256(data).hexdigest()[:16] == TRAINED[name]
    state = load_model(f"zoo:{name}").state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[n], torch.from_numpy(tensors[n])) for n in state)
