"""Writing a model for another runtime, checked against PyTorch before it is handed over."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import torch

from refinedet.anchors import parse_size
from refinedet.data import open_dataset
from refinedet.errors import InputError
from refinedet.exporting.check import Report, check
from refinedet.exporting.job import Job
from refinedet.exporting.network import PixelNetwork
from refinedet.files import place, write_text
from refinedet.formats import FORMATS, Choices
from refinedet.inference.detector import Detector, Testing
from refinedet.models.build import try_backbone
from refinedet.presets import Preset
from refinedet.profiling.model import open_photographs
from refinedet.progress import busy
from refinedet.protocols import Scale, get_protocol
from refinedet.runtimes import open_network
from refinedet.runtimes.description import Description

_WRITERS = {"torch": "torch_program", "aoti": "aoti", "onnx": "onnx_graph", "openvino": "openvino_ir", "mnn": "mnn_net"}
_COMPUTES = {"torch", "aoti", "onnx"}  # in the dtype that is asked for; the others store weights in it


def export(
    detector: Detector,
    path: str | os.PathLike[str],
    choices: Choices | str,
    *,
    images: Sequence[Path] = (),
    calibration: Sequence[Path] = (),
    protocol: Testing = None,
    data: Path | None = None,
    split: str = "test",
    device: str = "cpu",
) -> Report:
    """Write ``detector`` to the file ``path`` and say how far it is from PyTorch, which a file beside it keeps as JSON.

    ``choices``: a `refinedet.formats.Choices`, or the name of a format. ``images``: photographs to compare
    with, the first `check.MOST_IMAGES` (default: those of the repository, or a synthetic one). ``calibration``: for
    int8. ``protocol``: of testing, whose thresholds the file's detections have (default: the preset's). ``data``: a
    data set folder, on whose ``split`` the mAP of both is measured as well. ``device``: "cuda" compiles ``aoti`` for
    the GPU of this machine. The detector is not changed.

    Nothing is at ``path`` until the file has been run and compared.

    Raises:
        InputError: the format does not hold what is asked for, or its package is not installed.
        DataError: the data set or an image is absent or damaged.
        ExportError: what came out does not find what PyTorch finds.
    """
    chosen = Choices(choices) if isinstance(choices, str) else choices
    form, target = FORMATS[chosen.format], Path(path)
    if target.suffix != form.suffix:
        right = target.with_suffix(form.suffix)
        raise InputError(f"out is {target}, and files of {form.name} end in {form.suffix}; give {right}")
    if target.is_dir():
        raise InputError(f"out is {target}, which is a folder; give a file in it")
    if (chosen.dtype == "int8") != bool(calibration):
        raise InputError("int8 needs calibration images, and only int8 does; give --dtype int8 --calibrate FOLDER")
    if device != "cpu" and chosen.format != "aoti":
        raise InputError(f"device is {device}, and only aoti is compiled for one; leave it out")
    if form.suffix == ".xml" and target.with_suffix(".bin").exists() and not target.exists():
        raise InputError(f"out is {target}, and {target.with_suffix('.bin')} is another file's; give another name")
    photographs = open_photographs([Path(image) for image in images])
    dataset = None if data is None else open_dataset(data, split, classes=detector.classes)
    job = _prepare(detector, chosen, calibration, _preset(detector, chosen, protocol), device)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(target) as folder:
        written = folder / target.name
        with busy(f"exporting to {form.name}"):
            import_module(f"refinedet.exporting.{_WRITERS[form.name]}").write(job, written)
        report = check(detector, job.description, open_network(written), written, photographs, dataset)
        report = replace(report, path=str(target))
        write_text(written.with_name(f"{written.name}.json"), report.to_json())
        place(folder, target.parent, last=target.name)
    return report


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder in that of ``target``; an OSError that names it names ``target``."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.stem[:32]}.", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent == target.parent:
            error.filename = str(target)
        raise


def _prepare(detector: Detector, choices: Choices, calibration: Sequence[Path], preset: Preset, device: str) -> Job:
    trained = detector.trained_network
    for field in ("tcb", "head_bottleneck"):
        if getattr(preset, field) != getattr(trained.config.preset, field):
            raise InputError(
                f"preset {preset.name} has {field} {getattr(preset, field)}, and the network was built with "
                f"{getattr(trained.config.preset, field)}: its layers are what they are; give the preset the same"
            )
    size = parse_size(choices.size or detector.size)
    config = replace(trained.config, size=size, preset=preset)
    try_backbone(config.backbone, size)
    network = deepcopy(trained).float().to(device).eval()
    network.config = config
    network.requires_grad_(False)
    anchors = network.to(device).anchors  # made anew for the size
    dtype = getattr(torch, choices.dtype) if choices.format in _COMPUTES else torch.float32
    description = Description(config, replace(choices, size=size), device)
    return Job(PixelNetwork(network, detector.preprocessing, dtype).eval(), anchors, description, calibration)


def _preset(detector: Detector, choices: Choices, protocol: Testing) -> Preset:
    """With the thresholds that the file's detections have. InputError for what no file holds."""
    preset = detector.preset
    if protocol is not None:
        testing = get_protocol(protocol)
        if choices.raw:
            raise InputError(
                f"protocol is {testing.name}, and the file holds the network alone; give it where the file is run"
            )
        if testing.scales != (Scale(),) or testing.merge != "none":
            raise InputError(
                f"protocol {testing.name} looks at an image {testing.looks} times and merges by {testing.merge!r}, "
                f"which {choices.format} does not hold; export the network alone (--raw) and give it where it is run"
            )
        preset = replace(preset, name=testing.name, soft_nms_iou=None, **asdict(testing.thresholds))
    if not choices.raw:
        _check_held(preset, choices.format)
    return preset


def _check_held(preset: Preset, name: str) -> None:
    """Raise InputError for thresholds that no file has."""
    lacking = [field for field in ("top_k", "keep_top_k") if getattr(preset, field) is None]
    beyond = lacking or (["soft_nms_iou"] if preset.soft_nms_iou is not None else [])
    if beyond:
        values = " and ".join(f"{field} {getattr(preset, field)}" for field in beyond)
        raise InputError(
            f"preset {preset.name} has {values}, which {name} does not hold; export the network alone (--raw), or give "
            "a --protocol of other thresholds, such as voc"
        )
