"""Names that every format can hold."""

import unicodedata

from refinedet.errors import InputError, show


def check_name(name: str, what: str) -> str:
    """``name``, if it is a line of characters that XML, YAML and lists of names take; else InputError."""
    if any(unicodedata.category(character) in ("Cc", "Cn", "Cs") for character in name):
        raise InputError(f"{what} is {show(name)}, with characters that files of annotations cannot hold; rename it")
    return name
