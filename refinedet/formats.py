"""The formats that a model is exported to, and what each of them holds.

Nothing heavy is imported: the command line offers and checks them before it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refinedet.errors import InputError, show, suggestion

ROWS = ("fixed", "variable")
"""How ONNX gives detections: as many rows for each image, the last ones empty, or those there are of all images."""


@dataclass(frozen=True)
class Format:
    """What a format is called and holds.

    ``extra``: of the package, what exporting and running needs. ``dynamic``: takes any number of images at a time.
    ``detections``: holds what makes objects of the network's output, too.
    """

    name: str
    suffix: str
    extra: str | None
    dtypes: tuple[str, ...]
    dynamic: bool
    detections: bool
    runs_on: str


FORMATS = {
    each.name: each
    for each in (
        Format("torch", ".pt2", None, ("float32", "float16", "bfloat16"), True, True, "PyTorch, in Python"),
        Format("aoti", ".pt2", None, ("float32", "float16", "bfloat16"), True, True, "libtorch, without Python"),
        Format("onnx", ".onnx", "onnx", ("float32", "float16"), True, True, "ONNX Runtime and what else reads ONNX"),
        Format("openvino", ".xml", "openvino", ("float32", "float16", "int8"), True, True, "OpenVINO"),
        Format("mnn", ".mnn", "mnn", ("float32", "float16"), False, False, "MNN"),
    )
}
SUFFIXES = tuple(dict.fromkeys(each.suffix for each in FORMATS.values()))
"""By which `refinedet.load` knows an exported file."""


@dataclass(frozen=True)
class Choices:
    """How a model is exported. Raises InputError for what the format does not hold.

    ``size``: height and width of the input in pixels; None: the model's own. ``batch``: images at a time; None: any
    number. ``dtype``: in which the network computes or, in OpenVINO and MNN, its weights are stored. ``rows``: one of
    `ROWS`. ``raw``: the network alone, without what makes objects of its output; so it is where the format has no more.
    """

    format: str
    size: tuple[int, int] | None = None
    batch: int | None = 1
    dtype: str = "float32"
    rows: str = "fixed"
    raw: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            hint = suggestion(self.format, FORMATS) if isinstance(self.format, str) else ""
            raise InputError(f"format is {show(self.format)};{hint} choose one of {', '.join(FORMATS)}")
        form = FORMATS[self.format]
        if not form.detections:
            object.__setattr__(self, "raw", True)
        if self.dtype not in form.dtypes:
            raise InputError(f"dtype is {show(self.dtype)}; {self.format} holds {', '.join(form.dtypes)}")
        if self.batch is None and not form.dynamic:
            raise InputError(f"batch is dynamic, and {self.format} holds one number of images; give a number")
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise InputError(f"batch is {show(self.batch)}; give a whole number from 1, or None for any")
        if self.rows not in ROWS:
            raise InputError(f"rows is {show(self.rows)}; choose one of {', '.join(ROWS)}")
        if self.rows != "fixed" and (self.format != "onnx" or self.raw):
            raise InputError(f"rows is {self.rows!r}, which only onnx with its detections has; leave it out")


def of_suffixes(names: Sequence[str]) -> str:
    """These suffixes in words, for a message."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
