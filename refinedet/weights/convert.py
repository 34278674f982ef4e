"""Models of other programs to ours and back: what a file holds, found out from its layers (spec sections 11, 12.1)."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from refinedet.anchors import ANCHORS_PER_CELL, RATIO, check_size
from refinedet.choices import MAX_SIDE
from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.errors import CheckpointError, InputError, shorten
from refinedet.models import ModelConfig, outline
from refinedet.models.config import MOST_TCB_CHANNELS, TCB_CHANNELS
from refinedet.models.pretrained import NEW_PARTS
from refinedet.models.weights_file import CAFFE_SUFFIX, read_state_dict
from refinedet.preprocessing import Preprocessing
from refinedet.presets import COCO, OFFICIAL, Preset
from refinedet.progress import SHORT, show_progress
from refinedet.weights.caffe_names import BlobName, caffe_names, from_caffe, layer_types, to_caffe
from refinedet.weights.caffemodel import CaffeLayer, CaffeModel, read_caffemodel, write_caffemodel
from refinedet.weights.checkpoint import read_metadata, read_model, resolve, save_backbone, save_tensors, swap_colours
from refinedet.weights.luuuyi import CLASSIFIER, INPUT, LUUUYI, from_luuuyi
from refinedet.weights.subsampling import class_rows, select_classes

SUFFIX = ".safetensors"
FOREIGN_SUFFIXES = (CAFFE_SUFFIX, ".pth", ".pt")
_ANY_SIZE = (64, 64)  # no weight depends on it
KNOWN_CLASSES = {len(VOC_CLASSES): VOC_CLASSES, len(COCO_CLASSES): COCO_CLASSES}
_CLASSIFIERS = {"vgg16": "fc8", "resnet101": "fc1000"}  # ImageNet's, which a detector has no use for
_OF_THE_BENCHMARK = ("name", "score_threshold", "nms_iou", "top_k", "keep_top_k", "soft_nms_iou")  # of a preset
_SIDES = re.compile(r"(?<![\dx])(\d{2,4})x(\d{2,4})(?![\dx])")  # refinedet_vgg16_320x320: width, height
_PAPERS_SIDE = re.compile(r"(?<!\d)(?<!\dx)(320|512)(?!x?\d)")  # RefineDet320_VOC_final


@dataclass(frozen=True)
class Conversion:
    """What was found, and where it lies now."""

    input: Path
    output: Path
    format: str  # "caffemodel", "luuuyi" or "refinedet"
    backbone: str
    config: ModelConfig | None  # None: a backbone alone
    size_from: str  # what told the size of the network's input
    ignored: tuple[str, ...]  # layers with weights that the network has no use for
    values: int  # numbers in its tensors


class _Source(NamedTuple):
    """A model in memory; most tensors share it with the file."""

    format: str
    backbone: str
    config: ModelConfig | None
    size_from: str
    ignored: tuple[str, ...]
    tensors: dict[str, Tensor]


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    select: Sequence[str] | None = None,
) -> Conversion:
    """Convert the model in ``path`` into ``out``, whose suffix says the format: ``.safetensors`` or ``.caffemodel``.

    Args:
        path: a ``.caffemodel`` of RefineDet or of its ImageNet backbones (VGG-16 reduced, ResNet-101), a state dict of
            the luuuyi port (``.pth``), or a checkpoint of this package.
        out: file to write, whole or not at all. A backbone's goes to ``refinedet train --weights``.
        size: height and width of the input, where neither the file nor its name tells them, or in their place: the
            weights are the same for all.
        classes: names of the foreground classes, where there are neither VOC's 20 nor COCO's 80.
        select: the classes to keep, by their names or COCO's names for them: VOC's out of COCO's (spec section 9.3).

    Raises:
        CheckpointError: a file that is absent, damaged, unsafe or not one of those, naming the first layers that do not
            fit; or ``out`` cannot be written.
        InputError: an argument that does not fit the file.
    """
    path, out = Path(path), Path(out)
    if out.suffix not in (SUFFIX, CAFFE_SUFFIX):
        raise InputError(f"{out} tells no format to write; end its name in {SUFFIX} or {CAFFE_SUFFIX}")
    if os.path.isdir(out):
        raise InputError(f"{out} is a folder; give a file in it")
    with show_progress(f"converting {path.name}", "step", 3, delay=SHORT, leave=False) as progress:
        source = _read(path, size, classes)
        if os.path.exists(out) and out.samefile(resolve(path)):
            raise InputError(f"{out} is the file to be converted, which would be lost; give another place")
        progress.update()
        if source.config is None and (size or classes or select):
            raise InputError(f"{path} is a backbone without a size and classes; leave their options out")
        if select is not None and source.config is not None:
            source = _select(source, source.config, select, path)
        facts = _facts(source, resolve(path))
        progress.update()
        if out.suffix == CAFFE_SUFFIX:
            _write_caffe(source, out)
        elif source.config is None:
            save_backbone(out, source.tensors, facts)
        else:
            save_tensors(out, source.config, source.tensors, facts)
        progress.update()
    values = sum(tensor.numel() for tensor in source.tensors.values())
    return Conversion(path, out, *source[:5], values)


def _read(path: Path, size: tuple[int, int] | None, classes: Sequence[str] | None) -> _Source:
    """Find out what kind of file it is, whatever its name says, and read it."""
    if path.suffix in FOREIGN_SUFFIXES and not path.exists():
        raise CheckpointError(f"{path} does not exist; check the path")
    path = resolve(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if start[5:] == b"\0\0\0{":  # the end of a length, and JSON: safetensors
        config, tensors = read_model(path)
        changes: dict[str, Any] = {"size": size or config.size, "classes": tuple(classes or config.classes)}
        _check_count(changes["classes"], config.num_classes, path)
        told_by = "--size" if size else "the checkpoint"
        return _Source("refinedet", config.backbone, replace(config, **changes), told_by, (), tensors)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return _read_luuuyi(path, size, classes)
    return _read_caffe(path, size, classes)


# Caffe ---------------------------------------------------------------------------------------------------------------


def _read_caffe(path: Path, size: tuple[int, int] | None, classes: Sequence[str] | None) -> _Source:
    content = read_caffemodel(path)
    layers = list(dict.fromkeys(layer for layer, _ in content.blobs))
    if not layers:
        raise CheckpointError(f"{path} has no layers with weights; give a .caffemodel of a trained network")
    backbone = "resnet101" if any(layer.startswith("res2a_") for layer in layers) else "vgg16"
    preset = _parts_of(layers)
    names = caffe_names(outline(ModelConfig(backbone, _ANY_SIZE, VOC_CLASSES, preset)))
    pretrained = {
        name: blob
        for name, blob in names.items()
        if name.startswith("backbone.") and not name.removeprefix("backbone.").startswith(NEW_PARTS[backbone])
    }
    ignored = tuple(layer for layer in layers if layer == _CLASSIFIERS[backbone])
    if set(layers) - set(ignored) == set(_layers_of(pretrained)):
        network = outline(ModelConfig(backbone, _ANY_SIZE, VOC_CLASSES))
        tensors = from_caffe(network, content.blobs, str(path), pretrained)
        weights = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
        return _Source("caffemodel", backbone, None, "", ignored, weights)
    known = _layers_of(names)
    ignored = tuple(layer for layer in layers if layer not in known)
    found = set(layers)
    if missing := [layer for layer in known if layer not in found]:
        others = f", and it has {shorten(list(ignored))}" if ignored else ""
        raise CheckpointError(
            f"{path} is a model of another network: it lacks {shorten(missing)} of RefineDet with {backbone}{others}; "
            "give one of RefineDet with vgg16 or resnet101, or their ImageNet backbone"
        )
    config, size_from = _configure(path, content, backbone, preset, size, classes)
    return _Source(
        "caffemodel", backbone, config, size_from, ignored, from_caffe(outline(config), content.blobs, str(path))
    )


def _configure(
    path: Path,
    content: CaffeModel,
    backbone: str,
    preset: Preset,
    size: tuple[int, int] | None,
    classes: Sequence[str] | None,
) -> tuple[ModelConfig, str]:
    """What a detector's layers, names and the user tell; and what told the size."""
    names = caffe_names(outline(ModelConfig(backbone, _ANY_SIZE, VOC_CLASSES, preset)))
    classifier = names["odm.conf.0.weight"]
    found_classes = _class_names(classes, _count_classes(content.blobs[classifier], classifier[0], path), path)
    found_size, size_from = _find_size(path, size, content.size, content.name)
    width = TCB_CHANNELS
    if preset.tcb:
        lateral = content.blobs[names["tcb.lateral1.0.conv.weight"]]
        width = min(len(lateral) if lateral.ndim else 1, MOST_TCB_CHANNELS)
    whole = replace(_preset_of(found_classes), tcb=preset.tcb, head_bottleneck=preset.head_bottleneck)
    return ModelConfig(backbone, found_size, found_classes, whole, tcb_channels=width), size_from


def _parts_of(layers: Sequence[str]) -> Preset:
    """The parts that a model may be without, as in the ablation and the paper's text, told by names of their layers."""
    return replace(
        OFFICIAL,
        tcb=any(layer.startswith(("TL", "P")) for layer in layers),
        head_bottleneck=any("_inter_branch" in layer or layer.startswith("conv1_") for layer in layers),
    )


def _layers_of(names: Mapping[str, BlobName]) -> dict[str, None]:
    """The layers in the order of the network."""
    return dict.fromkeys(layer for layer, _ in names.values())


def _write_caffe(source: _Source, out: Path) -> None:
    """Write a detector as Caffe's own snapshots are, but for the parts that hold no weights."""
    if source.config is None:
        raise InputError(f"the weights of a backbone alone are not written as {out.suffix}; give {SUFFIX}")
    config = source.config
    network = outline(config)
    types = layer_types(network)  # refuses a backbone that Caffe has no layers for
    plain = Preprocessing()
    if replace(config.preprocessing, order="bgr") != plain:
        raise InputError(
            f"the model reads images as {config.preprocessing}; a Caffe model of RefineDet reads BGR minus {plain.mean}"
        )
    tensors = source.tensors if config.preprocessing.order == "bgr" else swap_colours(network, source.tensors)
    blobs: dict[str, list[np.ndarray]] = {}
    for (layer, _), values in sorted(to_caffe(network, tensors).items(), key=lambda item: item[0][1]):
        blobs.setdefault(layer, []).append(values)
    height, width = config.size
    name = f"refinedet_{config.backbone}_{width}x{height}"
    try:
        write_caffemodel(out, name, [CaffeLayer(layer, types[layer], blobs[layer]) for layer in types])
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}; choose another place") from error
    if config.anchor_ratio != RATIO:
        warnings.warn(
            f"{out}: its prior boxes need aspect_ratio: {config.anchor_ratio:g} in the .prototxt, not {RATIO:g}",
            stacklevel=3,
        )


# the luuuyi port -----------------------------------------------------------------------------------------------------


def _read_luuuyi(path: Path, size: tuple[int, int] | None, classes: Sequence[str] | None) -> _Source:
    state = read_state_dict(path)
    if CLASSIFIER not in state:
        raise CheckpointError(
            f"{path}: not a RefineDet of the luuuyi port: it lacks {CLASSIFIER} and has {shorten(list(state))}; "
            "give one of its checkpoints"
        )
    count = _count_classes(state[CLASSIFIER].numpy(), CLASSIFIER, path)
    found_size, size_from = _find_size(path, size)
    config = ModelConfig(
        "vgg16",
        found_size,
        _class_names(classes, count, path),
        LUUUYI,
        INPUT,
        clip_anchors=True,
    )
    return _Source("luuuyi", "vgg16", config, size_from, (), from_luuuyi(outline(config), state, path))


# what the layers do not tell -----------------------------------------------------------------------------------------


def _count_classes(classifier: np.ndarray, name: str, path: Path) -> int:
    """Classes with the background, by the rows of a classifier of three anchors."""
    rows = len(classifier) if classifier.ndim else 0
    if rows % ANCHORS_PER_CELL or rows < 2 * ANCHORS_PER_CELL:
        raise CheckpointError(
            f"{path}: {name} has shape {list(classifier.shape)}, whose rows are no classes of {ANCHORS_PER_CELL} "
            "anchors; give a model of RefineDet"
        )
    return rows // ANCHORS_PER_CELL


def _class_names(classes: Sequence[str] | None, count: int, path: Path) -> tuple[str, ...]:
    if classes is None and count - 1 not in KNOWN_CLASSES:
        raise InputError(
            f"{path} has {count - 1} classes, neither VOC's {len(VOC_CLASSES)} nor COCO's {len(COCO_CLASSES)}; "
            "name them in order: --classes FILE, with one name per line"
        )
    names = tuple(KNOWN_CLASSES[count - 1] if classes is None else classes)
    _check_count(names, count, path)
    return names


def _check_count(names: Sequence[str], count: int, path: Path) -> None:
    if len(names) != count - 1:
        raise InputError(f"{path} has {count - 1} classes, and {len(names)} names are given; give one for each")


def _preset_of(classes: Sequence[str]) -> Preset:
    return COCO if tuple(classes) == COCO_CLASSES else OFFICIAL


def _find_size(
    path: Path, given: tuple[int, int] | None, inside: tuple[int, int] | None = None, network: str = ""
) -> tuple[tuple[int, int], str]:
    """Height and width of the input, and what told them: the user, the file, or a name."""
    if given is not None:
        return given, "--size"
    if inside is not None and _is_size(inside):
        return inside, "the file's layers"
    resolved = path.absolute()
    places = (
        ("the network's name", network, (_SIDES, _PAPERS_SIDE)),
        ("the file's name", resolved.stem, (_SIDES, _PAPERS_SIDE)),
        ("the folder's name", resolved.parent.name, (_SIDES,)),
    )
    for place, text, patterns in places:
        for found in (match for pattern in patterns for match in pattern.finditer(text)):
            width, height = int(found[1]), int(found[found.re.groups])
            if _is_size((height, width)):
                return (height, width), place
    raise InputError(
        f"{path}: neither its layers nor its name tell the size of the network's input, for which its weights are no "
        "matter; give it: --size 320 or --size 512"
    )


def _is_size(size: tuple[int, int]) -> bool:
    try:
        check_size(size)
    except InputError:
        return False
    return max(size) <= MAX_SIDE


def _select(source: _Source, config: ModelConfig, names: Sequence[str], path: Path) -> _Source:
    """The model with classifiers of those classes alone."""
    if absent := [name for name in names if class_rows(config.classes, [name]) is None]:
        raise InputError(f"{path} has no class {shorten(absent)}; select of {shorten(list(config.classes))}")
    rows = class_rows(config.classes, names) or []
    if same := [name for name, row in zip(names, rows[1:], strict=True) if rows.count(row) > 1]:
        raise InputError(f"{shorten(same)} are one class of {path}; select it once")
    tensors = select_classes(source.tensors, config.classes, names)
    preset = config.preset
    if set(names) == set(VOC_CLASSES) and preset == _detecting_as(_preset_of(config.classes), preset):
        preset = _detecting_as(OFFICIAL, preset)
    return source._replace(config=replace(config, classes=tuple(names), preset=preset), tensors=tensors)


def _detecting_as(usual: Preset, preset: Preset) -> Preset:
    """``preset`` with the name and the thresholds of ``usual``: what differs between VOC and COCO (spec section 8)."""
    return replace(preset, **{name: getattr(usual, name) for name in _OF_THE_BENCHMARK})


def _facts(source: _Source, path: Path) -> dict[str, Any]:
    """Where the model came from."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    facts = {"file": path.name, "sha256": digest.hexdigest(), "format": source.format}
    if source.format == "refinedet":
        facts["facts"] = read_metadata(path)["facts"]
    return {"source": facts}
