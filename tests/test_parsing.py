"""What json and tomllib let through, or end in other errors with, is one ValueError."""

import json
import os

import pytest

from refinedet.errors import show
from refinedet.parsing import parse_json, parse_toml, to_float, to_json

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "malformed JSON: Expecting property name"),
        (DEEP, "nested too deeply"),
        ("9" * 5000, "too many digits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"a": [{"\\uDFFF": 1}]}', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "not utf-8"),
        (b"\xff\xfe\x00", "malformed JSON"),
    ],
)
def test_bad_json_is_a_value_error_with_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize("document", [{"a": [1, 2.5, None, "é 😀"]}, [1e300, 10**400], "\ud83d\ude00"])
def test_good_json_is_what_json_reads(document):
    text = json.dumps(document)
    assert parse_json(text) == json.loads(text)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert parse_json(text.encode(encoding)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a =", "Invalid value"),
        (f"a = {DEEP}", "nested too deeply"),
        ("a = " + "9" * 5000, "out of range"),
        (".".join("a" * 20_000) + " = 1", "nested too deeply"),  # half a minute to tomllib
        ("[" + " . ".join(['"a-b"'] * 200) + "]", "nested too deeply"),
    ],
)
def test_bad_toml_is_a_value_error_with_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_toml(text)


def test_good_toml_is_read():
    assert parse_toml("a.b.c = 1 # " + "." * 500 + "\nd = [" + "0.1, " * 500 + "]")["a"] == {"b": {"c": 1}}
    assert parse_toml("a = [1, 2.5]\n[b]\nc = 'x'") == {"a": [1, 2.5], "b": {"c": "x"}}


def test_number_beyond_float_is_infinite():
    assert (to_float(10**400), to_float(-(10**400)), to_float(3)) == (float("inf"), float("-inf"), 3.0)


def test_any_value_can_be_shown():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert show(deep) == "a value of type list, too long to be shown"
    assert show(10**5000) == "a value of type int, too long to be shown"
    assert show("x" * 300) == "'" + "x" * 199 + "..."
    assert show(1.5) == "1.5"


def test_json_holds_names_that_are_not_utf8_as_valid_unicode():
    name = os.fsdecode(b"bad\xff")
    document = {name: [name, (1, None)], "smile": "\U0001f600", "plain": 0.5}
    text = to_json(document)
    text.encode("ascii")
    assert parse_json(text) == {"bad\\xff": ["bad\\xff", [1, None]], "smile": "\U0001f600", "plain": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})
