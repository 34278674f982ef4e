"""The way from a Python face to its compiled operator."""

import re
from collections.abc import Iterator
from typing import Any

import torch

from refinedet.errors import ExtensionError, InputError
from refinedet.ops import extension

_OPERATORS = torch.ops.refinedet
_TYPE_MISMATCH = re.compile(r"Expected a value of type '(.+)' for argument '(.+)' but instead found type '(.+)'")
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|Storage size calculation overflowed")
# Torch 2.10 does not say why.
_NOT_ALLOCATED = re.compile(
    r'^(torch_call_dispatcher\(.*"aten::(new_)?empty"|aoti_torch_empty_strided\().* API call failed'
)
_NOT_COPIED = re.compile(r'^torch_call_dispatcher\(.*"aten::(contiguous|to)".* API call failed')  # an input
_BOUNDARY = re.compile(r" \(originally from .*")  # the place in torch's headers that an error came through


def call(name: str, *arguments: Any, overload: str = "default") -> Any:
    """Run ``torch.ops.refinedet.<name>``: in C++ but for what an error needs, for a call is half of a small problem.

    Raises:
        InputError: csrc/checks.h rejects an argument, or one is of the wrong type.
        ExtensionError: there are no operators, or none that run on the GPU where the tensors are.
        torch.OutOfMemoryError: there is no memory for the results, the workspace or a copy of an input.
        RuntimeError: a kernel cannot be launched.
    """
    extension.require()
    try:
        return getattr(getattr(_OPERATORS, name), overload)(*arguments)
    except RuntimeError as error:
        message = str(error).partition("\n")[0] or f"{type(error).__name__} without a message"
        if message.startswith(f"refinedet.{name}: "):
            raise InputError(message) from None
        if mismatch := _TYPE_MISMATCH.search(message):
            wanted, argument, found = mismatch.groups()
            if wanted == found:  # an int that is larger than torch's
                raise InputError(f"refinedet.{name}: {argument} does not fit in 64 bits; give a smaller one") from None
            raise InputError(f"refinedet.{name}: {argument} is of type {found}; give {wanted}") from None
        tensors = list(_tensors(arguments))
        if isinstance(error, NotImplementedError):  # of the dispatcher
            kinds = ", ".join(sorted({_kind(tensor) for tensor in tensors})) or "None"
            raise InputError(f"refinedet.{name} takes dense tensors of the CPU or a GPU, got {kinds}") from None
        gpus = [tensor.device for tensor in tensors if tensor.is_cuda]
        problem = extension.cuda_problem(gpus[0]) if gpus else None
        if problem is not None:
            raise ExtensionError(f"refinedet.{name}: {': '.join(problem)}") from None
        if _NOT_ALLOCATED.search(message):
            message = "out of memory for the results or the workspace"
        elif not gpus and _NOT_COPIED.search(message):  # on a GPU it may be what an earlier kernel has failed at
            message = "out of memory for a copy of an input"
        shapes = ", ".join(str([*tensor.shape]) for tensor in tensors)
        told = f"refinedet.{name} of {shapes}: {_BOUNDARY.sub('', message)}"
        if _OUT_OF_MEMORY.search(message):
            raise torch.OutOfMemoryError(told) from None
        if gpus and type(error) is RuntimeError:  # what a launch says names the kernel only
            raise RuntimeError(told) from error
        raise


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in an argument, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.layout).removeprefix('torch.')} {tensor.dtype} on {tensor.device}"
