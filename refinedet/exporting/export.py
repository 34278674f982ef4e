"""Writing a model for another runtime, checked against PyTorch before it is handed over."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from refinedet.anchors import parse_size
from refinedet.errors import InputError
from refinedet.exporting.check import Report, check
from refinedet.exporting.description import Description
from refinedet.exporting.formats import FORMATS, Choices
from refinedet.exporting.job import Job
from refinedet.exporting.network import PixelNetwork
from refinedet.files import place, write_text
from refinedet.inference.detector import Detector
from refinedet.models.build import try_backbone
from refinedet.presets import Preset
from refinedet.progress import busy
from refinedet.runtimes import open_network

_WRITERS = {"torch": "torch_program", "aoti": "aoti", "onnx": "onnx_graph", "openvino": "openvino_ir", "mnn": "mnn_net"}
_HALF = {"torch", "aoti"}  # compute in the dtype; the others store weights in it, or cast by themselves


def export(
    detector: Detector,
    path: str | os.PathLike[str],
    choices: Choices | str,
    *,
    images: Sequence[Path] = (),
    calibration: Sequence[Path] = (),
    device: str = "cpu",
) -> Report:
    """Write ``detector`` to the file ``path`` and say how far it is from PyTorch, which a file beside it keeps as JSON.

    ``choices``: a `refinedet.exporting.formats.Choices`, or the name of a format. ``images``: photographs to compare
    with, the first `check.MOST_IMAGES` (default: those of the repository, or a synthetic one). ``calibration``: for
    int8. ``device``: "cuda" compiles ``aoti`` for the GPU of this machine. The detector is not changed.

    Nothing is at ``path`` until the file has been run and compared.

    Raises:
        InputError: the format does not hold what is asked for, or its package is not installed.
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
        raise InputError("int8 needs calibration images, and only int8 does; give --int8 --calibrate FOLDER")
    job = _prepare(detector, chosen, calibration, device)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem[:32]}.", dir=target.parent) as folder:
        written = Path(folder) / target.name
        with busy(f"exporting to {form.name}"):
            import_module(f"refinedet.exporting.{_WRITERS[form.name]}").write(job, written)
        report = check(detector, job.description, open_network(written), written, images)
        write_text(written.with_name(f"{written.name}.json"), report.to_json())
        place(Path(folder), target.parent, last=target.name)
    return replace(report, path=str(target))


def _prepare(detector: Detector, choices: Choices, calibration: Sequence[Path], device: str) -> Job:
    trained = detector.trained_network
    if not choices.raw:
        _check_held(detector.preset, choices.format)
    size = parse_size(choices.size or detector.size)
    config = replace(trained.config, size=size, preset=detector.preset)
    try_backbone(config.backbone, size)
    network = deepcopy(trained).float().to(device).eval()
    network.config = config
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    anchors = network.to(device).anchors  # made anew for the size
    if choices.dtype != "float32" and choices.format in _HALF:
        network.to(getattr(torch, choices.dtype))
    description = Description(config, replace(choices, size=size), device)
    return Job(PixelNetwork(network, detector.preprocessing), anchors, description, calibration)


def _check_held(preset: Preset, name: str) -> None:
    """Raise InputError for what no file of this format has."""
    for field in ("soft_nms_iou",) if name != "mnn" else ():
        if getattr(preset, field) is not None:
            raise InputError(
                f"preset {preset.name} has {field}, which {name} does not hold; export the network alone (--raw), or "
                "give a --protocol without it"
            )
    for field in ("top_k", "keep_top_k") if name != "mnn" else ():
        if getattr(preset, field) is None:
            raise InputError(
                f"preset {preset.name} has no limit {field}, and {name} needs one; export the network alone (--raw), "
                "or give a --protocol with one"
            )
