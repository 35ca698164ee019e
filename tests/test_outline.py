# SPDX-License-Identifier: Apache-2.0
"""The outline of a recipe: whatever the text, either an outline or one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import RecipeError
from rarefy.methods import METHODS
from rarefy.outline import read_outline
from rarefy.recipe import Recipe

PIECES = [
    "steps", ": ", ":\n", "[", "]", "{", "}", "- ", "\n", "  ", ", ", "finetune", "prune-weights",
    "epochs", "sparsity", "layers", "coder", "huffman", "0.5", "2:4", "'2:4'", "3", "-1", "1e3", ".nan",
    ".inf", "null", "no", "2001-13-45", "0b", "0o9", "!!int x", "!!python/object:os.system", "&a ",
    "*a", "<<", "? ", "|", ">", "#", "%", "@", "`", '"', "\t", "\u2028", "\x00", "\ufeff", "---\n", "...\n",
]  # fmt: skip


def complaint_of(text: str) -> str | None:
    """What is said against a text; None if it is a recipe, which then survives being written."""
    try:
        recipe = Recipe.from_yaml(text, "r.yaml")
    except RecipeError as error:
        return str(error)
    assert Recipe.from_yaml(recipe.to_yaml()).steps == recipe.steps
    return None


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40))
def test_any_text_gives_a_recipe_or_one_sentence(text: str) -> None:
    for whole in (text, f"steps:\n  - prune-weights: {{{text}}}\n"):
        complaint = complaint_of(whole)
        assert complaint is None or len(complaint.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "steps:\n  - prune-weights:\n      sparsity: 0.5\n      granularity: 2:4\n",
            'r.yaml:4: YAML reads 2:4 as the number 124; put quotes around it: "2:4"',
        ),
        ("steps: []\nyear: 1:30.5", "r.yaml:2: YAML reads 1:30.5 as the number 90.5; put quotes"),
        ("steps:\n  - finetune: {epochs: 1, epochs: 2}", "r.yaml:2: 'epochs' is given twice"),
        ("steps: []\nsteps: []", "r.yaml:2: 'steps' is given twice"),
        ("steps: []\n3: x", "r.yaml:2: the name of a field is no word"),
        ("steps:\n  - &a finetune\n  - *a\n", "r.yaml:2: write out what the alias (*) stands for"),
        ("steps: []\nyear: 2001-13-45", "r.yaml: a value can't be read: month must be in 1..12"),
        ("[" * 5000, "r.yaml: this is nested too deeply"),
        ("\x00", "r.yaml: this is no YAML"),
    ],
)
def test_traps_of_yaml(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_outline(text, "r.yaml")
    assert str(caught.value).startswith(complaint)


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_a_misspelt_method_is_guessed(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    with pytest.raises(RecipeError, match=f"there is no method '{wrong}'; did you mean '{name}'"):
        read_outline(f"steps: [{wrong}]", "r.yaml")
