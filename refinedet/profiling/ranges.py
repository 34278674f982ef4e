"""Named ranges around stages and layers, for torch's profiler and, on a GPU, for Nsight Systems (NVTX)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.profiler import record_function

NETWORK = "network"  # the range of the whole network, whose name among its modules is empty


@contextmanager
def named_range(name: str, device: torch.device) -> Iterator[None]:
    """What is called in the block, on the host and on ``device``, belongs to the range ``name``."""
    with record_function(name):
        if device.type != "cuda":
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()


@contextmanager
def layer_ranges(network: nn.Module, device: torch.device) -> Iterator[None]:
    """In the block every call of a module of ``network`` is a range of its name in ``named_modules``, one in another."""
    open_ranges: list[ExitStack] = []

    def enter(name: str) -> None:
        stack = ExitStack()
        stack.enter_context(named_range(name, device))
        open_ranges.append(stack)

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name or NETWORK: enter(name)))  # type: ignore[misc]
        handles.append(module.register_forward_hook(lambda *_: open_ranges.pop().close(), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
