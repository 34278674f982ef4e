"""What a twin has from its face: parameters, defaults, and which values are refused."""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

from refinedet.ops.checks import Checks

P = ParamSpec("P")
R = TypeVar("R")

AT_LEAST = {"iou_threshold": 0, "negative_iou": 0, "negative_ratio": 0, "top_k": 1, "keep_top_k": 1}


def twin_of(face: Callable[P, R]) -> Callable[[Callable[[Any], R]], Callable[P, R]]:
    """Makes a function that takes all arguments as one object, by their names, take those of ``face``.

    So no parameter and no default is written twice. Options out of range are refused as the operator does
    (csrc/checks.h): NaN always.
    """
    signature = inspect.signature(face)
    checks = Checks(face.__module__.rpartition(".")[2])

    def decorate(twin: Callable[[Any], R]) -> Callable[P, R]:
        @functools.wraps(twin)
        def run(*arguments: P.args, **options: P.kwargs) -> R:
            given = signature.bind(*arguments, **options)
            given.apply_defaults()
            for name, value in given.arguments.items():
                _check(checks, name, value)
            return twin(SimpleNamespace(**given.arguments))

        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def _check(checks: Checks, name: str, value: Any) -> None:
    if name == "variances":
        checks.variances(value)
    elif name == "sigma":
        checks.above_0(sigma=value)
    elif name in AT_LEAST:
        checks.at_least(AT_LEAST[name], **{name: value})
    elif isinstance(value, (int, float)):
        checks.number(**{name: value})
