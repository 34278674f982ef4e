"""Programs of torch.export and packages of AOTInductor, both ``.pt2``."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from refinedet import __version__
from refinedet.errors import CheckpointError
from refinedet.ops import Detected, extension
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.description import KEY, Description

Run = Callable[[Tensor], tuple[Tensor, ...]]

_DETECTED = len(Detected._fields)


class ProgramNetwork(RuntimeNetwork):
    """A program, run by torch: its detections come first, then the outputs of the network."""

    def __init__(self, description: Description, run: Run) -> None:
        super().__init__(description)
        self._run = run
        self.runtime = f"torch {torch.__version__}"

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self._run(pixels)[0 if self.description.choices.raw else _DETECTED :]

    def detect(self, pixels: Tensor) -> Detected:
        return Detected(*self._run(pixels)[:_DETECTED])


def open_network(path: Path) -> ProgramNetwork:
    """The network of a ``.pt2`` file; `refinedet.runtimes.open_network` says what is raised."""
    description = Description.from_json(_description(path), path)
    extension.require()
    compiled = description.choices.format == "aoti"
    if compiled and description.refinedet != __version__:
        raise CheckpointError(
            f"{path} was compiled for the operators of refinedet {description.refinedet}, and these are of "
            f"{__version__}; export it again"
        )
    try:
        return ProgramNetwork(description, _load_compiled(path) if compiled else _load_program(path))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} cannot be loaded by torch {torch.__version__} ({reason}); export it again with this torch"
        ) from error


def _description(path: Path) -> str | None:
    """The text under `KEY`, read without torch: neither pickles nor machine code are touched before it is known."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(f"/extra/{KEY}"):
                    return archive.read(name).decode()
                if name.endswith("_metadata.json"):
                    metadata: dict[str, str] = json.loads(archive.read(name))
                    return metadata.get(KEY)
    except (zipfile.BadZipFile, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged, or no .pt2 file ({error}); export it again") from error
    return None


def _load_compiled(path: Path) -> Run:
    return torch._inductor.aoti_load_package(str(path))


def _load_program(path: Path) -> Run:
    with _pickles_hold_tensors_only():
        module = torch.export.load(path).module()
    return lambda pixels: module(pixels)  # a function: as a part of the network it would refuse to be set to eval mode


@contextmanager
def _pickles_hold_tensors_only() -> Iterator[None]:
    """Without this, torch.export.load (up to 2.15) unpickles without ``weights_only`` what it cannot load with it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
