"""Every threshold of RefineDet in one place, as the released code and as the paper have them (spec section 0)."""

import math
from dataclasses import dataclass
from typing import Any

from refinedet.errors import InputError, show
from refinedet.parsing import to_float

MOST_KEPT = 1_000_000  # top_k and keep_top_k: room for so many boxes is made for each image
_MILLION = 1e6
NMS_IOU, TOP_K, KEEP_TOP_K = 0.45, 1000, 500  # of the released code, and the defaults of `refinedet.ops.detect`


@dataclass(frozen=True)
class Preset:
    """Thresholds of training and inference, and the switches of the paper's ablation (Table 2).

    ``nms_iou``, ``top_k`` and ``keep_top_k`` are None where nothing is suppressed or left out. ``soft_nms_iou``: linear
    soft-NMS follows on the boxes in pixels (spec section 10.2); None: it does not.

    The ablation's rows are ``replace(preset, objectness_threshold=0.0)`` (theta = 1), then also ``cascade=False``
    (the detection module matches and decodes the plain anchors), then also ``tcb=False`` (a single-step multi-class
    network on the backbone's features).
    """

    name: str = "official"
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)  # scales of dx, dy, dw, dh (spec section 6)
    match_iou: float = 0.5
    negative_iou: float = 0.5
    negative_ratio: float = 3.0
    objectness_threshold: float = 0.01  # 1 - theta
    score_threshold: float = 0.01
    nms_iou: float | None = NMS_IOU
    top_k: int | None = TOP_K
    keep_top_k: int | None = KEEP_TOP_K
    soft_nms_iou: float | None = None
    head_bottleneck: bool = True  # ResNet only: a bottleneck block in front of every head
    cascade: bool = True
    tcb: bool = True

    def __post_init__(self) -> None:
        self._require(isinstance(self.name, str), "name", "a text")
        for name in ("match_iou", "negative_iou", "objectness_threshold", "score_threshold"):
            self._require(is_fraction(getattr(self, name)), name, "a value from 0 to 1")
        self._require(self.score_threshold < 1, "score_threshold", "a value below 1; no score is above 1")
        for name in ("nms_iou", "soft_nms_iou"):
            value = getattr(self, name)
            self._require(value is None or is_fraction(value), name, "a value from 0 to 1, or None")
        self._require(is_positive(self.negative_ratio), "negative_ratio", "a value above 0")
        for name in ("top_k", "keep_top_k"):
            value = getattr(self, name)
            if value is not None:
                self._require(type(value) is int and value >= 1, name, "a whole number, at least 1, or None")
                self._require(value <= MOST_KEPT, name, f"at most {MOST_KEPT}")
        for name in ("head_bottleneck", "cascade", "tcb"):
            self._require(type(getattr(self, name)) is bool, name, "True or False")
        four = isinstance(self.variances, (tuple, list)) and len(self.variances) == 4
        self._require(four and all(map(is_positive, self.variances)), "variances", "four values above 0")
        moderate = all(1 / _MILLION <= value <= _MILLION for value in self.variances)
        self._require(moderate, "variances", "values from 1e-6 to 1e6, which float32 boxes can be multiplied by")

    def _require(self, condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise InputError(f"preset {_plain(self.name)}: {name} is {_plain(getattr(self, name))}; give {wanted}")


def _plain(value: object) -> str:
    """A short text as it is, anything else as Python writes it."""
    return value if isinstance(value, str) and show(value) == repr(value) else show(value)


def is_number(value: object) -> bool:
    """A finite number, no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(to_float(value))


def is_fraction(value: Any) -> bool:
    """A number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_positive(value: Any) -> bool:
    """A finite number above 0."""
    return is_number(value) and value > 0


OFFICIAL = Preset()
PAPER = Preset(name="paper", top_k=400, keep_top_k=200, head_bottleneck=False)
COCO = Preset(name="coco", score_threshold=0.016, nms_iou=None, top_k=None, keep_top_k=None, soft_nms_iou=0.30)
PRESETS = {preset.name: preset for preset in (OFFICIAL, PAPER, COCO)}


def get_preset(preset: str | Preset) -> Preset:
    """Return ``preset`` itself, or the shipped preset of that name ("official", "paper" or "coco")."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]
