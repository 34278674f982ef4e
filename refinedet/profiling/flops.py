"""The work of a network, operation by operation: floating-point operations, bytes, parameters.

Counted from real shapes in one forward pass without values, on the meta device: nothing is computed, so that VGG-16 at
512 takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from refinedet.models.optimized import eval_mode

_FUSED = ("mkldnn::_convolution_pointwise", "mkldnn::_convolution_transpose_pointwise")  # oneDNN's, unknown to torch's
_OWN = {"refinedet::winograd": 9, "refinedet::pointwise": 1}  # places of the kernel; weights are [..,panels,C,panel]
_CHANNELS_LAST = {*_OWN, "refinedet::max_pool"}  # these give [B,H,W,C]
_UNMOVED = "_unsafe_view"  # torch does not declare this one a view


@dataclass(frozen=True)
class Layer:
    """One operation of a forward pass: a convolution, a normalisation, a ReLU.

    ``name``: the innermost module that calls it, as in ``named_modules`` ("backbone.conv1_1", "" is the network); a
    ReLU that a module calls as a function has the module's name. ``kind``: torch's name of the operation
    ("convolution", "relu_"). ``output``: shape of its result. ``flop``: floating-point operations, a multiplication and
    an addition counted as 2; of convolutions, deconvolutions, linear layers and matrix products, without their biases;
    0 of all others. ``parameters``: of the module, at its first operation. ``bytes``: of the tensors that it reads and
    writes, each once.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    flop: int
    parameters: int
    bytes: int


def list_layers(network: nn.Module, size: tuple[int, int], batch: int = 1) -> list[Layer]:
    """The operations of one forward pass in eval mode, in the order they are called.

    ``size``: height and width in pixels of ``batch`` images [batch,3,H,W] in the dtype of the network's weights, whose
    device does not matter. Views, which move nothing, are left out. The network stays as it is.
    """
    counter = Counter()
    with eval_mode(network), torch.inference_mode(False), torch.no_grad():
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        without_values = {name: tensor.to("meta") for name, tensor in tensors.items()}
        images = torch.empty(batch, 3, *size, dtype=next(network.parameters()).dtype, device="meta")
        with counter.following(network), counter:
            functional_call(network, without_values, images, {"by_level": True})
    return counter.layers


def gigaflop(layers: list[Layer]) -> float:
    """Billions of floating-point operations of all ``layers``."""
    return sum(layer.flop for layer in layers) / 1e9


class Counter(TorchDispatchMode):
    """Notes every operation in its block, under the module of a `following` network that calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self._calls: list[str] = []  # modules that are being called, the innermost last
        self._parameters: dict[str, int] = {}  # of modules that have not been noted

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Know which module of ``network`` is being called in the block."""
        handles = []
        for name, module in network.named_modules():
            self._parameters[name] = sum(each.numel() for each in module.parameters(recurse=False))
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._calls.append(name)))
            handles.append(module.register_forward_hook(lambda *_: self._end_call(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _end_call(self) -> None:
        self._calls.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self.run(func, args, kwargs)
        if func is torch.ops.aten.convolution.default and result.is_meta and any(map(_is_channels_last, args[:2])):
            result = result.to(memory_format=torch.channels_last)  # as on the CPU and on CUDA; meta tensors forget it
        if not _is_view(func):
            self.note(func, args, kwargs, result)
        return result

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Carry an operation out."""
        return func(*args, **kwargs)

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        written = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        read = {id(each): each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        name = self._calls[-1] if self._calls else ""
        layer = Layer(
            name,
            func._overloadpacket.__name__,
            _shape(func, written[0]) if written else (),
            _flop(func, args, kwargs, result),
            self._parameters.pop(name, 0),
            sum(map(_bytes, read.values())) + sum(map(_bytes, written)),
        )
        self.layers.append(layer)


def _shape(func: Any, result: Tensor) -> tuple[int, ...]:
    """[B,C,H,W] of all maps."""
    shape = tuple(result.shape)
    return (shape[0], shape[-1], *shape[1:-1]) if func._schema.name in _CHANNELS_LAST else shape


def _flop(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    name = func._schema.name
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    if name in _OWN:  # Winograd's as if it computed all products, and not a quarter of them
        pixels = result.numel() // result.shape[-1]
        return int(2 * _OWN[name] * pixels * given["weight"].shape[-2] * given["out_channels"])
    if name in _FUSED:
        return int(conv_flop_count(args[0].shape, given["W"].shape, result.shape, "transpose" in name))
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _is_view(func: Any) -> bool:
    """Whether the result only looks at an argument, and nothing is written."""
    returns = func._schema.returns
    aliases = [each.alias_info for each in returns]
    only_looks = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return only_looks or func._overloadpacket.__name__ == _UNMOVED


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _bytes(tensor: Tensor) -> int:
    """Of the values; those that are repeated by broadcasting count once."""
    if tensor.layout is not torch.strided:  # oneDNN's, of weights in the order that it reads them in
        return tensor.numel() * tensor.element_size()
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
