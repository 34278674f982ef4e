"""What the tests on a GPU share. Each of their files begins with `require_gpu()`, which skips it where none is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from refinedet import _extension

DEVICE = torch.device("cuda", 0)


def require_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here", allow_module_level=True)
    problem = _extension.cuda_problem(DEVICE)
    if problem is not None:
        pytest.skip(": ".join(problem), allow_module_level=True)


def to(device: torch.device | str, value: Any) -> Any:
    """A tensor, or tensors in a tuple, on the device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
        items = [to(device, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def on_gpu(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator for tensors on the CPU, which runs on the GPU."""

    def run(*arguments: Any, **options: Any) -> Any:
        moved = [to(DEVICE, argument) for argument in arguments]
        return to("cpu", operator(*moved, **{name: to(DEVICE, option) for name, option in options.items()}))

    return run
