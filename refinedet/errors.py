"""Errors a user can cause and mend. Each message names the file or input, the value found, and the fix."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_OUT_OF_MEMORY = (  # as CUDA, torch's CPU allocator, cuBLAS or cuDNN, OpenCV, the system and its shared memory say it
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "Insufficient memory",
    "Cannot allocate memory",
    "</torch_",  # the name of a piece of shared memory
)
_SHOWN = 200  # characters of a value in a message: a path fits


class RefineDetError(Exception):
    """Base of every error meant for the user; the command line prints its message without a traceback."""


class DataError(RefineDetError):
    """An image, annotation or data set that cannot be used as it is."""


class CheckpointError(RefineDetError):
    """A weights or checkpoint file that is missing, damaged, unsafe or does not fit the model."""


class RecipeError(RefineDetError):
    """A training recipe with an unknown key, a wrong type or a value out of range."""


class InputError(RefineDetError, ValueError):
    """A function argument of the wrong type, shape or range."""


class ExtensionError(RefineDetError, ImportError):
    """The compiled extension is missing or does not fit this Python or torch."""


class ExportError(RefineDetError):
    """An exported file that does not find what the model finds."""


def shorten(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are, for a message."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, of any library, says that memory was refused."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def suggestion(word: str, known: Iterable[str]) -> str:
    """ " did you mean 'x'?" with the one of ``known`` nearest to ``word``, or nothing."""
    by_letters = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_letters, n=1, cutoff=0.5)
    return f" did you mean {by_letters[close[0]]!r}?" if close else ""


def printable(value: object) -> str:
    """``value`` as text in one line that no terminal obeys: line ends, control characters, changes of the direction of
    writing and bytes that are not UTF-8, all of which file names may hold, are escaped as in Python's source."""
    text = str(value)
    return text if text.isprintable() else "".join(map(_escape, text))


def escape_surrogates(text: str) -> str:
    """``text`` with what no UTF-8 can hold escaped: bytes that were not UTF-8, which `os.fsdecode` keeps as halves of
    surrogate pairs, as in Python's source."""
    return "".join(_escape(character) if "\ud800" <= character <= "\udfff" else character for character in text)


def _escape(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # the spaces of many scripts
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def show(value: object) -> str:
    """``value`` as Python writes it, cut after some 200 characters: for a message that names a value of any origin."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a whole number of thousands of digits
        return f"a value of type {type(value).__name__}, too long to be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
