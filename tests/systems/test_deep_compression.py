# SPDX-License-Identifier: Apache-2.0
"""Row deep-compression: the file decodes bit for bit to the weights that were measured, and only shrinks."""

import json

import numpy as np
import pytest
import torch

import rarefy as rf
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.measure.quality import evaluate
from rarefy.recipe import Recipe, load_recipe
from rarefy.store.pack import load_onnx
from rarefy.store.rfy import read

STEPS = """
steps:
  - prune-weights: {sparsity: 0.85, schedule: cubic, rounds: 2, epochs: 4, rate: 0.02}
  - share-weights: {bits: 5, epochs: 2}
coder: huffman
"""


@pytest.fixture(scope="module")
def compressed(digits_network, digits_task, tmp_path_factory):
    """The digits network after pruning, sharing and Huffman coding, saved."""
    model, task = digits_network, digits_task
    result = rf.compress(model, task, Recipe.from_yaml(STEPS))
    return model, task, result, result.save(tmp_path_factory.mktemp("dc"))


def test_the_system_is_pruning_then_sharing():
    assert [step.key() for step in load_recipe("deep-compression").steps] == [
        "prune-weights",
        "finetune",
        "share-weights",
    ]


def test_file_decodes_to_the_weights_that_were_evaluated(compressed):
    _, _, result, folder = compressed
    weights = dict(result.model.named_parameters())
    with read(folder / "model.rfy") as archive:
        for name, weight in weights.items():
            assert np.array_equal(archive[name], weight.detach().numpy()), name
    program = OnnxRuntime(load_onnx(folder / "model.rfy"))
    task = compressed[1]
    assert evaluate(program, task).value == result.measurements[-1]["metric"]["value"]


def test_every_layer_has_few_values_and_exact_zeros(compressed):
    _, _, result, _ = compressed
    weights = [p for p in result.model.parameters() if p.dim() > 1]
    assert all(len(torch.unique(w)) <= 32 for w in weights)
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros >= round(0.85 * sum(w.numel() for w in weights))


def test_each_stage_only_shrinks_and_everything_is_counted(compressed):
    _, _, result, folder = compressed
    sizes = [stage["bytes"]["rfy"] for stage in result.measurements[:-1]]
    assert sizes == sorted(sizes, reverse=True)
    last = result.measurements[-1]["bytes"]["rfy"]
    assert last == (folder / "model.rfy").stat().st_size
    assert last * 10 < result.measurements[0]["bytes"]["safetensors"]


def test_little_is_lost_and_the_evidence_says_so(compressed):
    model, task, result, folder = compressed
    before, after = (result.measurements[i]["metric"]["value"] for i in (0, -1))
    assert before == evaluate(model, task).value
    assert after >= before - 0.03
    document = json.loads((folder / "measurements.json").read_text())
    assert document["parity"]["passed"] is True
    assert document["stages"][-1]["metric"]["through"] == "onnxruntime"
