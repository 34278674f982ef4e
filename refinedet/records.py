"""The records that pass between data, model, loss and caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

if TYPE_CHECKING:
    import supervision

T = TypeVar("T")


def exportable(record: type[T]) -> type[T]:
    """Lets programs that take or return this NamedTuple be saved by torch.export.save.

    Who loads them imports ``refinedet.ops`` first, which knows the records and the operators.
    """
    # There is no public function for a NamedTuple: https://docs.pytorch.org/docs/stable/export.html has dataclasses.
    _pytree._register_namedtuple(record, serialized_type_name=f"{record.__module__}.{record.__qualname__}")
    return record


@exportable
class RawOutput(NamedTuple):
    """What the network computes: logits and encoded offsets, before any softmax or decoding.

    N anchors in the order of spec section 5. A single-step network (``Preset.tcb`` false) has no anchor
    refinement module: ``arm_loc`` and ``arm_conf`` are None.
    """

    arm_loc: Tensor | None  # [B,N,4] offsets anchor -> refined anchor
    arm_conf: Tensor | None  # [B,N,2] logits: background, object
    odm_loc: Tensor  # [B,N,4] offsets refined anchor -> box
    odm_conf: Tensor  # [B,N,C] logits, class 0 = background

    def concatenate(self) -> RawOutput:
        """Itself, which is not in levels."""
        return self


@exportable
class LevelOutput(NamedTuple):
    """A :class:`RawOutput` in levels, one tensor [B,n,*] for each: the n anchors follow those of the level before."""

    arm_loc: tuple[Tensor, ...] | None
    arm_conf: tuple[Tensor, ...] | None
    odm_loc: tuple[Tensor, ...]
    odm_conf: tuple[Tensor, ...]

    def concatenate(self) -> RawOutput:
        arm_loc = None if self.arm_loc is None else torch.cat(self.arm_loc, dim=1)
        arm_conf = None if self.arm_conf is None else torch.cat(self.arm_conf, dim=1)
        return RawOutput(arm_loc, arm_conf, torch.cat(self.odm_loc, dim=1), torch.cat(self.odm_conf, dim=1))


@exportable
class Targets(NamedTuple):
    """Ragged ground truth of a batch: image b owns rows ``offsets[b]:offsets[b + 1]``."""

    boxes: Tensor  # [M,4] float32 x1,y1,x2,y2 in units of the image side
    labels: Tensor  # [M] int64, 1..C-1
    offsets: Tensor  # [B+1] int64, ascending from 0 to M


class Sample(NamedTuple):
    """One image of a data set with its annotations."""

    image: np.ndarray  # uint8 [H,W,3] BGR
    boxes: np.ndarray  # float32 [n,4] x1,y1,x2,y2 in units of the image side
    labels: np.ndarray  # int64 [n], 1..C-1
    difficult: np.ndarray  # bool [n]; VOC difficult or COCO crowd
    path: str
    image_id: int | str  # as the data set's files have it
    one_based: bool = False  # the boxes are VOC's corners: the first pixel is 1, and the last one belongs to the box
    areas: np.ndarray | None = None  # float64 [n] pixels of the objects' outlines, NaN where unknown; None: of all


class Batch(NamedTuple):
    """What one training step consumes."""

    images: Tensor  # float32 [B,3,H,W], preprocessed
    targets: Targets
    paths: tuple[str, ...]


class Detections(NamedTuple):
    """The objects found in one image, best first. docs/interchange.md tells what the formats mean by a box."""

    boxes: Tensor  # float32 [n,4] x1,y1,x2,y2 in pixels of the original image; 0 is the first, the last belongs to it
    scores: Tensor  # float32 [n]
    labels: Tensor  # int64 [n], 1..C-1
    names: list[str]  # class name of each row
    path: str | None  # None for arrays and tensors
    size: tuple[int, int]  # height, width of the original image in pixels

    def to_supervision(self) -> supervision.Detections:
        """For Roboflow's supervision: `refinedet.interchange.supervision.to_supervision`."""
        from refinedet.interchange.supervision import to_supervision

        return to_supervision(self)

    def to_coco(self, image_id: int | str, category_ids: Mapping[int, int | str] | None = None) -> list[dict[str, Any]]:
        """COCO's results, for pycocotools: `refinedet.interchange.coco.to_coco`."""
        from refinedet.interchange.coco import to_coco

        return to_coco(self, image_id, category_ids)

    def to_voc_xml(self, filename: str | None = None) -> str:
        """VOC's annotation: `refinedet.interchange.voc.to_voc_xml`."""
        from refinedet.interchange.voc import to_voc_xml

        return to_voc_xml(self, filename)

    def to_yolo(self, *, scores: bool = False) -> str:
        """YOLO's lines: `refinedet.interchange.yolo.to_yolo`."""
        from refinedet.interchange.yolo import to_yolo

        return to_yolo(self, scores=scores)

    def to_labelme(self, image_path: str) -> dict[str, Any]:
        """labelme's document: `refinedet.interchange.labelme.to_labelme`."""
        from refinedet.interchange.labelme import to_labelme

        return to_labelme(self, image_path)
