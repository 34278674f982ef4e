"""Named ranges around stages and layers, for torch's profiler and, on a GPU, for Nsight Systems (NVTX)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn
from torch.profiler import record_function

from refinedet.models import RefineDet
from refinedet.profiling.speed import PARTS


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
    """In the block every call of a module inside ``network`` is a range of its name in ``named_modules``, one in
    another."""
    opened: list[ExitStack] = []

    def enter(name: str) -> None:
        opened.append(ExitStack())
        opened[-1].enter_context(named_range(name, device))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name:
                before = module.register_forward_pre_hook(lambda *_, name=name: enter(name))
                # A range that was opened last is closed first: before the hooks that are there.
                after = module.register_forward_hook(lambda *_: opened.pop().close(), prepend=True, always_call=True)
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        yield


@contextmanager
def around_parts(network: RefineDet, around: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """In the block every call of ``network`` runs in two parts, inside of ``around(part)`` for each of `PARTS`."""
    current = ExitStack()

    def enter(part: str) -> None:
        current.close()
        current.enter_context(around(part))

    handles = [
        network.backbone.register_forward_pre_hook(
            lambda *_: enter(PARTS[0]), prepend=True
        ),  # before the ranges' hooks
        network.backbone.register_forward_hook(lambda *_: enter(PARTS[1])),
        network.register_forward_hook(lambda *_: current.close()),
    ]
    try:
        yield
    finally:
        current.close()
        for handle in handles:
            handle.remove()
