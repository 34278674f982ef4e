"""Testing protocols: at which sizes images are looked at, which boxes count there, and how they are merged (spec
sections 8 and 10).

Nothing heavy is imported: a mistake is told before torch is loaded and before any image is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from refinedet.choices import MAX_SIDE, SIZE_STEP
from refinedet.errors import InputError, show, suggestion
from refinedet.files import read_text
from refinedet.parsing import parse_toml
from refinedet.presets import COCO, MOST_KEPT, OFFICIAL, Preset, is_fraction, is_positive

MERGES = ("none", "soft_nms", "vote", "soft_vote")
"""What becomes of the boxes of all scales, class by class: left as they are, `refinedet.ops.soft_nms`, or
`refinedet.ops.vote` without and with the merged boxes once more."""

OFF = "none"
"""How TOML says None: no suppression, no limit."""


def _parse_size(size: Any) -> tuple[int, int]:
    sides = (size, size) if type(size) is int else size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or any(type(side) is not int for side in sides):
        raise InputError(f"size is {show(size)}; give one side, or [height, width], in whole pixels")
    if any(side % SIZE_STEP or not SIZE_STEP <= side <= MAX_SIDE for side in sides):
        raise InputError(f"size is {show(size)}; sides must be multiples of {SIZE_STEP}, up to {MAX_SIDE}")
    return sides[0], sides[1]


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise InputError(f"{name} is {show(value)}; give {wanted}")


def _require_kind(name: str, value: object, kind: type, *, optional: bool = True) -> None:
    valid = isinstance(value, kind) or (optional and value is None)
    _require(valid, name, value, f"{kind.__name__}{' or None' if optional else ''}")


@dataclass(frozen=True)
class Thresholds:
    """What :func:`refinedet.ops.detect` keeps at one scale; None: nothing is suppressed, or no limit (spec section 8).

    Raises InputError for a value out of range.
    """

    score_threshold: float = OFFICIAL.score_threshold
    nms_iou: float | None = OFFICIAL.nms_iou
    top_k: int | None = OFFICIAL.top_k
    keep_top_k: int | None = OFFICIAL.keep_top_k

    def __post_init__(self) -> None:
        score = self.score_threshold
        _require(
            is_fraction(score) and score < 1, "score_threshold", score, "a value from 0 to below 1; no score is above 1"
        )
        _require(
            self.nms_iou is None or is_fraction(self.nms_iou),
            "nms_iou",
            self.nms_iou,
            f'a value from 0 to 1, or "{OFF}"',
        )
        for name in ("top_k", "keep_top_k"):
            value = getattr(self, name)
            valid = value is None or (type(value) is int and 1 <= value <= MOST_KEPT)
            _require(valid, name, value, f'a whole number from 1 to {MOST_KEPT}, or "{OFF}"')

    @classmethod
    def of(cls, preset: Preset) -> Thresholds:
        """Those of a preset."""
        return cls(**{f.name: getattr(preset, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Scale:
    """One size at which images are looked at, and the boxes that count there.

    ``size``: height and width of the network's input in pixels, or one side of a square; multiples of 64. None: the
    model's own. ``turned``: ``size`` is that of images wider than high, all others get it turned (spec section 10.3).
    ``original``, ``flipped``: whether the image is looked at as it is, and as its mirror image.

    Kept are boxes whose shorter side is below ``min_side_below`` and whose longer one is above ``max_side_above``, in
    pixels of the original image, the last one included (x2 - x1 + 1); None: any. ``thresholds``: None for those of the
    protocol.

    Raises InputError for a value out of range, and for a scale that can find nothing.
    """

    size: int | tuple[int, int] | None = None
    turned: bool = False
    original: bool = True
    flipped: bool = False
    min_side_below: float | None = None
    max_side_above: float | None = None
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", _parse_size(self.size))
        for name in ("turned", "original", "flipped"):
            _require(type(getattr(self, name)) is bool, name, getattr(self, name), "true or false")
        if not (self.original or self.flipped):
            raise InputError("looks at no image; set original or flipped to true")
        if self.turned and self.size is None:
            raise InputError("turned needs a size; give [height, width] of images wider than high")
        below, above = self.min_side_below, self.max_side_above
        wanted = "a number above 1: no box has a side of less than a pixel"
        _require(below is None or (is_positive(below) and below > 1), "min_side_below", below, wanted)
        _require(above is None or is_positive(above), "max_side_above", above, "a number above 0")
        _require_kind("thresholds", self.thresholds, Thresholds)

    @property
    def flips(self) -> tuple[bool, ...]:
        """Whether the image is mirrored, for each look at it."""
        return (False,) * self.original + (True,) * self.flipped

    def input_size(self, image: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the network's input for an image of that height and width; ``own``: the model's size."""
        if self.size is None:
            return own
        assert not isinstance(self.size, int)  # __post_init__ made it two
        height, width = self.size
        return (width, height) if self.turned and image[0] >= image[1] else (height, width)


@dataclass(frozen=True)
class Protocol:
    """How images are tested: at every one of ``scales``, with ``thresholds``, the boxes of all merged by ``merge``.

    ``merge``: one of `MERGES`; its boxes are in pixels, its IoU counts the last pixel. ``merge_iou``: 0.30 for
    soft-NMS, 0.45 for votes, unless given. ``merge_score_threshold``: a box that a better one meets is dropped by
    soft-NMS below it, and one that met another is not given back by a soft vote; None: the score threshold.
    ``merge_sigma``: of Gaussian soft-NMS; None: the linear one.

    Raises InputError for a value out of range.
    """

    name: str = field(compare=False)
    scales: tuple[Scale, ...] = (Scale(),)
    thresholds: Thresholds = Thresholds()
    merge: str = "none"
    merge_iou: float | None = None
    merge_score_threshold: float | None = None
    merge_sigma: float | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.name, str), "name", self.name, "a text")
        try:
            self._check()
        except InputError as error:
            raise InputError(f"protocol {self.name}: {error}") from None

    def _check(self) -> None:
        _require_kind("thresholds", self.thresholds, Thresholds, optional=False)
        if not isinstance(self.scales, (tuple, list)) or not all(isinstance(scale, Scale) for scale in self.scales):
            raise InputError(f"scales is {show(self.scales)}; give a sequence of Scale")
        if not self.scales:
            raise InputError("it has no scales; give at least one")
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.merge not in MERGES:
            hint = suggestion(self.merge, MERGES) if isinstance(self.merge, str) else ""
            raise InputError(f"merge is {show(self.merge)};{hint} choose one of {', '.join(MERGES)}")
        for name in ("merge_iou", "merge_score_threshold"):
            value = getattr(self, name)
            _require(value is None or is_fraction(value), name, value, "a value from 0 to 1")
        sigma = self.merge_sigma
        valid = sigma is None or (is_positive(sigma) and 1e-6 <= sigma <= 1e6)
        _require(valid, "merge_sigma", sigma, "a number from 1e-6 to 1e6")
        for name, merges in _MERGE_SETTINGS.items():
            if getattr(self, name) is not None and self.merge not in merges:
                raise InputError(f"{name} is no setting of merge {self.merge!r}, but of {' and '.join(merges)}")
        if sigma is not None and self.merge_iou is not None:
            raise InputError("merge_iou is of linear soft-NMS, merge_sigma of the Gaussian one; give one of them")

    @property
    def overlap(self) -> float:
        """``merge_iou``, or what stands for it; of no matter where nothing is merged."""
        return _MERGE_IOU[self.merge] if self.merge_iou is None else self.merge_iou

    @property
    def floor(self) -> float:
        """``merge_score_threshold``, or what stands for it."""
        given = self.merge_score_threshold
        return self.thresholds.score_threshold if given is None else given

    @property
    def looks(self) -> int:
        """How often each image is looked at: scales and mirror images."""
        return sum(len(scale.flips) for scale in self.scales)

    def to_toml(self) -> str | dict[str, Any]:
        """What stands for it in a recipe: the name of a shipped one, or a table for `parse_protocol`."""
        if PROTOCOLS.get(self.name) == self:
            return self.name
        own = ("merge", *_MERGE_SETTINGS)
        values = {key: value for key in own if (value := getattr(self, key)) is not None}
        return {**_thresholds_to_dict(self.thresholds), **values, "scales": [_scale_to_dict(s) for s in self.scales]}


_MERGE_IOU = {"none": 1.0, "soft_nms": 0.30, "vote": 0.45, "soft_vote": 0.45}
_MERGE_SETTINGS = {
    "merge_iou": ("soft_nms", "vote", "soft_vote"),
    "merge_score_threshold": ("soft_nms", "soft_vote"),
    "merge_sigma": ("soft_nms",),
}


def of_preset(preset: Preset) -> Protocol:
    """What a preset says: the model's size, the preset's thresholds, soft-NMS where it has it."""
    protocol = Protocol(preset.name, thresholds=Thresholds.of(preset))
    if preset.soft_nms_iou is None:
        return protocol
    return replace(protocol, merge="soft_nms", merge_iou=preset.soft_nms_iou)


def _both(size: int | tuple[int, int], **settings: Any) -> Scale:
    return Scale(size, flipped=True, **settings)


_BASE_320 = (
    _both(320),
    _both((192, 320), turned=True),
    _both(192, max_side_above=32),
    _both(384, min_side_below=160),
    _both(448, min_side_below=128),
    _both(512, min_side_below=96),
    _both(576, min_side_below=64),
    _both(704, min_side_below=32),
)
_BASE_512 = (
    _both(512),
    _both((384, 512), turned=True),
    _both(256),
    _both(384),
    _both(768, min_side_below=192),
    _both(896, min_side_below=128),
)
_COCO_320 = (_both(640, min_side_below=48),)
_COCO_512 = (_both(640, min_side_below=224), _both(1024, min_side_below=96), _both(1152, min_side_below=64))
_COCO_MANY = Thresholds(score_threshold=0.05, nms_iou=0.45, top_k=400, keep_top_k=200)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        replace(of_preset(OFFICIAL), name="voc"),
        of_preset(COCO),
        Protocol("voc_multiscale_320", _BASE_320, merge="vote"),
        Protocol("voc_multiscale_512", _BASE_512, merge="vote"),
        Protocol("coco_multiscale_320", _BASE_320 + _COCO_320, _COCO_MANY, merge="soft_vote"),
        Protocol("coco_multiscale_512", _BASE_512 + _COCO_512, _COCO_MANY, merge="soft_vote"),
    )
}
"""The shipped protocols, those of the released evaluation, by name."""


def get_protocol(protocol: str | os.PathLike[str] | Protocol, folder: Path = Path()) -> Protocol:
    """Return ``protocol`` itself, the shipped one of that name, or the one in a TOML file (`parse_protocol`), whose
    path is relative to ``folder``.

    Raises InputError for an unknown name, and for a file that cannot be read or says what no protocol has.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, (str, os.PathLike)):
        raise InputError(f"protocol is {show(protocol)}; give a name, a TOML file or a Protocol")
    name, path = os.fspath(protocol), folder / protocol
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give a TOML file or the name of a shipped protocol")
    if not os.path.isfile(path):
        shipped = ", ".join(PROTOCOLS)
        raise InputError(
            f"there is no protocol {show(name)};{suggestion(name, PROTOCOLS)} give a TOML file or one of: {shipped}"
        )
    try:
        document = parse_toml(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from error
    try:
        return parse_protocol(document, path.name if path.stem in PROTOCOLS else path.stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_protocol(document: Mapping[str, Any], name: str) -> Protocol:
    """The protocol of a TOML document: the fields of `Protocol` and `Thresholds`, and tables ``scales`` with those of
    `Scale` and, where they differ at that scale, `Thresholds`. "none" is None.

    Raises InputError for an unknown key, a value of the wrong type or out of range, and a protocol without scales.
    """
    try:
        values = _split(document, Protocol, ("name",))
        tables = values.pop("scales", ())
        if not isinstance(tables, (list, tuple)):
            raise InputError(f"scales is {show(tables)}; give a table for each, [[scales]]")
        thresholds = Thresholds(**values.pop("thresholds"))
        scales = tuple(_parse_scale(table, thresholds, i) for i, table in enumerate(tables, 1))
    except InputError as error:
        raise InputError(f"protocol {name}: {error}") from None
    return Protocol(name, scales, thresholds, **values)


def _parse_scale(table: Any, common: Thresholds, number: int) -> Scale:
    try:
        if not isinstance(table, Mapping):
            raise InputError(f"it is {show(table)}; give a table, [[scales]]")
        values = _split(table, Scale)
        own = values.pop("thresholds")
        return Scale(**values, thresholds=replace(common, **own) if own else None)
    except InputError as error:
        raise InputError(f"scale {number}: {error}") from None


def _split(document: Mapping[str, Any], kind: type, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a table by their fields in ``kind``, those of thresholds together under ``thresholds``."""
    flat = {f.name for f in fields(Thresholds)}
    known = [f.name for f in fields(kind) if f.name not in ("thresholds", *hidden)]
    values: dict[str, Any] = {"thresholds": {}}
    for key, value in document.items():
        if key in flat:
            values["thresholds"][key] = None if value == OFF and key != "score_threshold" else value
        elif key in known:
            values[key] = value
        else:
            everything = [*known, *(f.name for f in fields(Thresholds))]
            raise InputError(f"{show(key)} is unknown;{suggestion(key, everything)} valid are {', '.join(everything)}")
    return values


def _thresholds_to_dict(thresholds: Thresholds) -> dict[str, Any]:
    values = ((f.name, getattr(thresholds, f.name)) for f in fields(thresholds))
    return {name: OFF if value is None else value for name, value in values}


def _scale_to_dict(scale: Scale) -> dict[str, Any]:
    values = {f.name: getattr(scale, f.name) for f in fields(scale) if f.name != "thresholds"}
    kept = {name: value for name, value in values.items() if value is not None}
    return kept if scale.thresholds is None else {**kept, **_thresholds_to_dict(scale.thresholds)}
