"""The way from a Python face to its compiled operator."""

import re
from typing import Any

import torch

from refinedet import _extension
from refinedet.errors import ExtensionError, InputError

_TYPE_MISMATCH = re.compile(r"Expected a value of type '(.+)' for argument '(.+)' but instead found type '(.+)'")


def call(name: str, *arguments: Any) -> Any:
    """Run ``torch.ops.refinedet.<name>`` on detached tensors: no operator is differentiable.

    Raises:
        InputError: csrc/ops/checks.h rejects an argument, or one is of the wrong type.
        ExtensionError: there are no operators, or none that run on the GPU where the tensors are.
    """
    _extension.require()
    arguments = tuple(_detached(value) for value in arguments)
    try:
        return getattr(torch.ops.refinedet, name).default(*arguments)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        if message.startswith(f"refinedet.{name}: "):
            raise InputError(message) from None
        if mismatch := _TYPE_MISMATCH.search(message):
            wanted, argument, found = mismatch.groups()
            raise InputError(f"refinedet.{name}: {argument} is of type {found}; give {wanted}") from None
        values = [value for item in arguments for value in (item if isinstance(item, list) else [item])]
        gpus = [value.device for value in values if isinstance(value, torch.Tensor) and value.is_cuda]
        problem = _extension.cuda_problem(gpus[0]) if gpus else None
        if problem is not None:
            raise ExtensionError(f"refinedet.{name}: {': '.join(problem)}") from None
        raise


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [_detached(item) for item in value] if isinstance(value, (list, tuple)) else value
