"""The way from a Python face to its compiled operator."""

from typing import Any

import torch

from refinedet import _extension
from refinedet.errors import InputError


def call(name: str, *arguments: Any) -> Any:
    """Run ``torch.ops.refinedet.<name>``; what csrc/ops/checks.h rejects becomes an `InputError`."""
    _extension.require()
    try:
        return getattr(torch.ops.refinedet, name).default(*arguments)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        if message.startswith(f"refinedet.{name}: "):
            raise InputError(message) from None
        raise
