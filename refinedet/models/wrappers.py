"""Networks inside others: what torch.compile, DataParallel, averages of weights and their like put around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from refinedet.errors import CheckpointError, InputError
from refinedet.models.refinedet import RefineDet

Value = TypeVar("Value")

# Where they keep it: torch.compile; DataParallel, DistributedDataParallel, AveragedModel, timm's averages; `ModelEMA`.
_ATTRIBUTES = ("_orig_mod", "module", "model")
_PARTS = {"_orig_mod", "module"}  # what they put into the names of a state dict


def unwrap(model: Any) -> RefineDet:
    """The `RefineDet` inside ``model``, which may be wrapped several times. InputError if there is none."""
    inner = model
    while not isinstance(inner, RefineDet):
        inside = [getattr(inner, name, None) for name in _ATTRIBUTES]
        inner = next((module for module in inside if isinstance(module, nn.Module)), None)
        if inner is None:
            raise InputError(
                f"{type(model).__name__} is no RefineDet and wraps none; give the network itself (detector.network)"
            )
    return inner


def unwrap_names(
    values: Mapping[str, Value], expected: Iterable[str], path: str | os.PathLike[str]
) -> dict[str, Value]:
    """``values`` of a state dict from ``path`` by the names that they have in the network alone.

    Parts that wrappers put in are taken out wherever they stand (torch.compile and DataParallel may be around a part of
    the network), but for those that the ``expected`` names have themselves. Raises CheckpointError when two names
    become one.
    """
    own = {_plain(name): name for name in expected}
    unwrapped: dict[str, Value] = {}
    for name, value in values.items():
        plain = own.get(_plain(name), _plain(name))
        if plain in unwrapped:
            raise CheckpointError(f"{path}: holds {plain} twice, once inside a wrapper; use a file of one network")
        unwrapped[plain] = value
    return unwrapped


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _PARTS)
