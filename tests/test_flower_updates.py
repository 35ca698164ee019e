# SPDX-License-Identifier: Apache-2.0
"""The example of federated learning, without Flower: its workers and its server through the codec."""

import runpy
from pathlib import Path

import numpy as np

from rarefy.store.updates import UpdateCodec

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "flower_updates.py"))


def test_clients_learn_together_with_a_twentieth_of_the_bytes() -> None:
    workers = EXAMPLE["workers"](3, UpdateCodec(0.1, 4))
    averager = EXAMPLE["Averager"](EXAMPLE["weights_of"](EXAMPLE["network"]()))
    before = averager.accuracy()
    for _ in range(8):
        messages = [worker.round(averager.weights) for worker in workers]
        averager.take(messages, [len(worker.labels) for worker in workers])
    whole = sum(w.nbytes for w in averager.weights.values()) * len(workers) * 8
    assert sum(averager.received) * 20 < whole
    assert averager.accuracy() > max(0.7, before + 0.5)
    assert all(np.isfinite(w).all() for w in averager.weights.values())
