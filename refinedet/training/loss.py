"""The multi-task loss: anchor refinement module (ARM) plus object detection module (ODM); spec section 7."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from refinedet.errors import InputError
from refinedet.ops import match, mine, refine
from refinedet.presets import OFFICIAL, Preset
from refinedet.records import RawOutput, Targets


class MultiBoxLosses(NamedTuple):
    """Losses of a batch, each a float32 scalar, and the number of matched anchors behind them (int64 scalars)."""

    total: Tensor  # arm + odm
    arm: Tensor  # arm_loc + arm_conf; 0 for a single-step network
    odm: Tensor  # odm_loc + odm_conf
    arm_loc: Tensor
    arm_conf: Tensor
    odm_loc: Tensor
    odm_conf: Tensor
    arm_positives: Tensor
    odm_positives: Tensor


class MultiBoxLoss(nn.Module):
    """Smooth-L1 and softmax loss of both modules with matching and hard-negative mining (spec section 7).

    The ARM learns object against background on the anchors; the ODM learns the classes on the anchors refined by the
    ARM's offsets, without gradient through the refinement, and never takes negatives that the ARM rejects. A module's
    loss is its sum over positives and mined negatives, divided by the number of positives of the batch (at least 1).
    Images without ground truth contribute nothing. Everything is computed in float32, also under autocast.

    Args:
        preset: thresholds; ``cascade=False`` makes the ODM match the plain anchors (paper Table 2).
        normalize_groups: number of consecutive equal groups of images that are normalised by their own positives and
            then averaged: the official training on 4 GPUs is ``normalize_groups=4`` (spec section 7.4).
    """

    def __init__(self, preset: Preset = OFFICIAL, normalize_groups: int = 1) -> None:
        super().__init__()
        if normalize_groups < 1:
            raise InputError(f"normalize_groups is {normalize_groups}; give at least 1")
        self.preset = preset
        self.normalize_groups = normalize_groups

    def forward(self, raw: RawOutput, anchors: Tensor, targets: Targets) -> MultiBoxLosses:
        """Loss of a batch.

        Args:
            raw: logits and offsets of the network, [B,N,*]; ``arm_loc`` and ``arm_conf`` are None without an ARM. A
                plain tuple will do, as exported networks give it; so it will for ``targets``.
            anchors: [N,4] cx,cy,w,h in units of the image side.
            targets: ground truth of the B images; difficult boxes that shall not count are left out by the caller.

        Raises:
            InputError: a label is not one of 1..C-1, or B is not a multiple of ``normalize_groups``.
        """
        raw, targets = RawOutput(*raw), Targets(*targets)
        _check_labels(targets.labels, raw.odm_conf.shape[-1])
        with torch.autocast(raw.odm_loc.device.type, enabled=False):
            zero = raw.odm_loc.new_zeros((), dtype=torch.float32)
            arm_loc, arm_conf, arm_positives = zero, zero, zero.long()
            objectness = None
            if raw.arm_loc is not None and raw.arm_conf is not None:
                objects = targets._replace(labels=torch.ones_like(targets.labels))
                arm_loc, arm_conf, arm_positives = self._module_loss(raw.arm_loc, raw.arm_conf, anchors, objects)
                if self.preset.objectness_threshold > 0:
                    background, object_ = raw.arm_conf.detach().float().unbind(-1)
                    objectness = (object_ - background).sigmoid()  # the softmax of two classes
                if self.preset.cascade:
                    anchors = refine(anchors, raw.arm_loc, self.preset.variances)
            odm_loc, odm_conf, odm_positives = self._module_loss(
                raw.odm_loc, raw.odm_conf, anchors, targets, objectness
            )
        arm, odm = arm_loc + arm_conf, odm_loc + odm_conf
        return MultiBoxLosses(arm + odm, arm, odm, arm_loc, arm_conf, odm_loc, odm_conf, arm_positives, odm_positives)

    def _module_loss(
        self, loc: Tensor, conf: Tensor, anchors: Tensor, targets: Targets, objectness: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Localisation loss, confidence loss and number of positives of one module."""
        preset = self.preset
        matched = match(anchors, *targets, iou_threshold=preset.match_iou, variances=preset.variances)
        negative = mine(
            conf,
            matched.labels,
            matched.ious,
            objectness,
            negative_iou=preset.negative_iou,
            negative_ratio=preset.negative_ratio,
            objectness_threshold=preset.objectness_threshold,
        )
        positive = matched.labels > 0
        weights = self._image_weights(positive.sum(dim=1))
        # Only the few selected rows are gathered: no other [B,N,C] tensor than the gradient comes into being.
        rows = positive.flatten().nonzero().squeeze(1)
        offsets, wanted = _rows(loc, rows), _rows(matched.targets, rows)
        loc_loss = functional.smooth_l1_loss(offsets, wanted, reduction="none").sum(dim=1)
        loc_loss = (loc_loss * weights[rows // loc.shape[1]]).sum()
        rows = (positive | negative).flatten().nonzero().squeeze(1)
        conf_loss = functional.cross_entropy(_rows(conf, rows), matched.labels.flatten()[rows], reduction="none")
        conf_loss = (conf_loss * weights[rows // loc.shape[1]]).sum()
        return loc_loss, conf_loss, positive.sum()

    def _image_weights(self, positives: Tensor) -> Tensor:
        """[B] factor of each image's loss, from the [B] numbers of positives: 1 / (groups * max(1, N of the group))."""
        groups = self.normalize_groups
        if len(positives) % groups:
            raise InputError(f"the batch has {len(positives)} images; give a multiple of normalize_groups = {groups}")
        per_group = positives.view(groups, -1).sum(dim=1).clamp(min=1)
        return (1 / (groups * per_group.float())).repeat_interleave(len(positives) // groups)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.flatten(0, 1).index_select(0, rows).float()


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 1 or high >= num_classes:
        raise InputError(f"ground truth has labels from {low} to {high}; give labels from 1 to {num_classes - 1}")
