# SPDX-License-Identifier: Apache-2.0
"""Recipes and budgets that are wrong: one sentence, and not even the folder of the result is left."""

from pathlib import Path

import pytest

from .command import USER, rarefy

MINE = (f"{USER}:net", f"{USER}:task")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps: [finetun]", "r.yaml:1: there is no method 'finetun'; did you mean 'finetune'?"),
        (
            "steps:\n  - prune-weights:\n      layers: '*'\n      sparcity: 0.5\n",
            "r.yaml:4: prune-weights has no field 'sparcity'; did you mean 'sparsity'?",
        ),
        (
            "steps:\n  - finetune\n  - prune-weights:\n      sparsity: 1.5\n",
            "r.yaml:4: prune-weights: sparsity=1.5 is not allowed: input should be less than",
        ),
        ("steps:\n  - prune-weights: {granularity: 2:4}\n", "r.yaml:2: YAML reads 2:4 as the number"),
        ("steps:\n  - distill: {precision: no}\n", "as False; put quotes around it"),
        ("steps:\n  - fixed-point: {granularity: layer}\n", "'tensor' or 'channel'"),
        ("steps: [static-int8, prune-weights]", "prune-weights can't come after static-int8"),
        ("steps:\n\t- finetune\n", "r.yaml:2: this is no YAML"),
        ("steps: 3", "r.yaml: a recipe is a mapping with a list 'steps'"),
        ("", "r.yaml: a recipe is a mapping with a list 'steps'"),
    ],
)  # fmt: skip
def test_a_wrong_recipe(text: str, complaint: str, here: Path) -> None:
    (here / "r.yaml").write_text(text)
    done = rarefy("compress", *MINE, "--recipe", "r.yaml", "--out", "new/out")
    assert complaint in done.sentence()
    assert [p.name for p in here.iterdir()] == ["r.yaml"]


def test_an_unquoted_ratio_is_told_how_to_be_written(here: Path) -> None:
    (here / "r.yaml").write_text("steps:\n  - prune-weights:\n      granularity: 2:4\n")
    done = rarefy("compress", *MINE, "--recipe", "r.yaml", "--out", "out")
    assert done.sentence() == (
        'rarefy: r.yaml:3: YAML reads 2:4 as the number 124; put quotes around it: "2:4"'
    )


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("deep-compresion", "there is no system 'deep-compresion'; did you mean 'deep-compression'?"),
        ("xyz", "`rarefy systems` lists all "),
        ("nowhere.yaml", "there is no recipe file 'nowhere.yaml'"),
        (".", "there is no system '.'"),
    ],
)  # fmt: skip
def test_an_unknown_recipe(name: str, complaint: str, here: Path) -> None:
    done = rarefy("compress", *MINE, "--recipe", name, "--out", "out")
    assert complaint in done.sentence()
    assert not list(here.iterdir())


def test_a_recipe_that_is_no_text(here: Path) -> None:
    (here / "r.yaml").write_bytes(b"\x80\x02}q\x00.")
    done = rarefy("compress", *MINE, "--recipe", "r.yaml", "--out", "out")
    assert "'r.yaml' can't be read as text" in done.sentence()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sise=1/8", "there is no limit 'sise'; did you mean 'size'?"),
        ("size=small", "'small' is no quantity; write 1/8, 12%, 44kB or 5ms"),
        ("size", "'' is no quantity"),
        ("size=1/0", "'1/0' is no quantity"),
        ("size=1e999", "'1e999' is no quantity"),
        ("size=nan", "'nan' is no quantity"),
        ("size=0", "size=0.0 is not allowed: it must be greater than 0"),
        ("size=-1", "size=-1.0 is not allowed: it must be greater than 0"),
        ("metric_drop=-0.1", "metric_drop=-0.1 is not allowed: it must be 0 or greater"),
        ("size=5ms", "'5ms' is no quantity of bytes"),
        ("latency=3kB", "'3kB' is no quantity of milliseconds"),
        ("size=150%", "'150%' is more than the baseline"),
        ("size=1/8,size=1/4", "'size' is limited twice"),
        ("", "the budget is empty"),
    ],
)
def test_a_wrong_budget(text: str, complaint: str, here: Path) -> None:
    done = rarefy("compress", *MINE, "--budget", text, "--out", "out")
    assert complaint in done.sentence()
    assert not list(here.iterdir())


def test_neither_recipe_nor_budget(here: Path) -> None:
    assert "say how: --recipe" in rarefy("compress", *MINE, "--out", "out").sentence()
