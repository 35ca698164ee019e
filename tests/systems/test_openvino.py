# SPDX-License-Identifier: Apache-2.0
"""Row openvino: the runtime gives the emulated answers, in integer kernels throughout."""

import pytest

import rarefy as rf


@pytest.fixture(scope="module")
def result(digits_network, digits_task):
    return rf.compress(digits_network, digits_task, "openvino", runtime="openvino")


def test_the_runtime_gives_the_emulated_answers(result):
    parity = result.document["parity"]
    assert parity["runtime"] == "openvino"
    assert parity["passed"]
    assert parity["agreement"] >= 0.99
    first, last = result.measurements[0], result.measurements[-1]
    assert last["metric"]["through"] == "openvino"
    assert last["metric"]["value"] >= first["metric"]["value"] - 0.01


def test_every_product_is_computed_in_integers(result):
    assert [kernel["integer"] for kernel in result.document["kernels"]] == [True] * 4
    assert (
        "openvino computes 4 of 4 convolutions and matrix products in int8"
        in (result.document["notes"])
    )
    assert result.measurements[-1]["latency_ms"]["precision"] == "int8"


def test_float_baselines_are_pinned_and_told(result):
    baseline = result.measurements[0]["latency_ms"]
    assert (baseline["runtime"], baseline["precision"]) == ("openvino", "float32")
    assert baseline["ratio_to_onnxruntime"] > 0
    assert result.measurements[-1]["latency_batches"][0]["batch"] == 8
    environment = result.document["environment"]
    assert environment["precision"] == "float32"
    assert environment["openvino"]


def test_every_layer_tells_its_signal_to_noise(result):
    noise = [layer["sqnr_db"] for layer in result.document["layers"]]
    assert len(noise) == 4
    assert all(20 < value < 80 for value in noise)
