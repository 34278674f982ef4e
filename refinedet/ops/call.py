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
    arguments = tuple(value.detach() if isinstance(value, torch.Tensor) else value for value in arguments)
    try:
        return getattr(torch.ops.refinedet, name).default(*arguments)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        if message.startswith(f"refinedet.{name}: "):
            raise InputError(message) from None
        if mismatch := _TYPE_MISMATCH.search(message):
            wanted, argument, found = mismatch.groups()
            raise InputError(f"refinedet.{name}: {argument} is of type {found}; give {wanted}") from None
        gpus = [value.device for value in arguments if isinstance(value, torch.Tensor) and value.is_cuda]
        problem = _extension.cuda_problem(gpus[0]) if gpus else None
        if problem is not None:
            raise ExtensionError(f"refinedet.{name}: {': '.join(problem)}") from None
        raise
