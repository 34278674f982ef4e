"""Every threshold of RefineDet in one place, as the released code and as the paper have them (spec section 0)."""

from dataclasses import dataclass
from typing import Any

from refinedet.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Thresholds of training and inference, and the switches of the paper's ablation (Table 2).

    The ablation's rows are ``replace(preset, objectness_threshold=0.0)`` (theta = 1), then also ``cascade=False``
    (the detection module matches and decodes the plain anchors), then also ``tcb=False`` (a single-step multi-class
    network on the backbone's features).
    """

    name: str = "official"
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    match_iou: float = 0.5
    negative_iou: float = 0.5
    negative_ratio: float = 3.0
    objectness_threshold: float = 0.01  # 1 - theta
    score_threshold: float = 0.01
    nms_iou: float = 0.45
    top_k: int = 1000
    keep_top_k: int = 500
    head_bottleneck: bool = True  # ResNet only: a bottleneck block in front of every head
    cascade: bool = True
    tcb: bool = True

    def __post_init__(self) -> None:
        for field in ("match_iou", "negative_iou", "objectness_threshold", "score_threshold", "nms_iou"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise InputError(f"preset {self.name}: {field} is {getattr(self, field)}; give a value from 0 to 1")
        if self.negative_ratio <= 0:
            raise InputError(f"preset {self.name}: negative_ratio is {self.negative_ratio}; give a value above 0")
        if min(self.top_k, self.keep_top_k) < 1:
            raise InputError(
                f"preset {self.name}: top_k, keep_top_k are {self.top_k}, {self.keep_top_k}; give at least 1"
            )

    def detect_options(self) -> dict[str, Any]:
        """The keyword arguments of `refinedet.ops.detect`."""
        return {
            "objectness_threshold": self.objectness_threshold,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.nms_iou,
            "top_k": self.top_k,
            "keep_top_k": self.keep_top_k,
            "variances": self.variances,
        }


OFFICIAL = Preset()
PAPER = Preset(name="paper", top_k=400, keep_top_k=200, head_bottleneck=False)
PRESETS = {preset.name: preset for preset in (OFFICIAL, PAPER)}


def get_preset(preset: str | Preset) -> Preset:
    """Return ``preset`` itself, or the shipped preset of that name ("official" or "paper")."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]
