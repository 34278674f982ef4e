"""A network for inference on the CPU: the same outputs, within rounding, in fewer and faster steps.

`optimize` makes it from a network as it was trained, which stays as it is:

* it is a folded one (`refinedet.models.folded`), which is all there is on other devices and in other types;
* ReLU and the sum of a shortcut are done while the output of the convolution before them is in registers;
* weights are laid out once as the convolution reads them: oneDNN's through torch.

The layers keep their names: ``dict(optimize(network).named_modules())["tcb.lateral1.0.conv"]`` is a `Convolution`.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from refinedet.models import panels, pointwise, winograd
from refinedet.models.folded import (
    Conv,
    Levels,
    Node,
    called,
    check_backbone,
    drop,
    fold,
    fold_parts,
    only_user,
    rebuild,
)
from refinedet.models.layers import L2Norm
from refinedet.models.refinedet import RefineDet
from refinedet.records import LevelOutput

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, "relu", "relu_")
_PREPARING = threading.Lock()


class _Made(NamedTuple):
    facts: list[int]
    kept: list[Any]  # the layers and tensors that they are of: no new one may come to lie where an old one was
    network: RefineDet


_MADE: WeakKeyDictionary[RefineDet, _Made] = WeakKeyDictionary()


def optimized(network: nn.Module) -> RefineDet | None:
    """`optimize`, or where that does not apply `fold`, made once, and made again after weights or layers have changed.

    `optimize` needs float32, the CPU and oneDNN in torch. None for networks under autocast, with hooks, patched methods
    or parametrisations in them. Changes of weights through ``.data`` are not seen.
    """
    if not isinstance(network, RefineDet) or torch.is_autocast_enabled(network.device.type):
        return None
    modules = list(_modules(network))
    facts = _facts(modules)
    made = _MADE.get(network)
    if facts is None or (made is not None and made.facts == facts):
        return None if facts is None or made is None else made.network
    tensors = [*network.parameters(), *network.buffers()]
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors if tensor.is_floating_point()}
    make = optimize if kinds == {("cpu", torch.float32)} and torch.backends.mkldnn.is_available() else fold
    with eval_mode(network):
        made = _Made(facts, [modules[1:], [tensor.detach() for tensor in tensors]], make(network))
    _MADE[network] = made
    return made.network


def run_in_parts(network: RefineDet, images: Tensor) -> LevelOutput:
    """Raw output of an `optimized` network for images [B,3,H,W], B >= 1, `images_at_a_time`."""
    parts = [network(some, by_level=True) for some in images.split(images_at_a_time(images))]
    return cast(LevelOutput, parts[0] if len(parts) == 1 else LevelOutput(*map(_join, zip(*parts, strict=True))))


def images_at_a_time(images: Tensor) -> int:
    """Of a batch, in `run_in_parts`. On the CPU the maps of more are pushed out of its caches before the next layer
    reads them; but many threads find too little to do in the small maps of one image."""
    return max(1, torch.get_num_threads() // 2) if images.device.type == "cpu" else len(images)


def _join(parts: Sequence[Levels | None]) -> Any:
    """The levels of all images, from those of each part; None of a network without these outputs."""
    return None if parts[0] is None else tuple(torch.cat(level) for level in zip(*cast(Any, parts), strict=True))


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """As ``module.modules()``, the first one first, several times as fast: this runs for every batch."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _modules(child)


def _facts(modules: list[nn.Module]) -> list[int] | None:
    """What tells whether a network is as it was: its layers, and place and count of changes of each tensor. None where
    it does more than its layers say."""
    facts = []
    for module in modules:
        inside = module.__dict__
        if inside["_forward_hooks"] or inside["_forward_pre_hooks"] or "forward" in inside:
            return None
        if "parametrizations" in inside["_modules"]:
            return None
        facts.append(id(module))
        for tensor in (*inside["_parameters"].values(), *inside["_buffers"].values()):
            if tensor is not None:
                if tensor.is_inference():  # does not count its changes
                    return None
                facts += (tensor.data_ptr(), tensor._version)
    return facts


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """``network`` in eval mode inside the block; after it every module is in the mode it was in, a frozen one too."""
    training = [module for module in _modules(network) if module.training]
    if training:
        network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def optimize(network: RefineDet) -> RefineDet:
    """A network of the same outputs for inference, in float32 on the CPU; ``network`` is not changed.

    As for `fold`, ``network`` has to be in eval mode here, and what is made is to be made anew after a change of it.
    Its convolutions hold weights of their own.
    """
    folded = fold_parts(network)
    made = cast(RefineDet, rebuild(folded, _optimize))
    check_backbone(made, network)
    return made


class Convolution(nn.Module):
    """A convolution or deconvolution with all that follows it: normalisation, a sum, ReLU.

    ``method`` says how it is computed, "winograd", "pointwise" or "onednn"; it is chosen, and the weights are laid out,
    for the first input that comes. Inputs of other sizes are computed as well.
    """

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.transposed = isinstance(conv, nn.ConvTranspose2d)
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.output_padding = conv.padding, conv.output_padding
        self.relu = False
        self.method: str | None = None
        self.weight: Tensor = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor, other: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """[B,C,H,W] to [B,D,h,w], channels-last; ``other`` of that shape is added before the ReLU. Behind the channels
        of ``beside`` [B,E,h,w], where given: [B,E+D,h,w]."""
        x = x.contiguous(memory_format=torch.channels_last)
        if self.method is None:
            self._prepare(x)
        options: dict[str, Any] = {"relu": self.relu, "other": other}
        if self.method == "winograd":
            options["beside"] = beside
            return winograd.convolve(x, self.weight, cast(Tensor, self.bias), self.out_channels, **options)
        if self.method == "pointwise":
            y = pointwise.convolve(x, self.weight, cast(Tensor, self.bias), self.out_channels, **options)
        else:
            y = self._by_onednn(x, other)
        return y if beside is None else torch.cat([beside, y], dim=1)

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        place = self.padding, self.stride, self.dilation, self.groups
        # For the sum of such maps torch 2.10 "could not create a memory".
        one_pixel = other is not None and other.shape[2:] == (1, 1)
        activation = "relu" if self.relu and not one_pixel else "none"
        if self.transposed:
            y = torch.ops.mkldnn._convolution_transpose_pointwise(
                x, self.weight, self.bias, self.padding, self.output_padding, *place[1:], activation, [], ""
            )
        elif other is None or one_pixel:
            y = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *place, activation, [], "")
        else:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, self.weight, self.bias, *place, "add", None, "relu" if self.relu else None, [], ""
            )
        if one_pixel:
            y = y + other
            y = y.relu() if self.relu else y
        return cast(Tensor, y)

    def _prepare(self, x: Tensor) -> None:
        with _PREPARING:
            if self.method is None:  # else another thread did it meanwhile
                method, weight, bias = self._lay_out(x)
                self.weight, self.bias = weight, bias
                self.method = method  # last: from now on other threads read the weights

    def _lay_out(self, x: Tensor) -> tuple[str, Tensor, Tensor | None]:
        """The method for such an input, weights and biases as it takes them."""
        side, stride = self.kernel_size, (self.stride, self.dilation, self.groups)
        if not self.transposed and stride == ((1, 1), (1, 1), 1):
            if (side, self.padding) == ((3, 3), (1, 1)) and winograd.suits(x):
                return "winograd", *winograd.transform(self.weight, self.bias)
            if (side, self.padding) == ((1, 1), (0, 0)) and panels.available():
                return "pointwise", *pointwise.transform(self.weight, self.bias)
        if self.transposed:
            reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
            return "onednn", reorder(self.weight, self.padding, self.output_padding, *stride, x.shape), self.bias
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        return "onednn", reorder(self.weight, self.padding, *stride, x.shape), self.bias


class FastL2Norm(nn.Module):
    """`L2Norm` in one pass over the map."""

    def __init__(self, norm: L2Norm) -> None:
        super().__init__()
        self.weight = norm.weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).contiguous()
        y, _ = torch.ops.refinedet.l2norm(rows.flatten(0, 2), self.weight, L2Norm.EPS)
        return cast(Tensor, y).view(rows.shape).permute(0, 3, 1, 2)


class MaxPool(nn.Module):
    """Largest values of windows that start inside the map, the first one at its corner; torch's own finds the places
    as well."""

    def __init__(self, side: int, stride: int, ceil_mode: bool) -> None:
        super().__init__()
        self.side, self.stride, self.ceil_mode = side, stride, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._windows(pixels) for pixels in x.shape[2:])
        y = torch.ops.refinedet.max_pool(x.permute(0, 2, 3, 1), self.side, self.stride, height, width)
        return cast(Tensor, y).permute(0, 3, 1, 2)

    def _windows(self, pixels: int) -> int:
        steps = pixels - self.side
        whole = (-(-steps // self.stride) if self.ceil_mode else steps // self.stride) + 1
        return whole if (whole - 1) * self.stride < pixels else whole - 1  # none that starts outside


def _optimize(module: nn.Module) -> nn.Module:
    """One part of a folded network, whose graphs are rewritten in place."""
    if isinstance(module, L2Norm):
        return FastL2Norm(module)
    if type(module) is nn.MaxPool2d and _is_plain(module):
        return MaxPool(cast(int, module.kernel_size), cast(int, module.stride), module.ceil_mode)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and _is_known(module):
        return Convolution(module)
    if isinstance(module, fx.GraphModule):
        return _Fusion(module).run()
    return rebuild(module, _optimize)


def _is_known(conv: Conv) -> bool:
    """Whether `Convolution` does what it does."""
    kind = type(conv) in (nn.Conv2d, nn.ConvTranspose2d)
    return kind and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _is_plain(pool: nn.MaxPool2d) -> bool:
    """Whether `MaxPool` does what it does."""
    whole = isinstance(pool.stride, int) and pool.kernel_size in (2, 3)
    return whole and (pool.padding, pool.dilation, pool.return_indices) == (0, 1, False)


class _Fusion:
    """Rewrites the graph of a module: each convolution takes up what only it is followed by."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def run(self) -> fx.GraphModule:
        for node in list(self.module.graph.nodes):
            if node.op == "call_module":
                self.module.set_submodule(node.target, _optimize(self.module.get_submodule(node.target)))
            elif node.target is F.max_pool2d:
                self._take_pool(node)
        for node in list(self.module.graph.nodes):
            if node.target in _ADDITIONS:
                self._take_sum(node)
        for node in list(self.module.graph.nodes):
            if node.args and _is_relu(node, self.module):
                self._take_relu(node)
        for node in list(self.module.graph.nodes):
            if node.args and node.target is torch.cat:
                self._take_concatenation(node)
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        return self.module

    def _take_pool(self, node: Node) -> None:
        """A pooling that is a function becomes a layer, with the name of its node."""
        options = {name: value for name, value in node.kwargs.items() if value is not None}
        x, *sides = node.args
        pool = nn.MaxPool2d(*sides, **options)
        if _is_plain(pool):
            self.module.add_submodule(node.name, _optimize(pool))
            node.op, node.target, node.args, node.kwargs = "call_module", node.name, (x,), {}

    def _take_sum(self, node: Node) -> None:
        if len(node.args) != 2 or node.kwargs:
            return
        for conv, other in (node.args, reversed(node.args)):
            layer = called(self.module, conv)
            if isinstance(layer, Convolution) and not layer.transposed and only_user(conv) is node:
                if not isinstance(other, fx.Node) or other is conv or len(conv.args) > 1:  # it has a summand
                    continue
                node.op, node.target, node.args = "call_module", conv.target, (*conv.args, other)
                self.module.graph.erase_node(conv)
                return

    def _take_relu(self, node: Node) -> None:
        before = node.args[0]
        parts = before.args[0] if before.args and before.target is torch.cat else None
        whole = parts if isinstance(parts, list | tuple) else [before]
        layers = [called(self.module, part) for part in whole]
        if only_user(before) is not node or any(only_user(part) is None for part in whole):
            return
        if all(isinstance(layer, Convolution) for layer in layers):
            for layer in layers:
                layer.relu = True
            drop(node, before)

    def _take_concatenation(self, node: Node) -> None:
        """The last convolution writes its channels to their place, and what comes before them as well."""
        parts, dim = node.args[0], node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if not isinstance(parts, list | tuple) or len(parts) != 2 or parts[0] is parts[1] or dim != 1:
            return
        last = parts[1]
        if only_user(last) is not node or len(last.args) != 1:
            return
        if isinstance(called(self.module, last), Convolution):
            node.op, node.target = "call_module", last.target
            node.args, node.kwargs = (*last.args, None, parts[0]), {}
            self.module.graph.erase_node(last)


def _is_relu(node: Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(node.target)) is nn.ReLU
    return node.target in _RELUS
