"""Layers between the convolutions of a network in training on a CPU, in as few passes through memory as they need.

Each is an autograd function around compiled ones of ``csrc/training`` or oneDNN, and takes the place of plain PyTorch
where `fusible` says so. Elsewhere (no gradient wanted, a GPU, another dtype or layout, a compiler at work) the layers
are those of torch. Values and gradients are the same, but for the order of sums.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from refinedet.ops import extension


def fusible(x: Tensor) -> bool:
    """Whether the functions below take ``x`` [B,C,H,W]: float32 on the CPU, channels-last, on its way to a gradient."""
    return _is_plain(x) and x.requires_grad and x.is_contiguous(memory_format=torch.channels_last)


def fusible_convolution(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `conv_relu` takes them: as `fusible`, but ``x`` may be images, and a layer that nobody looks into."""
    return bool(
        _is_plain(x)
        and type(conv) is nn.Conv2d
        and _is_plain(conv.weight)
        and conv.weight.requires_grad
        and conv.weight.is_contiguous(memory_format=torch.channels_last)
        and conv.bias is not None
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not (conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks)
        and len(x) > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def _is_plain(x: Tensor) -> bool:
    """float32 on the CPU, no stand-in for another tensor, where gradients are wanted and nobody records or compiles."""
    return bool(
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and extension.problem() is None
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
    )


def conv_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution, with its ReLU where oneDNN writes the result, of a layer and a map that are fusible."""
    result: Tensor = _ConvReLU.apply(
        x, conv.weight, conv.bias, list(conv.stride), list(conv.padding), list(conv.dilation)
    )
    return result


def relu_pool(x: Tensor) -> Tensor:
    """ReLU and the largest of each window of 2 x 2 pixels, cut off at an odd border, of a map that is `fusible`."""
    pooled: Tensor = _ReluPool.apply(x)
    return pooled


def l2norm(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    """Each position's channel vector over the root of its squares' sum + ``epsilon``, times ``factors`` [C], of a map
    that is `fusible`."""
    result: Tensor = _L2Norm.apply(x, factors, epsilon)
    return result


class _ConvReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], dilation: list[int]
    ) -> Tensor:
        # Inductor's operator: https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/mkldnn/Conv.cpp
        last = x.contiguous(memory_format=torch.channels_last)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            last, weight, bias, padding, stride, dilation, 1, "relu", [], ""
        )
        ctx.save_for_backward(last, weight, result)
        ctx.geometry = stride, padding, dilation
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, result = ctx.saved_tensors
        masked = torch.ops.aten.threshold_backward(gradient, result, 0)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            masked, x, weight, [len(weight)], *ctx.geometry, False, [0, 0], 1, ctx.needs_input_grad[:3]
        )
        return of_x, of_weight, of_bias, None, None, None


class _ReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pooled, choice = torch.ops.refinedet.relu_pool(_channels_last(x))
        ctx.save_for_backward(choice)
        ctx.size = x.shape[2:]
        return _channels_first(pooled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (choice,) = ctx.saved_tensors
        return _channels_first(torch.ops.refinedet.relu_pool_backward(_channels_last(gradient), choice, *ctx.size))


class _L2Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
        rows = _channels_last(x)
        result, inverse = torch.ops.refinedet.l2norm(rows.flatten(0, 2), factors, epsilon)
        ctx.save_for_backward(x, factors, inverse)
        return _channels_first(result.view(rows.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, factors, inverse = ctx.saved_tensors
        rows = _channels_last(x)
        of_rows, of_factors = torch.ops.refinedet.l2norm_backward(
            _channels_last(gradient).flatten(0, 2), rows.flatten(0, 2), factors, inverse
        )
        return _channels_first(of_rows.view(rows.shape)), of_factors, None


def _channels_last(x: Tensor) -> Tensor:
    """[B,C,H,W] as [B,H,W,C] without gaps: a copy only of a gradient that came in another layout."""
    return x.permute(0, 2, 3, 1).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
