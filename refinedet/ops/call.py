"""The way from a Python face to its compiled operator."""

from typing import Any

import torch

from refinedet import _extension
from refinedet.errors import ExtensionError, InputError


def call(name: str, *arguments: Any) -> Any:
    """Run ``torch.ops.refinedet.<name>``.

    Raises:
        InputError: csrc/ops/checks.h rejects an argument.
        ExtensionError: there are no operators, or none that run on the GPU where the tensors are.
    """
    _extension.require()
    try:
        return getattr(torch.ops.refinedet, name).default(*arguments)
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        if message.startswith(f"refinedet.{name}: "):
            raise InputError(message) from None
        values = [value for item in arguments for value in (item if isinstance(item, list) else [item])]
        gpus = [value.device for value in values if isinstance(value, torch.Tensor) and value.is_cuda]
        problem = _extension.cuda_problem(gpus[0]) if gpus else None
        if problem is not None:
            raise ExtensionError(f"refinedet.{name}: {': '.join(problem)}") from None
        raise
