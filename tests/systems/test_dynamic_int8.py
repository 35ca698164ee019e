# SPDX-License-Identifier: Apache-2.0
"""Row dynamic-int8: a network without calibration data becomes four times smaller and answers alike."""

import dataclasses

import rarefy as rf


def test_digits_without_calibration_data(digits_network, digits_task):
    bare = dataclasses.replace(digits_task, train=None, calibration=None)
    result = rf.compress(digits_network, bare, "dynamic-int8")
    first, last = (result.measurements[i] for i in (0, -1))
    assert last["metric"]["value"] >= first["metric"]["value"] - 0.01
    held = {layer["name"]: layer for layer in result.document["layers"]}
    assert held["fc1"]["bytes_after"] < 0.27 * held["fc1"]["bytes_before"]
    kernels = {k["layer"]: k for k in result.document["kernels"]}
    assert kernels["fc1"]["integer"]
    assert result.document["parity"]["passed"]
