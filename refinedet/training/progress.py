"""What a person sees of the steps: their speed and a bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

from refinedet.evaluation.report import Evaluation
from refinedet.progress import show_progress, write

_SMOOTHING = 0.05  # weight of the newest loss in the bar

T = TypeVar("T")


class Speed:
    """Images per second and the share of time spent waiting for data, since the last `reset`."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.reset()

    def reset(self) -> None:
        """Start measuring anew."""
        self._start, self._waited, self._batches = time.monotonic(), 0.0, 0

    def timed(self, batches: Iterator[T], count: int) -> Iterator[T]:
        """The first ``count`` of ``batches``, measured."""
        for _ in range(count):
            asked = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - asked
            self._batches += 1
            yield batch

    def numbers(self) -> dict[str, float]:
        """``images_per_second`` and ``data_wait`` (0 to 1)."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return {
            "images_per_second": self._batches * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
        }


def show_mean_ap(step: int, evaluation: Evaluation) -> None:
    """A line on stderr with what an evaluation on the way found."""
    mean_ap = "- (it has no object)" if evaluation.mean_ap is None else f"{evaluation.mean_ap:.4f}"
    write(f"step {step}: mean {evaluation.measure} on the test split {mean_ap}")


class StepBar:
    """Progress of the steps with smoothed loss, learning rate and images per second."""

    def __init__(self, done: int, steps: int, shown: bool) -> None:
        self._bar = show_progress("training", "step", steps, done=done, shown=shown)
        self._loss: float | None = None

    def __enter__(self) -> StepBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def show(self, loss: float, lr: float, speed: Speed) -> None:
        """Count one step."""
        self._loss = loss if self._loss is None else self._loss + _SMOOTHING * (loss - self._loss)
        rate = speed.numbers()["images_per_second"]
        self._bar.set_postfix_str(f"loss {self._loss:.3f}, lr {lr:.2e}, {rate:.1f} images/s", refresh=False)
        self._bar.update()
