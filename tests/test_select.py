# SPDX-License-Identifier: Apache-2.0
"""Selecting layers by path, expression, type and place."""

import pytest
import torch
from torch import nn

from rarefy.errors import RecipeError
from rarefy.forms.mask import set_mask
from rarefy.select import describe, select, sharing


class Network(nn.Module):
    """Layers of every kind, with a tied embedding and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.LayerNorm([4, 6])  # has a weight of two axes
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
        self.up = nn.ConvTranspose1d(4, 2, 3)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.embed.weight
        self.again = self.stem


def names(model: nn.Module, patterns: object = "*", **options: object) -> list[str]:
    return [layer.name for layer in select(model, patterns, **options)]  # type: ignore[arg-type]


USUAL = ["stem", "blocks.0.0", "blocks.1.0", "up", "attention.out_proj"]


def plain() -> nn.Module:
    model = Network()
    model.head.weight = nn.Parameter(torch.randn(10, 8))
    return model


def test_default_is_every_weight_of_two_axes_but_embeddings_and_norms() -> None:
    assert names(plain()) == [*USUAL, "head"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("blocks.*", ["blocks.0.0", "blocks.1.0"]),
        ("re:blocks\\.[1-9]\\.0", ["blocks.1.0"]),
        ("type:Linear", ["blocks.0.0", "blocks.1.0", "attention.out_proj", "head"]),
        ("type:_ConvNd", ["stem", "up"]),
        ("type:Embedding", ["embed"]),
        ("embed", ["embed"]),
        (0, ["stem"]),
        (-1, ["head"]),
        (-6, ["stem"]),
        ("first", ["stem"]),
        ("last", ["head"]),
        (("last", "stem", 0), ["stem", "head"]),
        ("head.weight", ["head"]),
        ("attention.in_proj_weight", ["attention"]),
        ("*.in_proj_weight", ["attention"]),
    ],
)
def test_patterns(patterns: object, expected: list[str]) -> None:
    if patterns == "*.in_proj_weight":
        model = nn.ModuleDict({"body": plain()})
        assert names(model, patterns) == ["body.attention"]
    else:
        assert names(plain(), patterns) == expected


@pytest.mark.parametrize("patterns", ["type:LSTM", "rnn", "rnn.weight_*", "*.weight_*"])
def test_recurrent_weights_are_meant_where_they_are_asked_for(patterns: str) -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4, num_layers=2), "head": nn.Linear(4, 2)})
    assert names(model) == ["head"]
    found = [f"{layer.name}.{layer.tensor}" for layer in select(model, patterns)]
    assert found == [f"rnn.weight_{way}_l{depth}" for depth in (0, 1) for way in ("ih", "hh")]
    assert [x.tensor for x in select(model, "rnn.weight_hh*")] == ["weight_hh_l0", "weight_hh_l1"]


def test_exclude_takes_away() -> None:
    assert names(plain(), exclude=("first", "last")) == USUAL[1:]
    with pytest.raises(RecipeError, match="leaves no layer"):
        select(plain(), "stem", exclude="first")


def test_kinds_restrict() -> None:
    assert names(plain(), kinds=(nn.Conv2d, nn.ConvTranspose1d)) == ["stem", "up"]
    assert names(plain(), "last", kinds=(nn.Conv2d, nn.ConvTranspose1d)) == ["up"]
    with pytest.raises(RecipeError, match="no weight"):
        select(nn.Linear(2, 2), kinds=(nn.Conv2d,))


def test_tied_weights_are_listed_once() -> None:
    model = Network()
    assert names(model, ("embed", "*")) == ["embed", *USUAL]
    assert [x.name for x in sharing(model, select(model, "embed")[0])] == ["embed", "head"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("stm", "'stm' matches no layer; did you mean 'stem'"),
        ("type:Conv3d", "did you mean 'Conv2d'"),
        (17, "0 to "),
        (-9, "'-9' matches no layer"),
        ("norm", "matches no layer"),
        ("re:(", "no regular expression"),
    ],
)
def test_a_pattern_without_match_is_an_error(pattern: object, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        select(plain(), pattern)  # type: ignore[arg-type]
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(RecipeError):
        select(plain(), exclude=pattern)  # type: ignore[arg-type]


def test_long_lists_of_names_are_cut() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    with pytest.raises(RecipeError, match="76 more"):
        select(model, "nothing-like-it")


def test_dressed_modules_stay_selectable_under_the_same_index() -> None:
    model = plain()
    before = [(x.name, x.index) for x in select(model)]
    set_mask(model.stem, torch.rand(4, 1, 3, 3) > 0.5)  # type: ignore[arg-type]
    assert [(x.name, x.index) for x in select(model)] == before
    layer = select(model, "type:Conv2d")[0]
    assert layer.name == "stem"
    assert layer.stored is model.stem.parametrizations.weight.original  # type: ignore[union-attr]
    assert torch.equal(layer.weight, model.stem.weight)  # type: ignore[arg-type]


def test_describe_lists_what_would_be_touched() -> None:
    rows = describe(select(plain(), ("stem", "attention.in_proj_weight")))
    assert rows[0] == {
        "index": 0, "name": "stem", "type": "Conv2d", "shape": [4, 1, 3, 3], "parameters": 36,
    }  # fmt: skip
    assert rows[1]["name"] == "attention.in_proj_weight"
    assert rows[1]["shape"] == [24, 8]
    model = plain()
    for row in describe(select(model)):
        assert [row["name"]] == names(model, row["index"])


def test_a_bare_layer_is_a_network() -> None:
    assert names(nn.Linear(3, 4)) == [""]
    with pytest.raises(RecipeError, match="no weight of two or more axes"):
        select(nn.ReLU())
