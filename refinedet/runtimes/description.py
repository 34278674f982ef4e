"""What an exported file says of itself: the model, its input and its output, as one JSON text under `KEY`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refinedet import __version__
from refinedet.errors import CheckpointError, show
from refinedet.formats import Choices
from refinedet.models.config import ModelConfig
from refinedet.parsing import parse_json, to_json

KEY = "refinedet"
"""Of the text among a file's metadata."""

FORMAT_VERSION = 1

_INPUT = "pixels, float32: B images of 3 planes, blue, green, red, 0..255, each image warped bilinearly to this size"


@dataclass(frozen=True)
class Description:
    """``config``: of the model, with the size and the thresholds of the file. ``choices``: how it was exported.
    ``device``: "cpu", or "cuda" for what was compiled for a GPU."""

    config: ModelConfig
    choices: Choices
    device: str = "cpu"
    refinedet: str = __version__

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs, in order: four, or the two of a single-step network."""
        names = ("arm_loc", "arm_conf", "odm_loc", "odm_conf")
        return names if self.config.preset.tcb else names[2:]

    def to_json(self) -> str:
        """The description as JSON text; ``size``, ``classes`` and ``input`` are for readers other than this package."""
        choices = self.choices
        height, width = self.config.size
        return to_json(
            {
                "format_version": FORMAT_VERSION,
                "refinedet": self.refinedet,
                "format": choices.format,
                "batch": choices.batch,
                "dtype": choices.dtype,
                "rows": choices.rows,
                "raw": choices.raw,
                "device": self.device,
                "size": [height, width],
                "classes": list(self.config.classes),
                "input": _INPUT,
                "config": self.config.to_json(),
            }
        )

    @classmethod
    def from_json(cls, text: str | None, path: object) -> Description:
        """Inverse of `to_json`; ``path`` is named in messages. CheckpointError for any other text, or None."""
        if not text:
            raise CheckpointError(
                f"{path} has no metadata of refinedet: it is of another program, or lost them; export it again with "
                "`refinedet export`"
            )
        try:
            values = parse_json(text)
            version = values["format_version"]
            if type(version) is not int:
                raise TypeError(f"format_version is {show(version)}, no whole number")
            found = cls(*_parse(values)) if version <= FORMAT_VERSION else None
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: its metadata are damaged ({show(error)}); export it again") from error
        if found is None:
            raise CheckpointError(
                f"{path} has format version {version}, this refinedet reads up to {FORMAT_VERSION}: update the package"
            )
        return found


def _parse(values: dict[str, Any]) -> tuple[ModelConfig, Choices, str, str]:
    height, width = values["size"]
    choices = Choices(
        values["format"], (height, width), values["batch"], values["dtype"], values["rows"], values["raw"]
    )
    return ModelConfig.from_json(values["config"]), choices, _text(values, "device"), _text(values, "refinedet")


def _text(values: dict[str, Any], key: str) -> str:
    value = values[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {show(value)}, no text")
    return value
