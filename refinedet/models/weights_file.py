"""State dicts in files of other programs: out of what training scripts put around them, in float32, checked."""

import os
import pickle
import re
import shlex
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from refinedet.errors import CheckpointError
from refinedet.models.wrappers import unwrap_names

StateDict = dict[str, Tensor]

CAFFE_SUFFIX = ".caffemodel"

# Under which a training script saves the weights beside its optimiser; averages, which timm keeps too, come first.
_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("model", "backbone", "encoder", "network", "net")  # of all names, where the network was a part of another
_LEVELS = 3  # of dictionaries around the state dict, at most
_AVERAGED = "n_averaged"  # how many steps are in torch's AveragedModel
_SLACK = 1 << 20  # bytes: TorchScript packs its code
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_state_dict(path: str | os.PathLike[str], expected: Iterable[str] = ()) -> StateDict:
    """Read a state dict of tensors from a ``.safetensors`` file or a ``torch.save`` file, without unpickling objects.

    It may lie in a dictionary (``{"state_dict": ...}``), and its names may have what torch.compile, DataParallel or a
    module around the network put before them. Floating values come in float32. ``expected``: names of the network,
    which stay as they are. Raises CheckpointError for a file that is absent, damaged, unsafe or of another kind, and
    for values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; check the path")
    if path.suffix == CAFFE_SUFFIX:
        raise CheckpointError(
            f"{path} is a model of Caffe; convert it first: {convert_command(path)} (and as a backbone's weights give "
            "the file that this writes with --weights-input caffe)"
        )
    reader: Callable[[Path], object] = load_file if path.suffix == ".safetensors" else _load_pickle
    found = _find_tensors(_read(path, reader), _LEVELS)
    if not found:
        raise CheckpointError(f"{path}: not a state dict (names to tensors); save the weights with model.state_dict()")
    state = _without_prefix(unwrap_names(found, expected, path), expected)
    return {name: _usable(value, name, path) for name, value in state.items() if name != _AVERAGED}


def convert_command(path: Path) -> str:
    """The command that makes a file of this package out of another program's model."""
    return shlex.join(["refinedet", "convert", str(path), "--out", str(path.with_suffix(".safetensors"))])


def _load_pickle(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > 2 * path.stat().st_size + _SLACK:  # torch.save compresses nothing; torch.load unpacks anything
            raise CheckpointError(
                f"{path}: unpacks to {unpacked} bytes, far more than it has; use a file of torch.save"
            )
    return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path, reader: Callable[[Path], object]) -> object:
    try:
        return reader(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path}: holds more than plain tensors{what}, so it is not loaded (it could run code), or is damaged; "
            "use a file of plain weights (network.state_dict())"
        ) from error
    except Exception as error:  # damaged pickles end in errors of any kind
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: damaged or no weights file ({reason}); fetch it again") from error


def _find_tensors(content: object, levels: int) -> StateDict:
    """The state dict in ``content``: itself, the one under a known key, or the only one there is; else empty."""
    if not isinstance(content, Mapping) or levels < 0:
        return {}
    for key in _KEYS:
        if found := _find_tensors(content.get(key), levels - 1):
            return found
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content)
    parts = [value for key, value in content.items() if isinstance(key, str)]  # an optimiser counts its parameters
    inside = [found for part in parts if (found := _find_tensors(part, levels - 1))]
    return inside[0] if len(inside) == 1 else {}


def _without_prefix(state: StateDict, expected: Iterable[str]) -> StateDict:
    own = {name.partition(".")[0] for name in expected}
    for prefix in _PREFIXES:
        if prefix not in own and all(name.startswith(f"{prefix}.") for name in state if name != _AVERAGED):
            return _without_prefix({name.removeprefix(f"{prefix}."): t for name, t in state.items()}, expected)
    return state


def _usable(value: Tensor, name: str, path: Path) -> Tensor:
    """The tensor, in float32 if it is floating. Raises CheckpointError for one that cannot be a weight."""
    plain = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
    if not plain or (value.dtype not in _DTYPES and (value.is_floating_point() or value.is_complex())):
        kind = f"{value.dtype}, {value.layout} on {value.device}"
        raise CheckpointError(f"{path}: {name} is {kind}; use weights in float32, float16, bfloat16 or float64")
    value = value.detach()
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # float() would make room for all
        raise CheckpointError(
            f"{path}: {name} repeats the values it holds ({list(value.shape)}); save a contiguous copy"
        )
    if not value.is_floating_point():
        return value
    value = value.float()
    if not value.isfinite().all():
        raise CheckpointError(f"{path}: {name} holds values that are not finite in float32; use undamaged weights")
    return value
