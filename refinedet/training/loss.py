"""The multi-task loss: anchor refinement module (ARM) plus object detection module (ODM); spec section 7."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from refinedet.errors import InputError, show
from refinedet.ops import match, mine, refine
from refinedet.presets import OFFICIAL, Preset
from refinedet.records import RawOutput, Targets

MOST_OUTSIDE = 1.0  # image sides that a box may stick out of its image: what is farther away is in pixels


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
        if type(normalize_groups) is not int or normalize_groups < 1:
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
            InputError: the first row of the ground truth whose label is not one of 1..C-1 or whose box is not finite,
                has no area or is not in units of the image side; so for ``anchors``; offsets that do not ascend from 0
                to M; shapes or devices that do not fit; B is not a multiple of ``normalize_groups``. On a GPU the
                values are looked at without a wait of their own.
        """
        raw, targets = RawOutput(*raw), Targets(*targets)
        check = start_check(targets, anchors, raw.odm_conf)
        with torch.autocast(raw.odm_loc.device.type, enabled=False):
            zero = raw.odm_loc.new_zeros((), dtype=torch.float32)
            arm_loc, arm_conf, arm_positives = zero, zero, zero.long()
            objectness = None
            if raw.arm_loc is not None and raw.arm_conf is not None:
                objects = targets._replace(labels=torch.ones_like(targets.labels))
                arm_loc, arm_conf, arm_positives = self._module_loss(raw.arm_loc, raw.arm_conf, anchors, objects, check)
                if self.preset.objectness_threshold > 0:
                    background, object_ = raw.arm_conf.detach().float().unbind(-1)
                    objectness = (object_ - background).sigmoid()  # the softmax of two classes
                if self.preset.cascade:
                    anchors = refine(anchors, raw.arm_loc, self.preset.variances)
            odm_loc, odm_conf, odm_positives = self._module_loss(
                raw.odm_loc, raw.odm_conf, anchors, targets, check, objectness
            )
        arm, odm = arm_loc + arm_conf, odm_loc + odm_conf
        return MultiBoxLosses(arm + odm, arm, odm, arm_loc, arm_conf, odm_loc, odm_conf, arm_positives, odm_positives)

    def _module_loss(
        self,
        loc: Tensor,
        conf: Tensor,
        anchors: Tensor,
        targets: Targets,
        check: Callable[[], None],
        objectness: Tensor | None = None,
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
        rows = positive.flatten().nonzero().squeeze(1)  # waits for the GPU
        check()  # before labels that are no classes stop it for good
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
        per_group = positives.view(groups, len(positives) // groups).sum(dim=1).clamp(min=1)
        return (1 / (groups * per_group.float())).repeat_interleave(len(positives) // groups)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.flatten(0, 1).index_select(0, rows).float()


def start_check(targets: Targets, anchors: Tensor, conf: Tensor) -> Callable[[], None]:
    """Check the ground truth of a batch, and the anchors, for logits [B,N,C].

    Values on a GPU are looked at there, while it works on what comes next: the function that is returned raises the
    InputError of the first wrong one, and costs nothing once the GPU has been waited for.
    """
    _check_shapes(targets, anchors, conf)
    num_classes = conf.shape[-1]
    wrong = torch.cat(
        [
            _wrong_boxes(targets.boxes) | _wrong_labels(targets.labels, num_classes),
            _wrong_anchors(anchors),
            _wrong_offsets(targets),
        ]
    ).any()
    answer = wrong.to("cpu", non_blocking=True)  # into pinned memory
    arrived = torch.cuda.Event() if wrong.is_cuda else None
    if arrived is not None:
        arrived.record(torch.cuda.current_stream(wrong.device))

    def finish() -> None:
        if arrived is not None:
            arrived.synchronize()
        if answer:
            raise InputError(_explain(targets, anchors, num_classes))

    if arrived is None:
        finish()
    return finish


def _check_shapes(targets: Targets, anchors: Tensor, conf: Tensor) -> None:
    rows = len(targets.labels)
    expected = {"boxes": [rows, 4], "labels": [rows], "offsets": [len(conf) + 1]}
    for name, shape in expected.items():
        found = list(getattr(targets, name).shape)
        if found != shape:
            raise InputError(f"targets.{name} has shape {found}; give {shape}")
    tensors = {"anchors": anchors, **{f"targets.{name}": tensor for name, tensor in targets._asdict().items()}}
    for name, tensor in tensors.items():
        if tensor.device != conf.device:
            raise InputError(f"{name} is on {tensor.device}, the output of the network on {conf.device}; move one")


def _wrong_boxes(boxes: Tensor) -> Tensor:
    in_range = ((boxes >= -MOST_OUTSIDE) & (boxes <= 1 + MOST_OUTSIDE)).all(dim=1)  # no NaN is
    return ~(in_range & (boxes[:, 2:] > boxes[:, :2]).all(dim=1))


def _wrong_labels(labels: Tensor, num_classes: int) -> Tensor:
    return (labels < 1) | (labels >= num_classes)


def _wrong_anchors(anchors: Tensor) -> Tensor:
    centers, sides = anchors[..., :2], anchors[..., 2:]
    in_range = (centers >= -MOST_OUTSIDE) & (centers <= 1 + MOST_OUTSIDE)
    return ~(in_range & (sides > 0) & sides.isfinite()).all(dim=-1).flatten()


def _wrong_offsets(targets: Targets) -> Tensor:
    offsets = targets.offsets
    ends = torch.stack([offsets[0] != 0, offsets[-1] != len(targets.labels)])
    return torch.cat([ends, offsets.diff() < 0])


def _explain(targets: Targets, anchors: Tensor, num_classes: int) -> str:
    """What is wrong, with its first row. Waits for the GPU."""
    boxes, labels, offsets = (tensor.cpu() for tensor in targets)
    if _wrong_offsets(Targets(boxes, labels, offsets)).any():
        return f"targets.offsets is {show(offsets.tolist())}; give ascending numbers from 0 to {len(labels)}, the boxes"
    if _wrong_anchors(anchors).any():
        row = _first(_wrong_anchors(anchors))
        return f"anchor {row} is {_numbers(anchors.flatten(0, -2)[row])}; give cx, cy, w, h in units of the image side"
    wrong_labels = _wrong_labels(labels, num_classes)
    row = _first(_wrong_boxes(boxes) | wrong_labels)
    image = int((offsets[1:] <= row).sum())
    where = f"ground truth {row - int(offsets[image])} of image {image} of the batch"
    if wrong_labels[row]:
        return f"{where} has label {int(labels[row])}; give labels from 1 to {num_classes - 1}"
    return (
        f"{where} is the box {_numbers(boxes[row])}; give finite corners x1 < x2 and y1 < y2 in units of the image side"
        " (pixels divided by width and height)"
    )


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0])


def _numbers(row: Tensor) -> str:
    return f"[{', '.join(f'{value:g}' for value in row.tolist())}]"
