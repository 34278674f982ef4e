"""How values of any origin stand in messages."""

import os

import pytest

from refinedet.errors import escape_surrogates, printable, suggestion


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain name", "a plain name"),
        ("Fußgänger 猫 \u3000x\xa0y", "Fußgänger 猫 \u3000x\xa0y"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("photo\u202egpj.exe\u2028", "photo\\u202egpj.exe\\u2028"),
        (os.fsdecode(b"bad\xff\x80"), "bad\\xff\\x80"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_only_surrogates_are_escaped_for_files():
    assert escape_surrogates(os.fsdecode(b"a\n\xff")) == "a\n\\xff"


def test_suggestions_do_not_mind_capitals():
    assert suggestion("BCCD", ["bccd", "voc"]) == " did you mean 'bccd'?"
    assert suggestion("bcdd", ["BCCD"]) == " did you mean 'BCCD'?"
    assert suggestion("xyz", ["bccd"]) == ""
