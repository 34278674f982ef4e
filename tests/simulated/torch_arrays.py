"""Tensors of any supported element type as arrays for the harness."""

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of InputType, csrc/input_type.h


def to_array(tensor: Tensor) -> np.ndarray:
    """The elements; half types as their bits, which is what the kernels read."""
    return (tensor.view(torch.int16) if tensor.dtype in DTYPES[1:] else tensor).numpy()
