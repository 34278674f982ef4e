"""What RefineDet asks of a backbone, and how backbone files are read."""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from refinedet.errors import CheckpointError
from refinedet.models.layers import NormLayer
from refinedet.preprocessing import Preprocessing

Features = tuple[Tensor, ...]
"""Four feature maps, at strides 8, 16, 32 and 64."""
StateDict = dict[str, Tensor]


class Backbone(nn.Module, ABC):
    """Image to four feature maps, of exactly H/8, H/16, H/32 and H/64 rows (columns alike).

    ``channels``: widths of the four maps. ``norm``: what follows the convolutions that RefineDet adds (None: nothing,
    they have biases). ``head_bottleneck``: whether the official variant has a bottleneck before each head.
    ``memory_format``: that of the whole network's weights; oneDNN's channels-last convolutions are the faster ones.
    """

    channels: tuple[int, int, int, int]
    preprocessing: Preprocessing = Preprocessing()
    norm: NormLayer | None = None
    head_bottleneck: bool = False
    memory_format: torch.memory_format = torch.channels_last

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Features of preprocessed images [B,3,H,W] (``preprocessing``); H and W are multiples of 64."""

    @abstractmethod
    def load_pretrained(self, path: str | Path, weights_input: str = "torchvision") -> None:
        """Load ImageNet weights for ``weights_input``, "torchvision" or "caffe" (`refinedet.models.pretrained`).

        Raises CheckpointError when the file does not fit and InputError for another ``weights_input``.
        """


def read_state_dict(path: str | Path) -> StateDict:
    """Read a state dict of tensors from a ``.safetensors`` file or a ``torch.save`` file, without unpickling objects.

    Raises CheckpointError for a file that is absent, damaged, unsafe or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; check the path")
    if path.suffix == ".safetensors":
        state = _read(path, _load_safetensors)
    else:
        state = _read(path, lambda p: torch.load(p, map_location="cpu", weights_only=True))
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a state dict (names to tensors); save the weights with model.state_dict()")
    return dict(state)


def _load_safetensors(path: Path) -> StateDict:
    from safetensors.torch import load_file

    return load_file(path)


def _read(path: Path, reader: Callable[[Path], object]) -> object:
    from safetensors import SafetensorError

    try:
        return reader(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than plain tensors, so it is not loaded (it could run code), or is damaged; "
            "use a file of plain weights"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, BadZipFile, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or no weights file ({error}); fetch it again") from error


def load_checked(
    module: nn.Module, state: StateDict, path: str | Path, *, new: Sequence[str] = (), ignored: Sequence[str] = ()
) -> None:
    """Load ``state``, read from ``path``, into ``module``: every parameter and no stranger, else CheckpointError.

    Names that start with one of ``new`` are the module's own and may be absent; those that start with one of
    ``ignored`` (a classifier the detector has no use for) may be there. So may counters of batch normalisation.
    """
    expected = module.state_dict()
    found = {name: value for name, value in state.items() if not name.startswith(tuple(ignored))}
    optional = tuple(new)
    problems = {
        "missing": [
            name for name in expected if name not in found and not name.startswith(optional) and not _counts(name)
        ],
        "unexpected": [name for name in found if name not in expected and not _counts(name)],
        "of wrong shape": [
            f"{name} {list(value.shape)} instead of {list(expected[name].shape)}"
            for name, value in found.items()
            if name in expected and value.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        listing = "; ".join(f"{kind}: {shorten(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{path}: not a weights file for {type(module).__name__} ({listing}); use its own")
    module.load_state_dict(found, strict=False)


def _counts(name: str) -> bool:
    """Whether ``name`` is a counter of batch normalisation, which files have or lack as they please."""
    return name.endswith((".num_batches_tracked", ".factor"))


def shorten(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def require(state: StateDict, names: Iterable[str], path: str | Path, kind: str) -> None:
    """Raise CheckpointError unless ``state``, read from ``path``, has all ``names`` of a file of that ``kind``."""
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(f"{path}: not {kind} (missing: {shorten(missing)}); use a file with its key names")
