# SPDX-License-Identifier: Apache-2.0
"""Recipes: two spellings of the same thing, and one sentence for every mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.errors import RecipeError
from rarefy.methods import METHODS
from rarefy.prune.prune_weights import PruneWeights
from rarefy.quantize.share_weights import ShareWeights
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import Recipe, load_recipe, method, recipe_text
from rarefy.systems.catalogue import find_system, systems
from rarefy.task import Task

STEPS = (
    PruneWeights(sparsity=0.9, layers=("conv*", 3)),
    Distill(epochs=2, temperature=3.0),
    ShareWeights(bits=4, exclude="last"),
)


def test_yaml_and_python_are_two_spellings() -> None:
    recipe = Recipe(STEPS, "huffman")
    text = recipe.to_yaml()
    back = Recipe.from_yaml(text)
    assert (back.steps, back.coder) == (recipe.steps, recipe.coder)
    assert back.to_yaml() == text
    assert Recipe.from_yaml("steps: [finetune]").steps == (Finetune(),)
    assert Recipe.from_yaml("steps:\n  - finetune:\n").steps == (Finetune(),)


@pytest.mark.parametrize("name", sorted(systems()))
def test_every_published_system_is_a_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.from_yaml(recipe.to_yaml()).steps == recipe.steps
    system = find_system(name)
    assert system.claim
    assert 1950 < system.year < 2100


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_are_listed_under_their_own_key(name: str) -> None:
    assert method(name).key() == name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps: [", "r.yaml:1: this is no YAML"),
        ("- finetune", "r.yaml: a recipe is a mapping with a list 'steps'"),
        ("", "r.yaml: a recipe is a mapping with a list 'steps'"),
        ("steps: finetune", "r.yaml: a recipe is a mapping with a list 'steps'"),
        ("steps: []\nsteeps: []", "r.yaml:2: a recipe has no field 'steeps'; did you mean 'steps'?"),
        ("steps: []\ncoder: hufman", "r.yaml:2: coder 'hufman'; did you mean 'huffman'?"),
        ("steps:\n  - finetun\n", "r.yaml:2: there is no method 'finetun'; did you mean 'finetune'?"),
        ("steps:\n  - finetune\n  - 3\n", "r.yaml:3: a step is a name, or one name with its fields"),
        (
            "steps:\n  - finetune: {}\n    distill: {}\n",
            "r.yaml:2: a step is a name, or one name with its fields",
        ),
        ("steps:\n  - finetune: [3]\n", "r.yaml:2: the fields of finetune are no mapping but [3]"),
        (
            "steps:\n  - prune-weights:\n      allocation: global\n      sparcity: 0.5\n",
            "r.yaml:4: prune-weights has no field 'sparcity'; did you mean 'sparsity'?",
        ),
        (
            "steps:\n  - finetune\n  - prune-weights:\n      layers: '*'\n      sparsity: 1.5\n",
            "r.yaml:5: prune-weights: sparsity=1.5 is not allowed: input should be less than",
        ),
        ("steps:\n  - prune-weights: {sparsity: many}", "r.yaml:2: prune-weights: sparsity='many'"),
        (
            "steps:\n  - finetune: {epochs: 2}\n  - distill:\n      precision: no\n",
            'r.yaml:4: distill: YAML reads precision: no as False; put quotes around it: precision: "no"',
        ),
    ],
)  # fmt: skip
def test_mistakes_name_line_field_and_way_out(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith(complaint)
    assert "\n" not in message


def test_what_needs_quotes_is_written_with_quotes() -> None:
    step = PruneWeights(sparsity=0.5, granularity="2:4")
    text = Recipe((step, Distill(precision="no"))).to_yaml()
    assert "'2:4'" in text
    assert Recipe.from_yaml(text).steps[0] == step
    quoted = (
        'steps: [prune-weights: {sparsity: 0.5, granularity: "2:4"}, distill: {precision: "no"}]'
    )
    assert Recipe.from_yaml(quoted).steps == (step, Distill(precision="no"))


def test_files_that_hold_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="r.yaml' can't be read as text"):
        load_recipe(path)


def test_yaml_can_make_no_objects() -> None:
    with pytest.raises(RecipeError, match="this is no YAML"):
        Recipe.from_yaml("steps: !!python/object/apply:os.getcwd []")


def test_order_is_checked_when_the_recipe_is_made() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe((StaticInt8(), PruneWeights(sparsity=0.5)))
    message = str(caught.value)
    assert message.startswith("prune-weights can't come after static-int8")
    assert message.endswith("put prune-weights first")


def toy(**fields: object) -> Task:
    return Task("toy", torch.zeros(1, 3), **fields)  # type: ignore[arg-type]


def test_needs_are_checked_against_the_task() -> None:
    batches = DataLoader(TensorDataset(torch.zeros(4, 3), torch.zeros(4).long()), 2)
    with pytest.raises(RecipeError, match=r"step 2 \(finetune\) needs .*labels"):
        Recipe((PruneWeights(), Finetune())).check(toy(train=batches, labelled=False))
    with pytest.raises(RecipeError, match=r"step 1 \(distill\) needs training data"):
        Recipe((Distill(),)).check(toy(validation=batches))
    with pytest.raises(RecipeError, match=r"step 1 \(static-int8\) needs calibration data"):
        Recipe((StaticInt8(),)).check(toy())
    Recipe((StaticInt8(),)).check(toy(validation=batches))


def test_recipes_by_name_and_by_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: [finetune]\n")
    assert load_recipe(path) == Recipe((Finetune(),), name="mine")
    with pytest.raises(RecipeError, match="there is no system 'deep-compresion'; did you mean"):
        load_recipe("deep-compresion")
    with pytest.raises(RecipeError, match="there is no recipe file 'nowhere.yaml'"):
        recipe_text("nowhere.yaml")


def test_names_are_checked_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("steps: [finetune, finetun]")
    code = (
        "import sys; from rarefy.recipe import recipe_text; recipe_text('int8')\n"
        "from rarefy.systems.catalogue import systems\n"
        "from rarefy.errors import RecipeError\n"
        "assert systems()\n"
        "try: recipe_text(sys.argv[1])\n"
        "except RecipeError as error: assert 'finetune' in str(error)\n"
        "else: raise AssertionError\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
