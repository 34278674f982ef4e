"""Where to compute."""

import warnings

import torch

from refinedet.choices import check_device
from refinedet.errors import InputError
from refinedet.ops import extension


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name: auto, cpu, cuda or cuda:N. "auto" is a GPU where the operators run on one, else the CPU;
    a warning tells why a GPU is not used.

    Raises:
        InputError: there is no such device, or the operators do not run on it.
    """
    check_device(name)
    if name == "auto":
        return _best_device()
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; give cpu")
    device = torch.device(name)
    if kind == "cuda" and (problem := extension.cuda_problem(device)):
        raise InputError(f"device is {name!r}, but {': '.join(problem)}; or give cpu")
    return device


def _best_device() -> torch.device:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    if not torch.cuda.is_available():
        return cpu
    if problem := extension.cuda_problem(gpu):
        warnings.warn(f"the GPU is not used: {': '.join(problem)}", stacklevel=2)
        return cpu
    return gpu
