"""How long each stage of inference takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

Module = TypeVar("Module", bound=nn.Module)
Seconds: TypeAlias = dict[str, float]  # by stage

STAGES = ("decode", "prepare", "upload", "network", "detect", "download")
"""From files to objects: read and decode; subtract the mean and warp; move to the device; the network; from its output
to boxes in pixels; move back, and name the classes. The first is that of who has the files; `Detector.detect_batch`
does the others."""

_around: ContextVar[Callable[[str], AbstractContextManager[object]]] = ContextVar(
    "around", default=lambda stage: nullcontext()
)


@contextmanager
def timed(seconds: Seconds | None, stage: str, device: torch.device | None = None) -> Iterator[None]:
    """Add the time of the block to ``seconds[stage]``, the work it queued on a GPU included; None: not measured, and
    the GPU not waited for."""
    if seconds is None:
        yield
        return
    start = time.perf_counter()
    with _around.get()(stage):
        yield
        wait_for(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


@contextmanager
def around_stages(around: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """In the block every stage that is `timed` runs inside of ``around(stage)``: a profiler's range."""
    token = _around.set(around)
    try:
        yield
    finally:
        _around.reset(token)


@contextmanager
def timed_module(seconds: Seconds, stage: str, module: nn.Module, device: torch.device) -> Iterator[None]:
    """In the block, add the time of every call of ``module``, the work it queues on a GPU included, to
    ``seconds[stage]``."""
    starts: list[float] = []

    def begin(*_: object) -> None:
        starts.append(time.perf_counter())

    def end(*_: object) -> None:
        wait_for(device)
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - starts.pop()

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def noted_calls(kind: type[Module]) -> Iterator[list[Module]]:
    """Yields a list to which every module of that kind that is called in the block is added."""
    called: list[Module] = []

    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, kind):
            called.append(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """A block in which CUDA events and streams that name no GPU are those of ``device``, if it is one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def repetitions(seconds: float, most: int) -> Iterator[int]:
    """0, 1, ...: one turn at least, then as long as another like the last is likely to be done within ``seconds``, and
    ``most`` at most."""
    start = time.perf_counter()
    end = start + seconds
    for number in range(most):
        yield number
        now = time.perf_counter()
        if 2 * now - start > end:
            return
        start = now


def wait_for(device: torch.device | None) -> None:
    """Until a GPU has done all that was queued on it; at once where ``device`` is none."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
