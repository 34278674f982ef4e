"""How long a GPU takes, by CUDA events."""

import statistics
from collections.abc import Callable

import torch

ROUNDS = 50
WARM_UP = 5  # calls that do not count


def nothing() -> None:
    pass


def busy() -> None:
    """Keeps the GPU from starting for some 0.1 ms, in which the host queues what is measured."""
    torch.cuda._sleep(200_000)


def microseconds(call: Callable[[], object], before: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median over many calls, each between two events; ``before`` is queued ahead of the first."""
    times = []
    for _ in range(rounds + WARM_UP):
        before()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times[WARM_UP:])
