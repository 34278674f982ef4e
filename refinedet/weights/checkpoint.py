"""Checkpoints: safetensors files that say what model they hold, and are either whole or absent.

A *model* file holds the weights of a network; a *training* file (``last.safetensors``) everything needed to continue
a run: weights, their moving average, momentum buffers, random generators, step, recipe. Both carry one JSON text in
the safetensors metadata under the key ``refinedet``: ``format_version``, ``kind``, ``config`` (the `ModelConfig`),
``facts`` (whatever the writer adds) and, of a run, ``step``. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from refinedet.errors import CheckpointError, InputError, show, suggestion
from refinedet.files import CHECKPOINTS, atomic_write, utf8_path
from refinedet.models import ModelConfig, RefineDet, allocate, outline, unwrap, unwrap_names
from refinedet.models.weights_file import CAFFE_SUFFIX, convert_command
from refinedet.parsing import parse_json, to_json
from refinedet.weights.subsampling import select_classes

FORMAT_VERSION = 1
_KEY = "refinedet"
_MODEL, _AVERAGE, _MOMENTUM, _RANDOM = "model.", "average.", "momentum.", "random."
_MISMATCHES_SHOWN = 5
_MOST_STEPS = 2**53  # up to here JSON and floats hold every whole number
# Of weights in a file, as safetensors and as torch name them; float8 would need scales that no file has.
_FLOATING = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_WHOLE = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}
_DTYPES = _FLOATING | _WHOLE


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
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` (weights and configuration) to ``path`` as safetensors, atomically.

    Args:
        model: the network; its mode and device do not matter, nor what is around it or its parts (torch.compile,
            DataParallel, DistributedDataParallel, AveragedModel, ModelEMA, in any order).
        path: file to write; what stood there stays until the new file is complete.
        half: store the weights of convolutions as float16. Vectors (biases, norms, batch statistics) stay float32:
            they are few, and batch variances can exceed float16's range.
        metadata: JSON-able facts kept with it, e.g. recipe and accuracy; `read_metadata` gives them back.

    Raises:
        CheckpointError: a weight is not finite (or not in half precision), the network was changed after it was built
            and could not be loaded again, or the file cannot be written.
        InputError: ``model`` is or holds no RefineDet, or ``metadata`` is no JSON.
    """
    network = unwrap(model)
    tensors = _network_tensors(network, network.state_dict(), path)
    if half:
        tensors = {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in tensors.items()}
    _write(path, tensors, {"kind": "model", "config": network.config.to_json(), "facts": dict(metadata or {})})


def save_tensors(
    path: str | os.PathLike[str], config: ModelConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """As `save_model`, of a state dict of the network of ``config``: nothing is built. float64 stays as it is.

    Raises:
        CheckpointError: as `save_model`, or ``tensors`` do not fit.
    """
    fit(outline(config), tensors, Path(path))
    _write(path, tensors, {"kind": "model", "config": config.to_json(), "facts": dict(facts)})


def save_backbone(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the weights of a backbone alone, for ``refinedet train --weights``, atomically.

    Raises:
        CheckpointError: a weight is not finite, or the file cannot be written.
    """
    _save(Path(path), tensors, {"source": to_json(dict(facts))})


@torch.inference_mode(False)  # else its weights would count no changes, and neither be trained nor optimised
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
    config, tensors = read_model(path)
    with _explaining_build(path):
        model = allocate(config)
    model.load_state_dict(tensors)
    return model.eval()


def read_model(path_or_name: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state dict of a checkpoint, in the types they are stored in; no network is built.

    Raises:
        CheckpointError: as `load_network`.
    """
    path = resolve(path_or_name)
    header = _read_header(path)
    config = _config(path, header)
    prefix = _weights_prefix(path, header)
    with _explaining_build(path):
        network = outline(config)  # takes no memory, whatever the file claims
    expected = network.state_dict()
    stored = _stored_tensors(path, prefix)
    _check_dtypes(stored, path)
    fit(network, unwrap_names(stored, expected, path), path)
    tensors = unwrap_names(_read_tensors(path, prefix), expected, path)
    _check_values(tensors, expected, path)
    return config, tensors


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Start ``model`` (a network, wrapped or not) from the weights of another checkpoint of the same architecture.

    Where the checkpoint has all classes of ``model`` among its own, in any order, and VOC's under COCO's names too, the
    classifiers of those are taken: a VOC model starts from a COCO model so (spec section 9.3). The first kernel of a
    model that reads RGB, such as the luuuyi port's, is turned for one that reads BGR, and the other way round.

    Raises:
        CheckpointError: as `load_network`; also for another number of other classes.
    """
    path = resolve(path)
    network = unwrap(model)
    header = _read_header(path)
    source = _config(path, header)
    prefix = _weights_prefix(path, header)
    _check_dtypes(_stored_tensors(path, prefix), path)
    weights = unwrap_names(_read_tensors(path, prefix), network.state_dict(), path)
    if source.preprocessing.order != network.config.preprocessing.order:
        weights = swap_colours(network, weights)
    _assign(network, select_classes(weights, source.classes, network.config.classes), path)


def swap_colours(network: RefineDet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of ``network`` for images in BGR of the one for RGB, or the other way round."""
    first = next(name for name, tensor in network.state_dict().items() if tensor.ndim == 4)
    return {k: t.flip(1) if k == first and t.ndim == 4 else t for k, t in tensors.items()}


def is_checkpoint(path_or_name: str | os.PathLike[str]) -> bool:
    """Whether that file or shipped name is a checkpoint of this package (of any version), as opposed to a backbone's
    weights."""
    try:
        return _KEY in _read_metadata(resolve(path_or_name))
    except CheckpointError:
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
    hint = suggestion(path.stem, shipped_names()) or suggestion(str(path), beside)
    raise CheckpointError(
        f"checkpoint {path} does not exist;{hint} give a .safetensors file or a shipped name ({known})"
    )


def save_training_state(path: str | os.PathLike[str], model: nn.Module, state: TrainingState) -> None:
    """Write the state of a run to ``path`` atomically: on any error the previous file is untouched.

    Raises:
        CheckpointError: a weight is not finite or no part of the network, or the file cannot be written (a full disk).
    """
    network = unwrap(model)
    model_tensors = _network_tensors(network, state.model, path)
    groups = {
        _MODEL: model_tensors,
        _AVERAGE: state.average and _network_tensors(network, state.average, path),
        _MOMENTUM: unwrap_names(state.momentum, model_tensors, path),
        _RANDOM: state.random,
    }
    tensors = {prefix + name: tensor for prefix, group in groups.items() for name, tensor in group.items()}
    header = {"kind": "training", "config": network.config.to_json(), "step": state.step, "facts": state.facts}
    _write(path, tensors, header)


def load_training_state(path: str | os.PathLike[str]) -> TrainingState:
    """Read what `save_training_state` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: as `load_network`, or the file holds a model without the state of a run.
    """
    path = Path(path)
    header = _read_header(path)
    if header["kind"] != "training":
        raise CheckpointError(f"{path} holds a finished model, not the state of a run; resume needs last.safetensors")
    _check_dtypes(_stored_tensors(path), path)
    return TrainingState(
        step=header["step"],
        model=_read_tensors(path, _MODEL),
        momentum=_read_tensors(path, _MOMENTUM),
        average=_read_tensors(path, _AVERAGE),
        random=_read_tensors(path, _RANDOM),
        facts=header["facts"],
    )


class _Stored(NamedTuple):
    """A tensor in a file, unread."""

    shape: tuple[int, ...]
    dtype: str  # in safetensors' words


def fit(module: nn.Module, tensors: Mapping[str, Tensor | _Stored], path: Path) -> None:
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


def _network_tensors(
    network: RefineDet, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """``tensors`` by their names in the network alone. CheckpointError unless they can be loaded again."""
    try:
        built = outline(network.config)
    except InputError:  # a backbone that this package cannot make; `load_weights` takes its weights back
        return unwrap_names(tensors, (), path)
    own = unwrap_names(tensors, built.state_dict(), path)
    try:
        fit(built, own, Path(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path} not written: the network was changed since it was built; {error}") from error
    return own


def _assign(model: RefineDet, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors`` into ``model``, after a check of names, shapes and values."""
    expected = model.state_dict()
    tensors = unwrap_names(tensors, expected, path)
    fit(model, tensors, path)
    _check_values(tensors, expected, path)
    model.load_state_dict(tensors)


def _check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError for a tensor that is not of its kind, floating or whole, or holds what no weight can be."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise CheckpointError(
                f"{path} is damaged: {name} is {tensor.dtype} instead of {expected[name].dtype}; copy it again"
            )
        value = tensor.to(expected[name].dtype)  # what is finite in float64 may not be here
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name} holds values that are not finite; copy it again")
        if name.endswith("running_var") and (value < 0).any():
            raise CheckpointError(f"{path} is damaged: {name} holds variances below 0; copy it again")


def _config(path: Path, header: Mapping[str, Any]) -> ModelConfig:
    with _explaining_build(path):
        return ModelConfig.from_json(header["config"])


@contextmanager
def _explaining_build(path: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, InputError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {error}; use an undamaged checkpoint") from error


def _write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    _save(Path(path), tensors, {_KEY: _header_text(Path(path), {"format_version": FORMAT_VERSION, **header})})


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    stored: dict[str, Tensor] = {}
    memory: set[int] = set()  # safetensors refuses tensors that share theirs: tied weights are stored twice
    for name, tensor in tensors.items():
        _check_writable(tensor, name, path)
        plain = tensor.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.untyped_storage().data_ptr() in memory else plain
        memory.add(plain.untyped_storage().data_ptr())
    try:
        with atomic_write(path) as temporary:
            save_file(stored, temporary, {"format": "pt", **metadata})
    except (OSError, SafetensorError) as error:
        if os.path.isdir(path):
            raise CheckpointError(f"cannot write {path}, which is a folder; give a file in it") from error
        kept = f"; the previous {path.name} is untouched" if os.path.exists(path) else ""
        raise CheckpointError(f"cannot write {path}: {error}{kept}. Free space or choose another folder") from error


def _check_writable(tensor: Tensor, name: str, path: Path) -> None:
    if tensor.is_meta:
        raise CheckpointError(f"{path} not written: {name} has no values (device meta); fill the network first")
    if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES.values():
        kind = f"{tensor.dtype}, {tensor.layout}"
        raise CheckpointError(f"{path} not written: {name} is {kind}; cast the network to float32 first")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise CheckpointError(f"{path} not written: {name} holds values that are not finite as {tensor.dtype}")


def _header_text(path: Path, header: Mapping[str, Any]) -> str:
    """``header`` as JSON that can be read again; InputError if it holds what JSON does not."""
    try:
        text = to_json(header)
        parse_json(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} not written: its metadata is no JSON ({error}); give texts, numbers, lists"
        ) from error
    return text


def _weights_prefix(path: Path, header: Mapping[str, Any]) -> str:
    """Of the names of the tensors to detect with: in the state of a run, the moving average where it has one."""
    if header["kind"] == "model":
        return ""
    return _AVERAGE if _stored_tensors(path, _AVERAGE) else _MODEL


def _stored_tensors(path: Path, prefix: str = "") -> dict[str, _Stored]:
    """Shapes and types of the tensors whose names begin with ``prefix``, by the rest of their names."""
    with _open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
        return {
            name.removeprefix(prefix): _Stored(tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def _read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    with _open(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _check_dtypes(stored: Mapping[str, _Stored], path: Path) -> None:
    """Raise CheckpointError for a tensor of a type that weights do not come in."""
    for name, tensor in stored.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is stored as {tensor.dtype}, no type of weights; use one of {', '.join(_DTYPES)}"
            )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The open safetensors file; what goes wrong with it is a CheckpointError."""
    try:
        with utf8_path(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(_explain_unreadable(path)) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read_metadata(path: Path) -> dict[str, str]:
    with _open(path) as file:
        return dict(file.metadata() or {})


def _read_header(path: Path) -> dict[str, Any]:
    metadata = _read_metadata(path)
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file without refinedet's metadata: it is not a checkpoint of this package "
            f"(the weights of a backbone: refinedet train RECIPE --weights {shlex.quote(str(path))})"
        )
    try:
        header: Any = parse_json(metadata[_KEY])
    except ValueError as error:
        raise CheckpointError(f"{path}: its refinedet metadata is damaged ({error}); copy it again") from error
    _check_header(header, path)
    checked: dict[str, Any] = header
    return checked


def _check_header(header: Any, path: Path) -> None:
    """Raise CheckpointError unless the header is as this module's docstring says."""

    def require(condition: bool, name: str, value: object, wanted: str) -> None:
        if not condition:
            raise CheckpointError(
                f"{path}: its refinedet metadata is damaged ({name} {show(value)}): {wanted} is needed; copy it again"
            )

    require(isinstance(header, dict), "document", header, "an object")
    version, kind, facts = header.get("format_version"), header.get("kind"), header.get("facts")
    require(type(version) is int and version >= 1, "format version", version, "a whole number from 1")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {show(version)}, this refinedet reads up to {FORMAT_VERSION}: "
            "update the package"
        )
    if kind not in ("model", "training"):
        raise CheckpointError(f"{path} holds a {show(kind)}, not a model or the state of a training run")
    require(isinstance(header.get("config"), str), "config", header.get("config"), "a text")
    require(isinstance(facts, dict), "facts", facts, "an object")
    step = header.get("step")
    if kind == "training":
        require(type(step) is int and 0 <= step <= _MOST_STEPS, "step", step, "a whole number from 0")


def _explain_unreadable(path: Path) -> str:
    """Why a file that safetensors refuses was refused, told by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[2:3] != b"\x00"):
        return (
            f"{path} is not a safetensors file but a pickle (torch.save). Opening a pickle can run any code, so it "
            f"was not opened. The weights of a backbone: refinedet train RECIPE --weights {shlex.quote(str(path))}. A "
            f"model of the luuuyi port: {convert_command(path)}. One of another program: no command converts it; load "
            "it by torch.load(..., weights_only=True) into a network of refinedet.build, and write that by "
            "refinedet.weights.checkpoint.save_model"
        )
    if path.suffix == CAFFE_SUFFIX:
        return f"{path} is a model of Caffe; convert it first: {convert_command(path)}"
    size = path.stat().st_size
    if start[8:9] == b"{" or len(start) < 9:
        return f"{path} is truncated or damaged ({size} bytes); copy or download it again"
    return f"{path} is not a safetensors file; give a checkpoint written by refinedet"
