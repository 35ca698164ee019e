# SPDX-License-Identifier: Apache-2.0
"""No data can leave its place in the page, whatever it holds."""

import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from rarefy.report.markup import Markup, element, embedded_json, group

WICKED = st.text(alphabet=st.sampled_from("<>/&\"'=ab \n-!")) | st.text()


class Events(HTMLParser):
    """What a browser would make of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(WICKED, WICKED)
def test_text_and_attributes_come_back_as_they_were(text: str, attribute: str) -> None:
    found = Events(element("p", text, data_name=attribute))
    assert found.elements == [("p", [("data-name", attribute)])]
    assert found.text == text


@given(WICKED)
def test_embedded_json_cannot_close_its_script(text: str) -> None:
    written = embedded_json({text: [text]})
    assert "<" not in written
    assert json.loads(written) == {text: [text]}


def test_markup_is_kept_and_its_pieces_lose_the_privilege() -> None:
    inner = element("b", "x")
    assert group(inner, " & ") == "<b>x</b> &amp; "
    assert type(inner + "<i>") is str
    assert group(inner + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"
    assert element("i", Markup("&times;")) == "<i>&times;</i>"


def test_absent_and_bare_attributes() -> None:
    assert element("p", hidden=True, id=None, title=False) == "<p hidden></p>"
