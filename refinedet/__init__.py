"""RefineDet: single-shot object detection with refined anchors (Zhang et al., CVPR 2018).

Heavy parts load at first use, so that importing the package (and ``refinedet --help``) stays quick.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from refinedet.anchors import generate_anchors
    from refinedet.exporting.export import export
    from refinedet.inference.detector import Detector, load
    from refinedet.models.build import build
    from refinedet.models.refinedet import RefineDet
    from refinedet.presets import COCO, OFFICIAL, PAPER, Preset
    from refinedet.records import Detections, LevelOutput, RawOutput, Targets
    from refinedet.training.loss import MultiBoxLoss

_HOMES = {
    "generate_anchors": "refinedet.anchors",
    "Detector": "refinedet.inference.detector",
    "export": "refinedet.exporting.export",
    "load": "refinedet.inference.detector",
    "MultiBoxLoss": "refinedet.training.loss",
    "RefineDet": "refinedet.models",
    "build": "refinedet.models",
    "COCO": "refinedet.presets",
    "OFFICIAL": "refinedet.presets",
    "PAPER": "refinedet.presets",
    "Preset": "refinedet.presets",
    "Detections": "refinedet.records",
    "LevelOutput": "refinedet.records",
    "RawOutput": "refinedet.records",
    "Targets": "refinedet.records",
}

__all__ = [
    "COCO",
    "OFFICIAL",
    "PAPER",
    "Detections",
    "Detector",
    "LevelOutput",
    "MultiBoxLoss",
    "Preset",
    "RawOutput",
    "RefineDet",
    "Targets",
    "__version__",
    "build",
    "export",
    "generate_anchors",
    "load",
    "ops",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _modules():
        return import_module(f"refinedet.{name}")
    raise AttributeError(f"module 'refinedet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_modules()})


def _modules() -> set[str]:
    """Modules that users may ask for without importing them first: ``refinedet.errors.DataError``."""
    return {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}
