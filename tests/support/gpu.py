"""What tests and benchmarks on a GPU share: those with the mark `gpu`, which are skipped elsewhere.

pytest is imported where it is used: `make gpu-report` also runs where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refinedet.ops import extension

if TYPE_CHECKING:
    import pytest

DEVICE = torch.device("cuda", 0)


def skip_without_gpu(items: Iterable[pytest.Item]) -> None:
    """For the hook `pytest_collection_modifyitems`."""
    import pytest

    reason = _why_not()
    for item in items:
        if reason is not None and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no GPU here"
    problem = extension.cuda_problem(DEVICE)
    return None if problem is None else ": ".join(problem)


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


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit, but for the targets of match: a logarithm is not the same on every device."""
    if isinstance(found, Tensor):
        found, expected = (found,), (expected,)
    names = getattr(found, "_fields", range(len(found)))
    for name, a, b in zip(names, found, expected, strict=True):
        if name == "targets":
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a.cpu(), b.cpu()), name


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of the call, and its result, which every replay overwrites.

    The call before it, on a stream of its own as torch demands, loads the kernels, which a capture may not.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result
