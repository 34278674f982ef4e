"""Ways to damage a file: of bytes, of lines and words, of a JSON document."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS = (b"0", b"-1", b"1", b"0.5", b"-0.0", b"255", b"65536", b"4294967296", b"9223372036854775808", b"1e999",
           b"-1e999", b"NaN", b"Infinity", b"9" * 400, b"9" * 5000, b"0x10", b"1_0", b"")  # fmt: skip
NESTED = [b"[" * depth + b"]" * depth for depth in (10, 500, 5000)]
TEXTS = (
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe",
    b"$x_$",
    b"../../x",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"a" * 300,
    b"%s%n",
    b"null",
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e300, 1e-300, 2**31, 2**63, -(2**63), 10**400, float("nan"),
    float("inf"), "", "x", "$x_$", "../x", "\ud800", "1", [], {}, [1], [1, 2, 3, 4], ["x"], {"x": 1}, [[]],
)  # fmt: skip


def damage_bytes(chance: random.Random, data: bytes) -> bytes:
    """One to eight small damages anywhere: bits, bytes, gaps, repeats, a cut."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        chance.choice(_BYTE_DAMAGES)(chance, content)
    return bytes(content)


def damage_text(chance: random.Random, data: bytes) -> bytes:
    """Numbers, words and lines replaced, doubled or gone; now and then bytes."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = chance.choice(_TEXT_DAMAGES)(chance, data)
    return data


def damage_json(chance: random.Random, data: bytes) -> bytes:
    """Another value, key or length somewhere in the document; now and then its text."""
    if chance.random() < 0.2:
        return damage_text(chance, data)
    document = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        document = damage_document(chance, document)
    text = json.dumps(document).encode()
    return _replace_match(chance, text, rb"\d+", NESTED) if chance.random() < 0.02 else text


def damage_document(chance: random.Random, document: Any) -> Any:
    """A copy of a JSON document with one value changed, moved, doubled, nested or taken out."""
    document = copy.deepcopy(document)
    places = _places(document) if isinstance(document, (dict, list)) else []
    if not places:
        return chance.choice(VALUES)
    holder, key = chance.choice(places)
    action = chance.randrange(5)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif action == 2:
        other, other_key = chance.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    else:
        holder[key] = chance.choice(VALUES)
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    """(holder, key or index) of every value in the document."""
    found, rest = [], [document]
    while rest:
        holder = rest.pop()
        keys: Sequence[Any] = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                rest.append(holder[key])
    return found


def _flip_bit(chance: random.Random, data: bytearray) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set_bytes(chance: random.Random, data: bytearray) -> None:
    if data:
        start = chance.randrange(len(data))
        for index in range(start, min(len(data), start + chance.choice((1, 2, 4, 8, 64)))):
            data[index] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _cut_out(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 64, 1024))]


def _repeat(chance: random.Random, data: bytearray) -> None:
    start = chance.randrange(len(data) + 1)
    data[start:start] = data[start : start + chance.choice((1, 4, 64))] * chance.choice((1, 2, 50))


def _end(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data) + 1) :]


_BYTE_DAMAGES: Sequence[Callable[[random.Random, bytearray], None]] = (
    _flip_bit, _flip_bit, _set_bytes, _set_bytes, _cut_out, _repeat, _end,
)  # fmt: skip


def _replace_match(chance: random.Random, data: bytes, pattern: bytes, values: Sequence[bytes]) -> bytes:
    matches = list(re.finditer(pattern, data))
    if not matches:
        return damage_bytes(chance, data)
    match = chance.choice(matches)
    return data[: match.start()] + chance.choice(values) + data[match.end() :]


def _replace_number(chance: random.Random, data: bytes) -> bytes:
    return _replace_match(chance, data, rb"-?\d+(\.\d+)?(e-?\d+)?", NUMBERS)


def _replace_word(chance: random.Random, data: bytes) -> bytes:
    words = re.findall(rb"\w+", data)
    return _replace_match(chance, data, rb"\w+", [*TEXTS, *chance.sample(words, min(5, len(words)))])


def _move_line(chance: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        line = lines.pop(chance.randrange(len(lines)))
        for _ in range(chance.randrange(3)):
            lines.insert(chance.randrange(len(lines) + 1), line)
    return b"".join(lines)


_TEXT_DAMAGES: Sequence[Callable[[random.Random, bytes], bytes]] = (
    _replace_number, _replace_number, _replace_word, _replace_word, _move_line, damage_bytes,
)  # fmt: skip
