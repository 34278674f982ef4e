"""The input that a weights file was trained for, folded into a network that reads Caffe's."""

import torch
from torch import Tensor

from refinedet.choices import WEIGHTS_INPUTS
from refinedet.errors import InputError
from refinedet.preprocessing import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue in 0..1: torchvision's and timm's usual statistics
IMAGENET_STD = (0.229, 0.224, 0.225)


def fold_input(weight: Tensor, weights_input: str, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Make the first convolution of a file, which reads ``weights_input``, read ``preprocessing``: BGR order, std 1.

    ``weight``: [O,3,k,k]. Returns the kernel [O,3,k,k] and the shift [O] to add to its outputs. Raises InputError for
    an unknown ``weights_input``.
    """
    if weights_input not in WEIGHTS_INPUTS:
        raise InputError(f"weights_input is {weights_input!r}; choose one of {', '.join(WEIGHTS_INPUTS)}")
    if weights_input == "caffe":
        return weight, weight.new_zeros(len(weight))
    return fold_rgb_input(weight, preprocessing)


def fold_rgb_input(weight: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """`fold_input` of a convolution that reads torchvision's input.

    The shift is there because the two means differ by up to 0.7 grey levels. Outputs equal the original's but where the
    kernel reads padding: a padded 0 stands for the mean, which is not quite the same grey.
    """
    scale = 255 * torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
    kernel = (weight.double() / scale).flip(1)
    difference = torch.tensor(preprocessing.mean, dtype=torch.float64) - 255 * torch.tensor(
        IMAGENET_MEAN[::-1], dtype=torch.float64
    )
    shift = kernel.sum(dim=(2, 3)) @ difference
    return kernel.to(weight.dtype), shift.to(weight.dtype)
