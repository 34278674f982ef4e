"""stdout and stderr that end no work: their reader may go, their disk may be full, their encoding may lack a letter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

STANDARD = (0, 1, 2)  # numbers of stdin, stdout, stderr


class Stream:
    """A stream for text, whose first ``error`` is kept and not raised; what is written after it is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``; a character that the stream's encoding lacks is escaped."""
        if self.error is None:
            try:
                self._write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Send what is written on its way."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))

    def _lose(self, error: OSError) -> None:
        self.error = error
        with suppress(OSError):  # Python tries at its end to write what is left in the buffer
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def safe_streams() -> Iterator[Stream | None]:
    """`Stream` in place of stdout and stderr in the block; yields that of stdout, None where stdout is closed."""
    _occupy_closed_numbers()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out = None if before[0] is None else Stream(before[0])
        err = Stream(before[1] or nowhere)  # not None: print would take stdout
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield out
        finally:
            err.flush()
            sys.stdout, sys.stderr = before


def _occupy_closed_numbers() -> None:
    """Else the next file that is opened, an annotated video say, gets the number of a closed stderr, and OpenCV's
    messages."""
    while (number := os.open(os.devnull, os.O_RDWR)) in STANDARD:
        pass
    os.close(number)
