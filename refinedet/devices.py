"""Where to compute."""

import torch

from refinedet import _extension
from refinedet.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name: auto, cpu, cuda or cuda:N. "auto" is a GPU where the operators run on one, else the CPU.

    Raises:
        InputError: there is no such device, or the operators do not run on it.
    """
    kind, colon, index = name.partition(":")
    if name == "auto":
        gpu = torch.device("cuda")
        return gpu if torch.cuda.is_available() and _extension.cuda_problem(gpu) is None else torch.device("cpu")
    if name != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise InputError(f"device is {name!r}; give auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if kind == "cuda":
        if int(index or 0) >= torch.cuda.device_count():
            raise InputError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices; give cpu")
        if problem := _extension.cuda_problem(device):
            raise InputError(f"device is {name!r}, but {': '.join(problem)}; or give cpu")
    return device
