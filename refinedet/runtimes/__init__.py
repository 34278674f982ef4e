"""Exported files, run as a model of this package is."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from refinedet.errors import CheckpointError, InputError
from refinedet.formats import SUFFIXES
from refinedet.runtimes.base import RuntimeNetwork

_MODULES = {".pt2": "torch_program", ".onnx": "onnx_runtime", ".xml": "openvino", ".mnn": "mnn"}


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of an exported file."""
    return Path(path).suffix.lower() in SUFFIXES


def open_network(path: str | os.PathLike[str]) -> RuntimeNetwork:
    """The network of an exported file, ready to run.

    A compiled package (``.pt2`` of ``--format aoti``) holds machine code, which runs when it is opened: open only what
    comes from someone you trust.

    Raises:
        CheckpointError: the file is absent, damaged, of another package or a newer version.
        InputError: the runtime is not installed or too old.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; give a file" if path.is_dir() else "does not exist; check the path"
        raise CheckpointError(f"exported file {path} {what}")
    module = import_module(f"refinedet.runtimes.{_MODULES[path.suffix.lower()]}")
    network: RuntimeNetwork = module.open_network(path)
    return network


def require(module: str, extra: str, path: object) -> object:
    """The module of an optional package; InputError where it is absent or cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{path} needs the package {module} ({error}): pip install 'refinedet[{extra}]'") from error
