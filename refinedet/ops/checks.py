"""The checks of csrc/checks.h once more: tensors without memory are refused as those that have it.

The fake kernel of each operator calls them in the order of its C++ (csrc/kernels.h): devices, shapes, options, limits,
types. Sizes and options may be symbols of torch.compile and torch.export: `torch._check` compares them without fixing
them.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from refinedet.errors import InputError

Size = int | torch.SymInt
Limit = tuple[str, Size, Size]  # name, value, most
Named = tuple[str, Tensor | None]

MAX_BATCH_ON_CUDA = 65535  # csrc/size_limits.h

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FLOAT32 = torch.finfo(torch.float32)


class Checks:
    """Those of the operator ``op``; each raises `InputError` with the operator's own message."""

    def __init__(self, op: str) -> None:
        self.op = op

    def require(self, condition: bool | torch.SymBool, message: str) -> None:
        message = f"refinedet.{self.op}: {message}"
        if isinstance(condition, torch.SymBool):
            torch._check(condition, lambda: message)
        elif not condition:
            raise InputError(message)

    def same_device(self, *arguments: Named, optional: Named | None = None) -> None:
        """As that of the first argument."""
        for name, tensor in arguments:
            self.require(tensor is not None, f"{name} is None, expected a tensor")
        first, like = arguments[0]
        for name, tensor in (*arguments, *([optional] if optional else [])):
            if tensor is not None and like is not None and tensor.device != like.device:
                places = f"{name} is on {_device_name(tensor)}, but {first} is on {_device_name(like)}"
                self.require(False, f"{places}: move one of them with .to()")

    def shape(self, name: str, tensor: Tensor, expected: Sequence[Size | None]) -> None:
        """``expected`` has None for a size that is free."""
        message = f"{name} has shape {_shape_text(tensor.shape)}, expected {_shape_text(expected)}"
        self.require(tensor.dim() == len(expected), message)
        for size, wanted in zip(tensor.shape, expected, strict=True):
            if wanted is not None:
                self.require(size == wanted, message)

    def at_least(self, least: int, **options: float) -> None:
        for name, value in options.items():
            self.require(value >= least, f"{name} must be at least {least}, got {_number_text(value)}")

    def number(self, **options: float) -> None:
        for name, value in options.items():
            self.require(value == value, f"{name} must be a number, got {_number_text(value)}")

    def above_0(self, **options: float) -> None:
        for name, value in options.items():
            self.require(value >= _FLOAT32.tiny, f"{name} must be a number above 0, got {_number_text(value)}")

    def variances(self, values: Sequence[float]) -> None:
        self.require(len(values) == 4, f"variances must be 4 numbers, got {len(values)}")
        for value in values:
            message = f"variances must be numbers above 0, got {_number_text(value)}"
            self.require(value >= _FLOAT32.tiny, message)
            self.require(value <= _FLOAT32.max, message)

    def limits(self, like: Tensor, cpu: Iterable[Limit] = (), cuda: Iterable[Limit] = ()) -> None:
        """Those of the kernels on the device of ``like``. A size that is a symbol is taken to be within them."""
        device, limits = ("CUDA", cuda) if like.is_cuda else ("the CPU", cpu)
        for name, value, most in limits:
            if isinstance(value, int) and isinstance(most, int):
                self.require(value <= most, f"{name} is {value}, on {device} at most {most}")

    def floats(self, *tensors: Named) -> None:
        for name, tensor in tensors:
            known = tensor is None or tensor.dtype in _FLOATS
            self.require(known, f"{name} must hold floating-point numbers: convert it with .float()")

    def int64(self, *tensors: Named) -> None:
        for name, tensor in tensors:
            known = tensor is None or tensor.dtype == torch.int64
            self.require(known, f"{name} must hold int64: convert it with .long()")


def _number_text(value: float) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _device_name(tensor: Tensor) -> str:
    names = {"cpu": "the CPU", "cuda": f"GPU {tensor.device.index}"}
    return names.get(tensor.device.type, f"the {tensor.device.type} device")


def _shape_text(sizes: Sequence[Size | None]) -> str:
    return f"[{', '.join('*' if size is None else str(size) for size in sizes)}]"
