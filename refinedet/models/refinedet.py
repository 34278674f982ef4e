"""The network: backbone, anchor refinement module, transfer connection blocks, object detection module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from refinedet.anchors import check_size, generate_anchors
from refinedet.errors import InputError
from refinedet.models.backbones.base import Backbone
from refinedet.models.config import ModelConfig
from refinedet.models.heads import Heads
from refinedet.models.transfer import TransferConnection
from refinedet.records import LevelOutput, RawOutput


class RefineDet(nn.Module):
    """The network of RefineDet (paper section 3; spec sections 2 to 6); :func:`refinedet.build` makes one.

    ``anchors``: those of ``config.size``, float32 [N,4] cx, cy, w, h in units of the image side, on the network's
    device. They are no buffer, which ``half()`` would round and ``to_empty()`` leave without values: whatever moves
    or casts the network only moves them.
    """

    anchors: Tensor
    arm: Heads | None
    tcb: TransferConnection | None

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        preset = config.preset
        block_norm = backbone.norm if backbone.head_bottleneck and preset.head_bottleneck else None
        if preset.tcb:
            self.arm = Heads(backbone.channels, 2, block_norm)
            self.tcb = TransferConnection(backbone.channels, config.tcb_channels, backbone.norm)
            odm_channels: Sequence[int] = [config.tcb_channels] * len(backbone.channels)
        else:
            self.arm = self.tcb = None
            odm_channels = backbone.channels
        self.odm = Heads(odm_channels, config.num_classes, block_norm)
        # Places the anchors, too. Torch refuses the format for weights of another rank: timm's lambda layers have five.
        self._apply(lambda t: t.to(memory_format=backbone.memory_format) if t.dim() == 4 else t)
        # Loading with assign=True may change the device.
        self.register_load_state_dict_post_hook(RefineDet._place_anchors)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor, by_level: bool = False) -> RawOutput | LevelOutput:
        """Logits and offsets of images [B,3,H,W], preprocessed by ``config.preprocessing``, in ``dtype`` or autocast.

        H and W may differ from ``config.size`` but must be multiples of 64 (else InputError); the anchors are then
        those of :meth:`anchors_for`. Returns tensors [B,N,*] in the order of the anchors, or with ``by_level`` those
        of each level, not concatenated, which is all that :func:`refinedet.ops.detect` needs. While
        torch.jit.trace or torch.onnx.export, which take no None, trace a single-step network, it returns the two
        outputs that it has.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images have shape {list(images.shape)}; give a batch [B,3,H,W]")
        check_size((images.shape[2], images.shape[3]))
        features = self.backbone(images)
        if self.arm is None or self.tcb is None:
            output = LevelOutput(None, None, *self.odm(features))
        else:
            output = LevelOutput(*self.arm(features), *self.odm(self.tcb(features)))
        found = output if by_level else output.concatenate()
        if self.arm is None and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return cast(RawOutput, (found.odm_loc, found.odm_conf))
        return found

    @property
    def device(self) -> torch.device:
        """Where weights and anchors are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the images the network takes."""
        return next(self.parameters()).dtype

    def anchors_for(self, size: tuple[int, int]) -> Tensor:
        """Anchors [N,4] of an input of ``size`` = (height, width), as ``anchors``; another size's are made anew."""
        if tuple(size) == self.config.size:
            return self.anchors
        return self._generate(size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RefineDet:
        """All of ``to``, ``half``, ``to_empty`` and their like come through here."""
        nn.Module._apply(self, fn, recurse)
        self._place_anchors()
        return self

    def _place_anchors(self, *_: object) -> None:
        with torch.inference_mode(False):  # they outlive the block and may serve training
            self.anchors = self._generate(self.config.size)

    def _generate(self, size: tuple[int, int]) -> Tensor:
        config = self.config
        return generate_anchors(size, ratio=config.anchor_ratio, clip=config.clip_anchors).to(self.device)


def caffe_multipliers(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning-rate and weight-decay multipliers of every parameter, by name (spec sections 2 and 3).

    Biases of convolutions and deconvolutions: (2, 0). All else, weights, factors of L2Norm and both parameters of
    batch normalisation: (1, 1).
    """
    biases = {
        f"{name}.bias" for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    }
    return {name: (2.0, 0.0) if name in biases else (1.0, 1.0) for name, _ in model.named_parameters()}
