# SPDX-License-Identifier: Apache-2.0
"""Row half-precision: the short name of fp16."""

from rarefy.recipe import load_recipe


def test_it_is_fp16_by_another_name():
    assert load_recipe("half-precision").steps == load_recipe("fp16").steps
