"""Networks that MNN computes on the CPU.

What a file says of itself is its "bizCode", the text that MNN's converter takes for a user and `get_info` of its module
gives: JSON with the description under `KEY`, and a digest of the file. MNN checks where the parts of a file lie, and
nothing in them: bytes changed on the way are computed with.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinedet.errors import CheckpointError, InputError
from refinedet.files import utf8_path
from refinedet.runtimes import require
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.description import KEY, Description
from refinedet.silence import capture_output

OLDEST = (3, 0)
"""MNN that gives a file's text."""

_HEADING = f'{{"sha256": "%s", "{KEY}": '
_SEALED = re.compile((_HEADING % "([0-9a-f]{64})").replace("{", r"\{", 1).encode())
_BLANK = "0" * 64  # in the place of the digest


class Network(RuntimeNetwork):
    """The network of an MNN file. It computes with as many threads as torch has when it is made."""

    def __init__(self, path: Path, description: Description, mnn: Any) -> None:
        super().__init__(description)
        self.runtime = f"MNN {mnn.version()}"
        self._expr, self._lock = mnn.expr, threading.Lock()
        settings = {"backend": "CPU", "precision": "high", "numThread": torch.get_num_threads()}
        with capture_output(), utf8_path(path) as name:
            manager = mnn.nn.create_runtime_manager((settings,))
            self._module = mnn.nn.load_module_from_file(name, [], list(description.outputs), runtime_manager=manager)

    def compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = pixels.detach().numpy()
        with self._lock:  # a runtime manager is not for several threads, as its manual says
            found = self._module.onForward([self._expr.const(images, list(images.shape), self._expr.NCHW)])
            # Copied while `found` lives: what `read` gives lies in its memory, and does not keep it.
            return tuple(torch.from_numpy(np.array(output.read())) for output in found)


def open_network(path: Path) -> Network:
    """The network of a ``.mnn`` file. CheckpointError where it is damaged or of another program, InputError without MNN
    or with one that is too old."""
    content = path.read_bytes()
    description = Description.from_json(_text(content, path), path)
    mnn = load_mnn(path)
    try:
        return Network(path, description, mnn)
    except (SystemError, RuntimeError) as error:
        raise CheckpointError(f"MNN {mnn.version()} does not read {path}: update MNN, or export it again") from error


def load_mnn(wanted_by: object) -> Any:
    """The package MNN, silently. InputError where it is absent or too old; ``wanted_by`` is named in it."""
    with capture_output():
        mnn: Any = require("MNN", "mnn", wanted_by)
    version = mnn.version()
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"{wanted_by} needs MNN {oldest} or newer, this is {version}: pip install --upgrade MNN")
    return mnn


def converter(wanted_by: object) -> Callable[[list[str]], bool]:
    """MNN's converter, which takes the arguments of its command line. Errors as `load_mnn`.

    It is the compiled module's, because importing the package ``MNN.tools`` around it (3.6.1) runs pip to install
    another package, for its reports to its makers.
    """
    load_mnn(wanted_by)
    with capture_output():
        tools: Any = require("_tools", "mnn", wanted_by)
    convert: Callable[[list[str]], bool] = tools.mnnconvert
    return convert


# --- What a file says of itself -----------------------------------------------------------------------------------


def heading(description: Description) -> str:
    """The text that goes into the file; `seal` fills in the digest."""
    return _HEADING % _BLANK + description.to_json() + "}"


def seal(content: bytes) -> bytes:
    """A file as the converter wrote it, with its digest in the place that `heading` left for it."""
    match = _SEALED.search(content)
    assert match is not None
    return content[: match.start(1)] + _digest(content, match) + content[match.end(1) :]


def _text(content: bytes, path: Path) -> str | None:
    """The description in a file; None where there is none. CheckpointError for one that is not as it was written."""
    match = _SEALED.search(content)
    if match is None:
        return None
    if _digest(content, match) != match[1]:
        raise CheckpointError(f"{path} is damaged: it is not as it was written; copy it anew, or export it again")
    end = content.find(b"\0", match.end())
    return content[match.end() : end - 1].decode(errors="replace")  # without the last brace of the heading


def _digest(content: bytes, match: re.Match[bytes]) -> bytes:
    """Of all but the digest itself."""
    whole = memoryview(content)
    digest = hashlib.sha256(whole[: match.start(1)])
    digest.update(whole[match.end(1) :])
    return digest.hexdigest().encode()
