"""A network for inference on the CPU: the same outputs, within rounding, in fewer and faster steps.

`optimize` makes it from a network as it was trained, which stays as it is:

* batch normalisation is folded into the convolution or deconvolution before it, ReLU and the sum of a shortcut are done
  while its output is in registers;
* the two convolutions of a head, which read the same map, are one;
* weights are laid out once as the convolution reads them: oneDNN's through torch.

The layers keep their names: ``dict(optimize(network).named_modules())["tcb.lateral1.0.conv"]`` is a `Convolution`.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from refinedet.choices import TIMM
from refinedet.models import panels, pointwise, winograd
from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.heads import Heads
from refinedet.models.layers import CaffeBatchNorm2d, L2Norm
from refinedet.models.refinedet import RefineDet
from refinedet.records import LevelOutput

Conv = nn.Conv2d | nn.ConvTranspose2d
Levels = tuple[Tensor, ...]
Node = Any  # a node of a graph of torch.fx, whose parts have types too wide to work with

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm2d, CaffeBatchNorm2d)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, "relu", "relu_")
_ROUNDING = 1e-3  # of the largest value
_PREPARING = threading.Lock()


class _Made(NamedTuple):
    facts: list[int]
    kept: list[Any]  # the layers and tensors that they are of: no new one may come to lie where an old one was
    network: RefineDet


_MADE: WeakKeyDictionary[RefineDet, _Made] = WeakKeyDictionary()


def optimized(network: nn.Module) -> RefineDet | None:
    """`optimize`, made once, and made again after weights or layers have changed.

    None where it does not apply: for networks that are not on the CPU in float32, under autocast, with hooks, patched
    methods or parametrisations in them, or where torch has no oneDNN. Changes of weights through ``.data`` are not
    seen.
    """
    if not isinstance(network, RefineDet) or torch.is_autocast_enabled("cpu"):
        return None
    modules = list(_modules(network))
    facts = _facts(modules)
    made = _MADE.get(network)
    if facts is None or (made is not None and made.facts == facts):
        return None if facts is None or made is None else made.network
    tensors = [*network.parameters(), *network.buffers()]
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors if tensor.is_floating_point()}
    if kinds != {("cpu", torch.float32)} or not torch.backends.mkldnn.is_available():
        return None
    with eval_mode(network):
        made = _Made(facts, [modules[1:], [tensor.detach() for tensor in tensors]], optimize(network))
    _MADE[network] = made
    return made.network


def run_in_parts(network: RefineDet, images: Tensor) -> LevelOutput:
    """Raw output of an `optimized` network for images [B,3,H,W], B >= 1, `images_at_a_time`: the maps of
    more are pushed out of the processor's caches before the next layer reads them."""
    parts = [network(some, by_level=True) for some in images.split(images_at_a_time())]
    return cast(LevelOutput, parts[0] if len(parts) == 1 else LevelOutput(*map(_join, zip(*parts, strict=True))))


def images_at_a_time() -> int:
    """Of a batch, in `run_in_parts`. Many threads find too little to do in the small maps of one image."""
    return max(1, torch.get_num_threads() // 2)


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

    Its hooks are its own. It holds weights of its own, prepared for the convolutions, shares the others, and is to be
    made anew after a change of ``network``, which has to be in eval mode here. A backbone of timm runs once: where
    torch.fx has misread it, it is left as it is.
    """
    made = cast(RefineDet, _optimize_children(network))
    if network.config.backbone.startswith(TIMM) and not _agree(made.backbone, network.backbone, network.config.size):
        made.backbone = cast(Backbone, _copy(network.backbone))
    return made


def _agree(made: nn.Module, backbone: nn.Module, size: tuple[int, int]) -> bool:
    images = torch.rand(1, 3, *size, generator=torch.Generator("cpu").manual_seed(0), device="cpu", dtype=torch.float32)
    expected = backbone(images)
    try:
        found = made(images)
    except Exception:  # of any kind, as what torch.fx makes of them
        return False
    pairs = zip(found, expected, strict=True)
    return all(x.shape == y.shape and (x - y).abs().max() <= _ROUNDING * y.abs().max() for x, y in pairs)


class Convolution(nn.Module):
    """A convolution or deconvolution with all that follows it: normalisation, a sum, ReLU.

    ``method`` says how it is computed, "winograd", "pointwise" or "onednn"; it is chosen, and the weights are laid out,
    for the first input that comes. Inputs of other sizes are computed as well.
    """

    def __init__(self, conv: Conv, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.transposed = isinstance(conv, nn.ConvTranspose2d)
        self.in_channels, self.groups = conv.in_channels, conv.groups
        self.out_channels = weight.shape[1] * conv.groups if self.transposed else weight.shape[0]
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.output_padding = conv.padding, conv.output_padding
        self.relu = False
        self.method: str | None = None
        self.weight, self.bias = weight, bias

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


class JointHeads(nn.Module):
    """`Heads` whose two convolutions of a level are one."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.num_classes = heads.num_classes
        self.blocks = nn.ModuleList(_optimize(block) for block in heads.blocks)
        self.joint = nn.ModuleList(
            _joint(cast(nn.Conv2d, loc), cast(nn.Conv2d, conf)) for loc, conf in zip(heads.loc, heads.conf, strict=True)
        )

    def forward(self, features: Features) -> tuple[Levels, Levels]:
        """As `Heads`."""
        if self.blocks:
            features = tuple(block(x) for block, x in zip(self.blocks, features, strict=True))
        loc, conf = [], []
        for convolution, x in zip(self.joint, features, strict=True):
            y = convolution(x).permute(0, 2, 3, 1)
            batch, height, width, values = y.shape
            anchors = values // (4 + self.num_classes)
            offsets, logits = y.split((4 * anchors, values - 4 * anchors), dim=-1)
            loc.append(offsets.reshape(batch, height * width * anchors, 4))
            conf.append(logits.reshape(batch, height * width * anchors, self.num_classes))
        return tuple(loc), tuple(conf)


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


def _joint(loc: nn.Conv2d, conf: nn.Conv2d) -> Convolution:
    assert loc.bias is not None
    assert conf.bias is not None
    return Convolution(loc, torch.cat([loc.weight, conf.weight]).detach(), torch.cat([loc.bias, conf.bias]).detach())


def fold(conv: Conv, norm: nn.BatchNorm2d | None) -> Convolution:
    """The convolution with a batch normalisation in eval mode behind it as one. Computed in float64."""
    weight, bias = conv.weight.detach().double(), None if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        scale, shift = _affine(norm)
        # [out, in/groups, ...]; of a deconvolution [in, out/groups, ...], where group g has rows g * in/groups on.
        if isinstance(conv, nn.ConvTranspose2d):
            grouped = weight.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, 1, 1)
            weight = grouped.flatten(0, 1)
        else:
            weight = weight * scale.view(-1, 1, 1, 1)
        bias = shift if bias is None else bias * scale + shift
    return Convolution(conv, weight.float(), None if bias is None else bias.float())


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
        scale, shift = scale * weight, shift * weight + bias
    return scale, shift


def _optimize(module: nn.Module) -> nn.Module:
    """One part of a network. What torch.fx cannot follow runs as it is written, with its own parts optimised."""
    if isinstance(module, Heads):
        return JointHeads(module)
    if isinstance(module, L2Norm):
        return FastL2Norm(module)
    if type(module) is nn.MaxPool2d and _is_plain(module):
        return MaxPool(cast(int, module.kernel_size), cast(int, module.stride), module.ceil_mode)
    if type(module) in _CONVOLUTIONS and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return fold(cast(Conv, module), None)
    if not any(True for _ in module.children()):
        return _copy(module)
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception:  # of any kind: the networks of timm do as they like with what they are given
        return _optimize_children(module)
    return _Fusion(fx.GraphModule(tracer.root, graph)).run()


def _is_plain(pool: nn.MaxPool2d) -> bool:
    """Whether `MaxPool` does what it does."""
    whole = isinstance(pool.stride, int) and pool.kernel_size in (2, 3)
    return whole and (pool.padding, pool.dilation, pool.return_indices) == (0, 1, False)


def _optimize_children(module: nn.Module) -> nn.Module:
    """A copy of the module whose parts are optimised."""
    return _rebuild(module, _optimize)


def _copy(module: nn.Module) -> nn.Module:
    """A module that does the same, with hooks of its own and the same tensors; its parts likewise."""
    return _rebuild(module, _copy)


def _rebuild(module: nn.Module, rebuild_part: Callable[[nn.Module], nn.Module]) -> nn.Module:
    other = copy.copy(module)
    # Otherwise both would have one dictionary of hooks.
    vars(other).update({name: value.copy() for name, value in vars(other).items() if isinstance(value, (dict, set))})
    other._modules = {name: child and rebuild_part(child) for name, child in module._modules.items()}
    return other


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, L2Norm) or type(module) in _NORMS or super().is_leaf_module(module, name)


class _Fusion:
    """Rewrites the graph of a module: each convolution takes up what only it is followed by."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def run(self) -> fx.GraphModule:
        for node in list(self.module.graph.nodes):
            if node.op == "call_module":
                self._optimize_call(node)
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

    def _optimize_call(self, node: Node) -> None:
        module: Any = self.module.get_submodule(node.target)
        if type(module) not in _CONVOLUTIONS:
            self.module.set_submodule(node.target, _optimize(module))
            return
        after = _only_user(node)
        norm: Any = self._called(after) if self._called(node) is module else None
        if type(norm) in _NORMS and norm.track_running_stats:
            self.module.set_submodule(node.target, fold(module, norm))
            _drop(after, node)
        else:
            self.module.set_submodule(node.target, _optimize(module))

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
            layer = self._called(conv)
            if isinstance(layer, Convolution) and not layer.transposed and _only_user(conv) is node:
                if not isinstance(other, fx.Node) or other is conv or len(conv.args) > 1:  # it has a summand
                    continue
                node.op, node.target, node.args = "call_module", conv.target, (*conv.args, other)
                self.module.graph.erase_node(conv)
                return

    def _take_relu(self, node: Node) -> None:
        before = node.args[0]
        parts = before.args[0] if before.args and before.target is torch.cat else None
        whole = parts if isinstance(parts, list | tuple) else [before]
        layers = [self._called(part) for part in whole]
        if _only_user(before) is not node or any(_only_user(part) is None for part in whole):
            return
        if all(isinstance(layer, Convolution) for layer in layers):
            for layer in layers:
                layer.relu = True
            _drop(node, before)

    def _take_concatenation(self, node: Node) -> None:
        """The last convolution writes its channels to their place, and what comes before them as well."""
        parts, dim = node.args[0], node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if not isinstance(parts, list | tuple) or len(parts) != 2 or parts[0] is parts[1] or dim != 1:
            return
        last = parts[1]
        if _only_user(last) is not node or len(last.args) != 1:
            return
        if isinstance(self._called(last), Convolution):
            node.op, node.target = "call_module", last.target
            node.args, node.kwargs = (*last.args, None, parts[0]), {}
            self.module.graph.erase_node(last)

    def _called(self, node: Any) -> Any:
        """The module that a node calls, and no other node does."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        calls = sum(other.op == "call_module" and other.target == node.target for other in self.module.graph.nodes)
        return self.module.get_submodule(cast(str, node.target)) if calls == 1 else None


def _is_relu(node: Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(node.target)) is nn.ReLU
    return node.target in _RELUS


def _only_user(node: Node) -> Node:  # or None
    return next(iter(node.users)) if len(node.users) == 1 else None


def _drop(node: Node, before: Node) -> None:
    """Take ``node`` out: who read it reads ``before``."""
    node.replace_all_uses_with(before)
    node.graph.erase_node(node)
