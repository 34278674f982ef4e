"""A network for inference of standard layers: the same outputs, within rounding, of fewer of them.

`fold` makes it from a network as it was trained, which stays as it is:

* batch normalisation is folded into the convolution or deconvolution before it, in float64;
* the two convolutions of a head, which read the same map, are one;
* if asked for, it reads pixels: what is done to an image before the network is part of it.

All else is as in the network, so that whatever runs or exports PyTorch's own layers takes it. `optimized` goes on from
here, to layers of its own for the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refinedet.choices import TIMM
from refinedet.models.backbones.base import Backbone, Features
from refinedet.models.heads import Heads
from refinedet.models.layers import CaffeBatchNorm2d, L2Norm
from refinedet.models.refinedet import RefineDet
from refinedet.preprocessing import PIXELS, Preprocessing

Conv = nn.Conv2d | nn.ConvTranspose2d
Levels = tuple[Tensor, ...]
Node = Any  # a node of a graph of torch.fx, whose parts have types too wide to work with

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm2d, CaffeBatchNorm2d)
_ROUNDING = 1e-3  # of the largest value, in float32


def fold(network: RefineDet, preprocessing: Preprocessing | None = None) -> RefineDet:
    """A network of the same outputs for inference, on the device and in the dtype of ``network``, which has to be in
    eval mode here and is not changed.

    Its hooks are its own. It has folded weights of its own, shares the others, and is to be made anew after a change of
    ``network``. To have it in float16 or bfloat16, cast what is folded in float32: rounded once, and from statistics
    that are not. A backbone of timm runs once: where torch.fx has misread it, it is left as it is.

    ``preprocessing``: with one, mostly ``network.config.preprocessing``, the network made reads pixels [B,3,H,W]: BGR,
    0..255, in any floating dtype (float32, unless they are whole numbers: a float16 in 0..255 keeps eleven bits). The
    deviation and the order of the channels are in the first convolution then; the mean is subtracted before it.
    """
    made = fold_parts(network)
    check_backbone(made, network)
    if preprocessing is not None:
        made.backbone = cast(Backbone, _read_pixels(made.backbone, preprocessing, _noise(network)))
        made.config = replace(network.config, preprocessing=PIXELS)
    return made


def fold_parts(network: RefineDet) -> RefineDet:
    """As `fold`, but for `check_backbone`: to be called when what was folded is changed further."""
    made = cast(RefineDet, rebuild(network, _fold))
    for module in made.modules():
        for name, parameter in module._parameters.items():  # one of its own, or a cast would be that of the network
            module._parameters[name] = None if parameter is None else _frozen(parameter)
    return made


def check_backbone(made: RefineDet, network: RefineDet) -> None:
    """Where torch.fx has misread the backbone of ``network``, give it to ``made`` as it is."""
    if network.config.backbone.startswith(TIMM) and not _agree(made.backbone, network.backbone, _noise(network)):
        made.backbone = cast(Backbone, _copy(network.backbone))


def _noise(network: RefineDet) -> Tensor:
    """An image to try backbones with."""
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.rand(1, 3, *network.config.size, generator=generator, device="cpu", dtype=torch.float32)
    return noise.to(network.device, network.dtype)


@torch.no_grad()
def _agree(made: nn.Module, backbone: nn.Module, images: Tensor) -> bool:
    expected = backbone(images)
    try:
        found = made(images)
    except Exception:  # of any kind, as what torch.fx makes of them
        return False
    rounding = max(_ROUNDING, 8 * torch.finfo(images.dtype).eps)
    pairs = zip(found, expected, strict=True)
    return all(x.shape == y.shape and (x - y).abs().max() <= rounding * y.abs().max() for x, y in pairs)


class JointHeads(nn.Module):
    """`Heads` whose two convolutions of a level are one."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.num_classes = heads.num_classes
        self.blocks = nn.ModuleList(_fold(block) for block in heads.blocks)
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
            # Slices: of a split torch's exporter makes a sequence in ONNX, which few runtimes know.
            offsets, logits = y[..., : 4 * anchors], y[..., 4 * anchors :]
            loc.append(offsets.reshape(batch, height * width * anchors, 4))
            conf.append(logits.reshape(batch, height * width * anchors, self.num_classes))
        return tuple(loc), tuple(conf)


def _joint(loc: nn.Conv2d, conf: nn.Conv2d) -> Conv:
    assert loc.bias is not None
    assert conf.bias is not None
    made = _with_weights(loc, torch.cat([loc.weight, conf.weight]), torch.cat([loc.bias, conf.bias]))
    made.out_channels = len(made.weight)
    return made


class _PixelBackbone(nn.Module):
    """A backbone that reads images as they are, BGR in 0..255."""

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone, self.preprocessing = backbone, preprocessing

    def forward(self, images: Tensor) -> Features:
        """In float32 up to the backbone. The mean cannot go into the bias of a convolution that pads, as the first one
        of nearly every backbone does: what it pads is 0 after the subtraction."""
        mean, std = self._by_channel(images, self.preprocessing.mean), self.preprocessing.std
        images = images.float() - mean
        if std != PIXELS.std:
            images = images / self._by_channel(images, std)
        if self.preprocessing.order != PIXELS.order:
            images = images.flip(1)
        features: Features = self.backbone(images.to(next(self.backbone.parameters()).dtype))
        return features

    @staticmethod
    def _by_channel(images: Tensor, values: tuple[float, float, float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)


def _read_pixels(backbone: nn.Module, preprocessing: Preprocessing, images: Tensor) -> nn.Module:
    """The backbone for pixels. Changes the weights of ``backbone``."""
    centred = replace(PIXELS, mean=preprocessing.mean)
    expected = _PixelBackbone(backbone, preprocessing)
    if preprocessing == centred:
        return expected
    made = _PixelBackbone(_copy(backbone), centred)
    std = torch.tensor(preprocessing.std, dtype=torch.float64, device=images.device).view(3, 1, 1)
    for layer in _first_convolutions(made.backbone, images):
        weight = layer.weight.double()
        weight = (weight if preprocessing.order == PIXELS.order else weight.flip(1)) / std
        layer.weight = _frozen(weight.to(layer.weight.dtype))
    # Of timm some read the image in other ways.
    return made if _agree(made, expected, 255 * images) else expected


@torch.no_grad()
def _first_convolutions(backbone: nn.Module, images: Tensor) -> list[nn.Conv2d]:
    """Those that read the images themselves."""
    found = []

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if given and given[0] is images:
            found.append(cast(nn.Conv2d, layer))

    handles = [layer.register_forward_pre_hook(note) for layer in backbone.modules() if type(layer) is nn.Conv2d]
    backbone(images)
    for handle in handles:
        handle.remove()
    return found


def fold_norm(conv: Conv, norm: nn.BatchNorm2d) -> Conv:
    """The convolution with a batch normalisation in eval mode behind it as one."""
    weight, bias = conv.weight.detach().double(), None if conv.bias is None else conv.bias.detach().double()
    scale, shift = _affine(norm)
    # [out, in/groups, ...]; of a deconvolution [in, out/groups, ...], where group g has rows g * in/groups on.
    if isinstance(conv, nn.ConvTranspose2d):
        grouped = weight.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, 1, 1)
        weight = grouped.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    bias = shift if bias is None else bias * scale + shift
    return _with_weights(conv, weight.to(conv.weight.dtype), bias.to(conv.weight.dtype))


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


def _with_weights(conv: Conv, weight: Tensor, bias: Tensor) -> Conv:
    """A convolution like ``conv`` with other weights."""
    made = cast(Conv, _copy(conv))
    made.weight, made.bias = _frozen(weight), _frozen(bias)
    return made


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _fold(module: nn.Module) -> nn.Module:
    """One part of a network. What torch.fx cannot follow runs as it is written, with its own parts folded."""
    if isinstance(module, Heads):
        return JointHeads(module)
    if not any(True for _ in module.children()):
        return _copy(module)
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception:  # of any kind: the networks of timm do as they like with what they are given
        return rebuild(module, _fold)
    return _fold_graph(fx.GraphModule(tracer.root, graph))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, L2Norm) or type(module) in _NORMS or super().is_leaf_module(module, name)


def _fold_graph(module: fx.GraphModule) -> fx.GraphModule:
    for node in list(module.graph.nodes):
        if node.op == "call_module":
            _fold_call(module, node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _fold_call(module: fx.GraphModule, node: Node) -> None:
    layer: Any = module.get_submodule(node.target)
    after = only_user(node)
    norm: Any = called(module, after) if called(module, node) is layer else None
    if type(layer) in _CONVOLUTIONS and type(norm) in _NORMS and norm.track_running_stats:
        module.set_submodule(node.target, fold_norm(layer, norm))
        drop(after, node)
    else:
        module.set_submodule(node.target, _fold(layer))


def called(module: fx.GraphModule, node: Any) -> Any:
    """The layer that a node calls, and no other node does."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    calls = sum(other.op == "call_module" and other.target == node.target for other in module.graph.nodes)
    return module.get_submodule(cast(str, node.target)) if calls == 1 else None


def only_user(node: Node) -> Node:  # or None
    """The node that reads ``node``, if there is one only."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def drop(node: Node, before: Node) -> None:
    """Take ``node`` out: who read it reads ``before``."""
    node.replace_all_uses_with(before)
    node.graph.erase_node(node)


def _copy(module: nn.Module) -> nn.Module:
    """A module that does the same, with hooks of its own and the same tensors; its parts likewise."""
    return rebuild(module, _copy)


def rebuild(module: nn.Module, rebuild_part: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of the module with other parts."""
    other = copy.copy(module)
    # Otherwise both would have one dictionary of hooks.
    vars(other).update({name: value.copy() for name, value in vars(other).items() if isinstance(value, (dict, set))})
    other._modules = {name: child and rebuild_part(child) for name, child in module._modules.items()}
    return other
