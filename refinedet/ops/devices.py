"""Where to compute."""

import warnings

import torch

from refinedet.choices import DEVICES, is_device
from refinedet.errors import InputError
from refinedet.ops import extension


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name: auto, cpu, cuda or cuda:N. "auto" is a GPU where the operators run on one, else the CPU;
    a warning tells why a GPU is not used.

    Raises:
        InputError: there is no such device, or the operators do not run on it.
    """
    if name == "auto":
        return _best_device()
    if not is_device(name):
        raise InputError(f"device is {name!r}; give {DEVICES}")
    if name == "cpu":
        return torch.device(name)
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise InputError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; give cpu")
    device = torch.device(name)
    if problem := extension.cuda_problem(device):
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
