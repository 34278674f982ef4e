"""JSON and TOML of any origin: what cannot be read, or read but not used, is one ValueError with a short reason.

A parser of the standard library ends in RecursionError for deep nesting, and gives numbers that no float holds and
texts that no file can store. All readers of the package go through here, and put the file's name before the reason.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from refinedet.errors import escape_surrogates, show

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONG_KEY = re.compile(r"""(?<![\w-])(?:["']?[\w-]+["']?[ \t]*\.[ \t]*){100}""")  # a.a.a..., a table in a table


def parse_json(text: str | bytes, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The document in ``text`` (bytes: UTF-8, 16 or 32); ``object_hook`` gives what is kept of each object in it.

    Raises ValueError, with the reason, for malformed JSON, nesting deeper than Python's limit, a whole number of more
    digits than Python converts, and half of a surrogate pair, which no file or terminal takes.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))  # by itself json lets half pairs in UTF-8 through
        document = json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"malformed JSON: not {error.encoding}: {error.reason}") from error
    except RecursionError as error:
        raise ValueError("malformed JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError("malformed JSON: a number has too many digits") from error
    _refuse_lone_surrogates(document, text)
    return document


def parse_toml(text: str) -> dict[str, Any]:
    """The document in ``text``. Raises ValueError, with the reason, as `parse_json`."""
    if _LONG_KEY.search(text):  # which takes tomllib seconds
        raise ValueError("nested too deeply")
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError("a number or a date in it is out of range") from error
    return document


def to_json(document: Any, *, indent: int | None = None) -> str:
    """``document`` as JSON in ASCII, which every reader takes: no NaN (ValueError), and bytes of file names that are
    not UTF-8 escaped, in values and keys, as in ``refinedet.errors.escape_surrogates``."""
    text = json.dumps(document, allow_nan=False, indent=indent)
    if "\\ud" not in text:  # few documents are gone through
        return text
    return json.dumps(_without_surrogates(document), allow_nan=False, indent=indent)


def to_float(value: float) -> float:
    """``value`` as a float; a whole number beyond its range becomes infinite, as a decimal one does."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(item) for item in value]
    return value


def _refuse_lone_surrogates(document: Any, text: str) -> None:
    if "\\ud" not in text and "\\uD" not in text:  # only an escape makes one: few files are gone through
        return
    for value in _texts(document):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"malformed JSON: {show(value)} holds half of a surrogate pair")


def _texts(document: Any) -> Iterator[str]:
    rest = [document]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            rest += value
