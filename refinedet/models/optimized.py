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
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from refinedet.choices import TIMM
from refinedet.models import winograd
from refinedet.models.backbones.base import Features
from refinedet.models.heads import Heads
from refinedet.models.layers import CaffeBatchNorm2d, L2Norm
from refinedet.models.refinedet import RefineDet

Conv = nn.Conv2d | nn.ConvTranspose2d
Levels = tuple[Tensor, ...]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm2d, CaffeBatchNorm2d)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, "relu", "relu_")
_ROUNDING = 1e-3  # of the largest value


_MADE: WeakKeyDictionary[RefineDet, tuple[_State, RefineDet]] = WeakKeyDictionary()  # by the network as it was given


def optimized(network: nn.Module) -> nn.Module:
    """`optimize`, made once, and made again after weights or layers have changed.

    It is ``network`` itself where that is not on the CPU in float32, under autocast, with hooks, patched methods or
    parametrisations in it, or where torch has no oneDNN. Changes of weights through ``.data`` are not seen.
    """
    if not isinstance(network, RefineDet) or not _applies(network):
        return network
    state = _State(network)
    known = _MADE.get(network)
    if known is None or known[0] != state:
        known = _MADE[network] = state, optimize(network)
    return known[1]


def optimize(network: RefineDet) -> RefineDet:
    """A network of the same outputs for inference, in float32 on the CPU; ``network`` is not changed.

    It holds weights of its own, prepared for the convolutions, and does not follow later changes of ``network``, which
    has to be in eval mode here. A backbone of timm runs once: where torch.fx has misread it, it is left as it is.
    """
    made = cast(RefineDet, _optimize_children(network))
    if network.config.backbone.startswith(TIMM) and not _agree(made.backbone, network.backbone, network.config.size):
        made.backbone = network.backbone
    return made


def _agree(made: nn.Module, backbone: nn.Module, size: tuple[int, int]) -> bool:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = backbone(images)
    try:
        found = made(images)
    except Exception:  # of any kind, as what torch.fx makes of them
        return False
    pairs = zip(found, expected, strict=True)
    return all(x.shape == y.shape and (x - y).abs().max() <= _ROUNDING * y.abs().max() for x, y in pairs)


def _applies(network: RefineDet) -> bool:
    if network.device.type != "cpu" or not torch.backends.mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
        return False
    for module in network.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return False
        if "parametrizations" in module._modules:
            return False
    tensors = [*network.parameters(), *network.buffers()]
    # Those that were made in inference mode do not count their changes.
    return not any(t.is_inference() or (t.is_floating_point() and t.dtype != torch.float32) for t in tensors)


class _State:
    """Tells whether a network is as it was: its layers, and the tensors in it by place and count of changes.

    They are kept, that no new one comes to lie where an old one was.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules = [module for module in network.modules() if module is not network]
        self.tensors = [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
        self.changes = [(tensor.data_ptr(), tensor._version) for tensor in self.tensors]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _State) or self.changes != other.changes:
            return False
        return list(map(id, self.modules)) == list(map(id, other.modules))

    __hash__ = None  # type: ignore[assignment]


class Convolution(nn.Module):
    """A convolution or deconvolution with all that follows it: normalisation, a sum, ReLU.

    ``method`` says how it is computed, "winograd" or "onednn"; it is chosen, and the weights are laid out, for the
    first input that comes. Inputs of other sizes are computed as well.
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

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """[B,C,H,W] to [B,D,h,w], channels-last; ``other`` of that shape is added before the ReLU."""
        x = x.contiguous(memory_format=torch.channels_last)
        if self.method is None:
            self._prepare(x)
        if self.method == "winograd":
            return winograd.convolve(x, self.weight, cast(Tensor, self.bias), other, self.out_channels, self.relu)
        place = self.padding, self.stride, self.dilation, self.groups
        activation = "relu" if self.relu else "none"
        if self.transposed:
            y = torch.ops.mkldnn._convolution_transpose_pointwise(
                x, self.weight, self.bias, self.padding, self.output_padding, *place[1:], activation, [], ""
            )
        elif other is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *place, activation, [], "")
        else:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, self.weight, self.bias, *place, "add", None, "relu" if self.relu else None, [], ""
            )
        return cast(Tensor, y)

    def _prepare(self, x: Tensor) -> None:
        place = self.stride, self.dilation, self.groups, x.shape
        if self._suits_winograd(x):
            self.method = "winograd"
            self.weight, self.bias = winograd.transform(self.weight, self.bias)
            return
        self.method = "onednn"
        if self.transposed:
            self.weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self.weight, self.padding, self.output_padding, *place
            )
        else:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, self.padding, *place)

    def _suits_winograd(self, x: Tensor) -> bool:
        shape = self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        plain = not self.transposed and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        return plain and winograd.suits(x)


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
    """`L2Norm` in two passes over the map."""

    def __init__(self, norm: L2Norm) -> None:
        super().__init__()
        self.weight = norm.weight.detach().clone().view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x * length.square_().add_(L2Norm.EPS).rsqrt_() * self.weight


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
    if type(module) in _CONVOLUTIONS and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return fold(cast(Conv, module), None)
    if not any(True for _ in module.children()):
        return module
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception:  # of any kind: the networks of timm do as they like with what they are given
        return _optimize_children(module)
    return _Fusion(fx.GraphModule(tracer.root, graph)).run()


def _optimize_children(module: nn.Module) -> nn.Module:
    """A copy of the module whose parts are optimised."""
    other = copy.copy(module)
    other._modules = {name: child and _optimize(child) for name, child in module._modules.items()}
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
        for node in list(self.module.graph.nodes):
            if node.target in _ADDITIONS:
                self._take_sum(node)
        for node in list(self.module.graph.nodes):
            if _is_relu(node, self.module):
                self._take_relu(node)
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        return self.module

    def _optimize_call(self, node: fx.Node) -> None:
        module = self.module.get_submodule(node.target)
        if type(module) not in _CONVOLUTIONS:
            self.module.set_submodule(node.target, _optimize(module))
            return
        after = _only_user(node)
        norm = self._called(after)
        if type(norm) in _NORMS and norm.track_running_stats:
            self.module.set_submodule(node.target, fold(module, norm))
            _drop(after, node)
        else:
            self.module.set_submodule(node.target, _optimize(module))

    def _take_sum(self, node: fx.Node) -> None:
        if len(node.args) != 2 or node.kwargs:
            return
        for conv, other in (node.args, reversed(node.args)):
            layer = self._called(conv)
            if isinstance(layer, Convolution) and not layer.transposed and _only_user(conv) is node:
                if not isinstance(other, fx.Node):
                    return
                node.op, node.target, node.args = "call_module", conv.target, (*conv.args, other)
                self.module.graph.erase_node(conv)
                return

    def _take_relu(self, node: fx.Node) -> None:
        before = node.args[0]
        whole = [before] if before.target is not torch.cat else list(before.args[0])
        layers = [self._called(part) for part in whole]
        if _only_user(before) is not node or any(_only_user(part) is None for part in whole):
            return
        if all(isinstance(layer, Convolution) for layer in layers):
            for layer in layers:
                layer.relu = True
            _drop(node, before)

    def _called(self, node: Any) -> Any:
        """The module that a node calls, and no other node does."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        calls = sum(other.op == "call_module" and other.target == node.target for other in self.module.graph.nodes)
        return self.module.get_submodule(node.target) if calls == 1 else None


def _is_relu(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(node.target)) is nn.ReLU
    return node.target in _RELUS


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _drop(node: fx.Node, before: fx.Node) -> None:
    """Take ``node`` out: who read it reads ``before``."""
    node.replace_all_uses_with(before)
    node.graph.erase_node(node)
