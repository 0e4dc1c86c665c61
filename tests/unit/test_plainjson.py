"""A client's JSON is `json`'s own."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd import plainjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TEXTS = st.text(alphabet='{}[]":,0123456789.eE+-truefalsnNI \t\n\\u\x00é', max_size=12)


@given(VALUES)
def test_it_writes_what_json_writes(value: object) -> None:
    text = plainjson.dumps(value)
    assert text == json.dumps(value)
    assert json.dumps(plainjson.loads(text)) == text
    assert json.dumps(plainjson.loads(text.encode())) == text


@given(TEXTS | VALUES.map(lambda value: f" {json.dumps(value, indent=1)}\n"))
def test_it_reads_what_json_reads_and_refuses_what_json_refuses(text: str) -> None:
    try:
        wanted = json.dumps(json.loads(text))
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            plainjson.loads(text)
    else:
        assert json.dumps(plainjson.loads(text)) == wanted


def test_what_has_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        plainjson.dumps({"a": object()})
    with pytest.raises(ValueError, match="utf-8"):
        plainjson.loads(b'"\xff"')
    with pytest.raises(RecursionError):
        plainjson.loads("[" * 100_000)
    assert math.isnan(plainjson.loads("NaN"))


def test_without_the_c_half_json_itself_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_json.make_scanner", None)
    assert plainjson._halves() == (json.dumps, json.loads)
