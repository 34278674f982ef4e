"""The settings of the training augmentation (spec section 9.2); `refinedet.data.augment` carries it out."""

from dataclasses import dataclass

from refinedet.errors import InputError, show


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities and ranges; the defaults are the official ones. Probability 0 turns a stage off.

    ``brightness`` is the largest shift in grey levels, ``hue`` the largest in OpenCV's half degrees; ``contrast`` and
    ``saturation`` are ranges of factors. ``max_expand`` is the largest side of the expanded canvas in image sides.
    ``crop_min_ious`` has one sampler per entry, beside the whole image and a sampler without a bound; ``crop`` false
    leaves only the whole image. ``crop_scale`` is the range of a crop's scale in image sides, ``crop_aspect`` of its
    aspect ratio. ``transpose`` lets x and y change places: for objects that may lie any way.
    """

    distort_probability: float = 0.5  # of each of the four steps
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    expand_probability: float = 0.5
    max_expand: float = 4.0
    crop: bool = True
    crop_min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    crop_trials: int = 50
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    mirror_probability: float = 0.5
    vertical_mirror_probability: float = 0.0
    transpose_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("distort", "expand", "mirror", "vertical_mirror", "transpose"):
            _require(0 <= getattr(self, f"{name}_probability") <= 1, self, f"{name}_probability", "0 to 1")
        for name in ("contrast", "saturation", "crop_aspect"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 100, self, name, "a range [low, high] above 0, up to 100")
        low, high = self.crop_scale
        _require(0.001 <= low <= high <= 1, self, "crop_scale", "a range within 0.001 to 1")
        _require(0 <= self.brightness <= 255, self, "brightness", "0 to 255")
        _require(0 <= self.hue <= 180, self, "hue", "0 to 180")
        _require(1 <= self.max_expand <= 16, self, "max_expand", "1 to 16")
        _require(1 <= self.crop_trials <= 1000, self, "crop_trials", "1 to 1000")
        _require(all(0 <= iou <= 1 for iou in self.crop_min_ious), self, "crop_min_ious", "values from 0 to 1")
        _require(len(self.crop_min_ious) <= 100, self, "crop_min_ious", "at most 100 values")


def _require(valid: bool, config: AugmentConfig, name: str, allowed: str) -> None:
    if not valid:
        raise InputError(f"augmentation: {name} is {show(getattr(config, name))}; give {allowed}")
