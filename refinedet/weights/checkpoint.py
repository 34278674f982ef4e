"""Checkpoints: safetensors files that say what model they hold, and are either whole or absent.

A *model* file holds the weights of a network; a *training* file (``last.safetensors``) everything needed to continue
a run: weights, their moving average, momentum buffers, random generators, step, recipe. Both carry one JSON text in
the safetensors metadata under the key ``refinedet``: ``format_version``, ``kind``, ``config`` (the `ModelConfig`) and
``facts`` (whatever the writer adds). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from refinedet.errors import CheckpointError, InputError, suggestion
from refinedet.files import CHECKPOINTS, atomic_write
from refinedet.models import ModelConfig, RefineDet, from_config
from refinedet.weights.subsampling import select_classes

FORMAT_VERSION = 1
_KEY = "refinedet"
_MODEL, _AVERAGE, _MOMENTUM, _RANDOM = "model.", "average.", "momentum.", "random."
_MISMATCHES_SHOWN = 5


@dataclass(frozen=True)
class TrainingState:
    """Everything a training run needs to continue as if it had never stopped."""

    step: int  # number of steps taken
    model: dict[str, Tensor]  # state dict of the network
    momentum: dict[str, Tensor]  # momentum buffer of each parameter that has one
    average: dict[str, Tensor]  # moving average of the weights; empty when the run keeps none
    random: dict[str, Tensor]  # states of torch's generators, uint8
    facts: dict[str, Any]  # JSON: the recipe, the running sums of the log, the AMP scale


def save_model(
    model: RefineDet,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` (weights and configuration) to ``path`` as safetensors, atomically.

    Args:
        model: the network; its mode and device do not matter.
        path: file to write; what stood there stays until the new file is complete.
        half: store the weights of convolutions as float16. Vectors (biases, norms, batch statistics) stay float32:
            they are few, and batch variances can exceed float16's range.
        metadata: JSON-able facts kept with it, e.g. recipe and accuracy; `read_metadata` gives them back.

    Raises:
        CheckpointError: a weight is not finite (or not in half precision), or the file cannot be written.
    """
    tensors = model.state_dict()
    if half:
        tensors = {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in tensors.items()}
    _write(path, tensors, {"kind": "model", "config": model.config.to_json(), "facts": dict(metadata or {})})


def load_network(path_or_name: str | os.PathLike[str]) -> RefineDet:
    """Network of a checkpoint, in eval mode, float32, on the CPU, whatever torch's default dtype and device.

    Args:
        path_or_name: a file written by `save_model`, the ``last.safetensors`` of a training run (the moving average of
            its weights where it has one), or the name of a checkpoint shipped with the package.

    Raises:
        CheckpointError: no such file or name; not a safetensors file (pickles are refused unread); damaged; from a
            newer version; tensors that do not fit the network of its configuration.
    """
    path = resolve(path_or_name)
    tensors, header = _read(path)
    model = _build(path, header)
    _assign(model, _inference_weights(tensors, header), path)
    return model.eval()


def load_weights(model: RefineDet, path: str | os.PathLike[str]) -> None:
    """Start ``model`` from the weights of another checkpoint of the same architecture.

    Where the checkpoint has all classes of ``model`` among its own, in any order, and VOC's under COCO's names too, the
    classifiers of those are taken: a VOC model starts from a COCO model so (spec section 9.3).

    Raises:
        CheckpointError: as `load_network`; also for another number of other classes.
    """
    path = resolve(path)
    tensors, header = _read(path)
    source = _config(path, header).classes
    _assign(model, select_classes(_inference_weights(tensors, header), source, model.config.classes), path)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a checkpoint of this package (of any version), as opposed to a backbone's weights."""
    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_metadata(path_or_name: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON metadata of a checkpoint: ``format_version``, ``kind``, ``config`` and ``facts``."""
    return _read_header(resolve(path_or_name))


def shipped_names() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))


def resolve(path_or_name: str | os.PathLike[str]) -> Path:
    """Path of a checkpoint file, from a path or the name of a shipped one.

    Raises:
        CheckpointError: there is no such file or name.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    is_name = not path.suffix and path.parent == Path(".")
    shipped = CHECKPOINTS / f"{path.name}.safetensors"
    if is_name and shipped.is_file():
        return shipped
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a checkpoint file, such as {path / 'model.safetensors'}")
    known = ", ".join(shipped_names()) or "none in this installation"
    if is_name:
        hint = suggestion(path.name, shipped_names())
        raise CheckpointError(f"no file and no shipped checkpoint is called {path.name!r};{hint} shipped: {known}")
    beside = [str(path.with_name(other.name)) for other in path.parent.glob("*.safetensors")]
    hint = suggestion(str(path), [*shipped_names(), *beside])
    raise CheckpointError(
        f"checkpoint {path} does not exist;{hint} give a .safetensors file or a shipped name ({known})"
    )


def save_training_state(path: str | os.PathLike[str], model: RefineDet, state: TrainingState) -> None:
    """Write the state of a run to ``path`` atomically: on any error the previous file is untouched.

    Raises:
        CheckpointError: a weight is not finite, or the file cannot be written (a full disk).
    """
    groups = {_MODEL: state.model, _AVERAGE: state.average, _MOMENTUM: state.momentum, _RANDOM: state.random}
    tensors = {prefix + name: tensor for prefix, group in groups.items() for name, tensor in group.items()}
    header = {"kind": "training", "config": model.config.to_json(), "step": state.step, "facts": state.facts}
    _write(path, tensors, header)


def load_training_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read what `save_training_state` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: as `load_network`, or the file holds a model without the state of a run.
    """
    path = Path(path)
    tensors, header = _read(path)
    if header["kind"] != "training":
        raise CheckpointError(f"{path} holds a finished model, not the state of a run; resume needs last.safetensors")
    return TrainingState(
        step=header["step"],
        model=_group(tensors, _MODEL),
        momentum=_group(tensors, _MOMENTUM),
        average=_group(tensors, _AVERAGE),
        random=_group(tensors, _RANDOM),
        facts=header["facts"],
    )


def fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that ``tensors`` are the state dict of ``module``, by names and shapes.

    Raises:
        CheckpointError: naming the first tensors that differ, with both shapes.
    """
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = [
        f"{name}: file has {found.get(name, 'none')}, network needs {expected.get(name, 'none')}"
        for name in dict.fromkeys([*expected, *found])
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        shown = "\n  ".join(wrong[:_MISMATCHES_SHOWN])
        raise CheckpointError(
            f"{path} does not fit the network (other backbone, preset or number of classes?); "
            f"{len(wrong)} of {len(expected)} tensors differ:\n  {shown}"
        )


def _assign(model: RefineDet, tensors: Mapping[str, Tensor], path: Path) -> None:
    fit(model, tensors, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name} holds values that are not finite; copy it again")
    model.load_state_dict(tensors)


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _inference_weights(tensors: dict[str, Tensor], header: Mapping[str, Any]) -> dict[str, Tensor]:
    if header["kind"] == "model":
        return tensors
    return _group(tensors, _AVERAGE) or _group(tensors, _MODEL)


def _config(path: Path, header: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_json(header["config"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: its model cannot be built: {error}; use an undamaged checkpoint") from error


def _build(path: Path, header: Mapping[str, Any]) -> RefineDet:
    config = _config(path, header)
    try:
        with torch.device("cpu"):
            return from_config(config).float()
    except (InputError, TypeError, ValueError, RuntimeError) as error:  # the last three: wild values
        raise CheckpointError(f"{path}: its model cannot be built: {error}; use an undamaged checkpoint") from error


def _write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    path = Path(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path} not written: {name} holds values that are not finite as {tensor.dtype}")
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **header})
    try:
        with atomic_write(path) as temporary:
            save_file(stored, temporary, {"format": "pt", _KEY: text})
    except (OSError, SafetensorError) as error:
        kept = f"; the previous {path.name} is untouched" if path.exists() else ""
        raise CheckpointError(f"cannot write {path}: {error}{kept}. Free space or choose another folder") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header = _read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(_explain_unreadable(path)) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file without refinedet's metadata: it is not a checkpoint of this package "
            f"(the weights of a backbone: refinedet train RECIPE --weights {shlex.quote(str(path))})"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version, kind, _ = header["format_version"], header["kind"], header["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its refinedet metadata is damaged ({error!r})") from error
    if type(version) is not int:
        raise CheckpointError(f"{path}: its refinedet metadata is damaged (format version {version!r}); copy it again")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this refinedet reads up to {FORMAT_VERSION}: update the package"
        )
    if kind not in ("model", "training"):
        raise CheckpointError(f"{path} holds a {kind!r}, not a model or the state of a training run")
    return header


def _explain_unreadable(path: Path) -> str:
    """Why a file that safetensors refuses was refused, told by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[2:3] != b"\x00"):
        return (
            f"{path} is not a safetensors file but a pickle (torch.save). Opening a pickle can run any code, so it "
            f"was not opened. The weights of a backbone: refinedet train RECIPE --weights {shlex.quote(str(path))}. A "
            "model of another program: no command converts it; load it by torch.load(..., weights_only=True) into a "
            "network of refinedet.build, and write that by refinedet.weights.checkpoint.save_model"
        )
    size = path.stat().st_size
    if start[8:9] == b"{" or len(start) < 9:
        return f"{path} is truncated or damaged ({size} bytes); copy or download it again"
    return f"{path} is not a safetensors file; give a checkpoint written by refinedet"
