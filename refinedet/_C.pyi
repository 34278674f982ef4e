"""Types of the compiled module; csrc/bindings.cpp and csrc/cuda/bindings.cpp say what the functions do.

A build without CUDA kernels lacks ``kernel_resources``, ``driver_version`` and ``launchers``.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict, type_check_only

from typing_extensions import NotRequired

class BuildInfo(TypedDict):
    """`nvcc` and the two after it are there where `cuda` is True."""

    version: str
    compiler: str
    flags: str
    torch_built_with: str
    torch_target: str
    cuda: bool
    nvcc: NotRequired[str]
    nvcc_flags: NotRequired[str]
    architectures: NotRequired[str]

def build_info() -> BuildInfo: ...
def kernel_resources() -> str: ...
def driver_version() -> int: ...

_Address: TypeAlias = int  # of device memory or a stream; 0 = none
_Type: TypeAlias = Literal["float32", "float16", "bfloat16"]
_Level: TypeAlias = tuple[_Address, _Address, _Address, _Address, int]  # arm_loc, arm_conf, odm_loc, odm_conf, anchors

@type_check_only
class _Launchers:
    """The submodule `launchers`."""

    def refine(
        self,
        *,
        type: _Type,
        anchors: _Address,
        shared_anchors: bool,
        offsets: _Address,
        batch: int,
        num_anchors: int,
        variances: Sequence[float],
        refined: _Address,
        stream: _Address,
    ) -> None: ...
    def nms_workspace_bytes(self, num_boxes: int) -> int: ...
    def nms(
        self,
        *,
        type: _Type,
        boxes: _Address,
        scores: _Address,
        labels: _Address,
        order: _Address,
        num_boxes: int,
        iou_threshold: float,
        kept: _Address,
        count: _Address,
        workspace: _Address,
        stream: _Address,
    ) -> None: ...
    def detect_workspace_bytes(
        self, *, batch: int, num_anchors: int, num_classes: int, top_k: int, keep_top_k: int
    ) -> int: ...
    def detect(
        self,
        *,
        type: _Type,
        levels: Sequence[_Level],
        anchors: _Address,
        batch: int,
        num_classes: int,
        objectness_threshold: float,
        score_threshold: float,
        iou_threshold: float,
        top_k: int,
        keep_top_k: int,
        variances: Sequence[float],
        boxes: _Address,
        scores: _Address,
        labels: _Address,
        indices: _Address,
        counts: _Address,
        workspace: _Address,
        stream: _Address,
    ) -> None: ...
    def match_workspace_bytes(self, *, batch: int, num_anchors: int, num_truths: int) -> int: ...
    def match(
        self,
        *,
        anchors: _Address,
        shared_anchors: bool,
        gt_boxes: _Address,
        gt_labels: _Address,
        gt_offsets: _Address,
        batch: int,
        num_anchors: int,
        num_truths: int,
        iou_threshold: float,
        variances: Sequence[float],
        labels: _Address,
        targets: _Address,
        indices: _Address,
        ious: _Address,
        workspace: _Address,
        stream: _Address,
    ) -> None: ...
    def mine_workspace_bytes(self, *, batch: int, num_anchors: int) -> int: ...
    def mine(
        self,
        *,
        type: _Type,
        losses: _Address,
        num_classes: int,
        labels: _Address,
        ious: _Address,
        objectness: _Address,
        batch: int,
        num_anchors: int,
        negative_iou: float,
        negative_ratio: float,
        objectness_threshold: float,
        mask: _Address,
        workspace: _Address,
        stream: _Address,
    ) -> None: ...

launchers: _Launchers
