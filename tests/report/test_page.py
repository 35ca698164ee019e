# SPDX-License-Identifier: Apache-2.0
"""The page as text: figures right, data harmless, parts left out, files written whole."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rarefy.errors import FileError
from rarefy.report.page import NAVIGATION, render, write_report

from .reader import Reader, read
from .sample import RECIPE, sample

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """The document with every leaf changed."""
    if isinstance(value, dict):
        return {key: replaced(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [replaced(entry, change) for entry in value]
    return change(value)


@pytest.fixture(scope="module")
def page() -> Reader:
    return read(sample())


def test_figures_of_the_headline(page: Reader) -> None:
    # 1,725,144 / 43,912 bytes; 9,925 and 9,918 of 10,000 right; 36,860 of 431,080 weights left.
    for text in (
        "39.3×",
        "99.18 %",
        "99.25 % before (-0.07 pt)",
        "7 of 10,000 fewer right",
        "8.6 %",
    ):
        assert text in page.text
    assert "0.988 to 1.04× speed" in page.text


def test_table_tells_the_quartiles_and_factors(page: Reader) -> None:
    assert "35.8× smaller" in page.text  # 1,571,203 / 43,912
    assert "11.7× fewer" in page.text  # 431,072 / 36,860
    assert "0.231 to 0.258" in page.text  # 0.241 ms times 0.96 and 1.07


def test_steps_chart_holds_every_stage(page: Reader) -> None:
    figure = page.figure(0)
    stages = sample()["stages"]
    packed = next(trace for trace in figure["data"] if trace["type"] == "bar")
    assert packed["x"] == pytest.approx([s["bytes"]["rfy"] / 1e6 for s in stages])
    dots = next(trace for trace in figure["data"] if trace.get("mode") == "markers")
    assert dots["x"] == pytest.approx([100 * s["metric"]["value"] for s in stages])


def test_stages_of_one_name_keep_rows_of_their_own() -> None:
    document = sample()
    for stage in document["stages"]:
        stage["name"] = "FineTune(epochs=1)"
    bars = read(document).figure(0)["data"][0]
    assert len(set(bars["y"])) == len(document["stages"])


def test_data_stays_text() -> None:
    keep = ("accuracy", "pytorch", "onnxruntime", "float32")
    plain = replaced(sample(), lambda x: "word" if isinstance(x, str) and x not in keep else x)
    wicked = replaced(sample(), lambda x: EVIL if isinstance(x, str) and x not in keep else x)
    plain["training"] = {"word": [{"epoch": 1, "loss": 1.0, "metric": 0.5}]}
    wicked["training"] = {EVIL: [{"epoch": 1, "loss": 1.0, "metric": 0.5}]}
    plain["environment"], wicked["environment"] = {"word": "word"}, {EVIL: EVIL}
    expected, found = Reader(render(plain, "word")), Reader(render(wicked, EVIL))
    assert found.tags == expected.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    for place in range(len(found.embedded)):
        written = json.dumps(found.figure(place), ensure_ascii=False)
        assert "<script" not in written
        assert "<img" not in written


def test_nothing_is_fetched(page: Reader) -> None:
    fetched = [
        (tag, value)
        for tag, name, value in page.attributes
        if name in {"src", "href", "srcset", "action", "data", "poster"}
        if not value.startswith(("#", "data:"))
    ]
    assert fetched == []
    style = re.search(r"<style>(.*?)</style>", render(sample(), RECIPE), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = [value for _, name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policy)


def test_every_part_is_there_and_linked(page: Reader) -> None:
    assert set(NAVIGATION) <= page.ids
    targets = {v[1:] for tag, name, v in page.attributes if (tag, name) == ("a", "href")}
    assert targets == set(NAVIGATION)


@pytest.mark.parametrize(
    "name", ["layers", "kernels", "classes", "budget", "training", "sensitivity"]
)
def test_absent_parts_are_left_out(name: str) -> None:
    document = sample()
    del document[name]
    found = read(document)
    assert name not in found.ids
    assert set(NAVIGATION) - {name} <= found.ids
    assert NAVIGATION[name] not in found.text


def test_unchecked_parity_is_said(page: Reader) -> None:
    document = sample()
    del document["parity"]
    assert "This was not checked in this run." in read(document).text
    assert "✓ parity holds" in page.text


def test_failures_are_said() -> None:
    document = sample()
    document["parity"] |= {"passed": False, "first_diverging_layer": "fc1"}
    document["budget"]["met"] = document["budget"]["limits"][1]["met"] = False
    found = read(document)
    assert {"✗ parity fails", "✗ budget not met", "✗ missed"} <= set(found.text)
    assert any("first layer whose output differs is fc1" in text for text in found.text)


def test_the_least_that_can_be_reported() -> None:
    stage = {"name": "baseline", "parameters": 0, "nonzero": 0}
    least = {"rarefy": "0.1.0", "model": "m", "task": "random-images", "stages": [stage]}
    assert "Neither file sizes nor a metric were measured." in read(least).text


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_is_no_number_is_drawn_as_a_gap(value: float | None) -> None:
    document = sample()
    for stage in document["stages"][1:]:
        stage["metric"]["value"] = value
        stage["seconds"] = value
    for layer in document["layers"]:
        layer["sqnr_db"] = value
    for epochs in document["training"].values():
        epochs[0]["loss"] = epochs[0]["metric"] = value
    for probe in document["sensitivity"][::2]:
        probe["metric"] = value
    document["parity"]["max_absolute"] = value
    document["stages"][-1]["latency_ms"]["ratio_to_baseline"] = value
    found = read(document)
    assert all(found.figure(i, w) for i in range(5) for w in ("wide", "narrow"))
    assert not [text for text in found.text if re.search(r"\b(nan|inf|None)\b", text)]
    assert "accuracy not comparable" in " ".join(found.text)


def test_empty_and_new_layers() -> None:
    document = sample()
    document["layers"][0] |= {"bytes_before": 0}
    document["layers"][1] |= {"bytes_after": 0, "parameters": 0, "nonzero": 0}
    before, after = read(document).figure(1)["data"][1:3]
    assert before["x"][0] is None
    assert after["x"][1] is None


def test_writes_one_file_that_repeats(tmp_path: Path) -> None:
    (tmp_path / "measurements.json").write_text(json.dumps(sample()), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    path = write_report(tmp_path)
    first = path.read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} == {
        "measurements.json",
        "recipe.yaml",
        "report.html",
    }
    assert "bits: {conv*: 8, fc*: 5}" in first.decode()


def _broken(key: str, value: Any) -> str:
    document = sample()
    document[key] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "can't be read"),
        ('{"stages": [', "line 1"),
        ("[]", "holds a list"),
        ("{}", "rarefy"),
        (_broken("stages", []), "stages"),
        (_broken("stages", [{"name": "x", "parameters": -1, "nonzero": 0}]), "stages.0.parameters"),
        (_broken("classes", {"names": ["a"], "confusion_before": [[1, 2]], "confusion_after": [[1]]}),
         "confusion_before"),
    ],
)  # fmt: skip
def test_bad_measurements_end_in_one_sentence(tmp_path: Path, text: str | None, told: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "report.html").write_text("the former page", encoding="utf-8")
    if text is not None:
        (tmp_path / "measurements.json").write_text(text, encoding="utf-8")
    with pytest.raises(FileError, match=re.escape(told)) as caught:
        write_report(tmp_path)
    assert "measurements.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "rarefy compress" in str(caught.value)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "the former page"


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "measurements.json").write_text(json.dumps(sample()), encoding="utf-8")
    with pytest.raises(FileError, match=r"recipe\.yaml can't be read"):
        write_report(tmp_path)


def test_the_command_is_quoted_for_a_shell() -> None:
    text = " ".join(read(sample() | {"task": "mnist:my data.npz", "seed": 7}).text)
    assert "rarefy compress zoo:lenet5 'mnist:my data.npz' --recipe recipe.yaml --seed 7" in text
