"""What a twin has from its face: parameters, defaults, and which values are refused."""

import functools
import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

from refinedet.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

AT_LEAST = {"iou_threshold": 0, "negative_iou": 0, "negative_ratio": 0, "top_k": 1, "keep_top_k": 1}


def twin_of(face: Callable[P, R]) -> Callable[[Callable[[Any], R]], Callable[P, R]]:
    """Makes a function that takes all arguments as one object, by their names, take those of ``face``.

    So no parameter and no default is written twice. Options out of range are refused as the operator does
    (csrc/checks.h): NaN always.
    """
    signature = inspect.signature(face)
    operator = face.__module__.rpartition(".")[2]

    def decorate(twin: Callable[[Any], R]) -> Callable[P, R]:
        @functools.wraps(twin)
        def run(*arguments: P.args, **options: P.kwargs) -> R:
            given = signature.bind(*arguments, **options)
            given.apply_defaults()
            for name, value in given.arguments.items():
                _check(f"refinedet.{operator}: {name}", value, AT_LEAST.get(name))
            return twin(SimpleNamespace(**given.arguments))

        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def _check(name: str, value: object, least: int | None) -> None:
    if not isinstance(value, (int, float)):
        return
    if least is not None and not value >= least:
        raise InputError(f"{name} must be at least {least}, got {value:g}")
    if math.isnan(value):
        raise InputError(f"{name} must be a number, got nan")
