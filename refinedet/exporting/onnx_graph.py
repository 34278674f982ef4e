"""ONNX: the network as PyTorch's exporter writes it, and behind it detection in the standard's own operators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from refinedet import __version__
from refinedet.exporting.job import Job
from refinedet.presets import Preset
from refinedet.protocols import Thresholds
from refinedet.runtimes import require
from refinedet.runtimes.description import KEY, Description
from refinedet.runtimes.onnx_runtime import INPUT

Model: TypeAlias = Any  # onnx.ModelProto: onnx has no types
Value: TypeAlias = str | float | Sequence[float] | np.ndarray  # the name of one, or a constant
Shape: TypeAlias = tuple[int | str, ...]

OPSET = 18
"""The oldest that PyTorch's exporter writes by itself: ONNX 1.13, ONNX Runtime 1.14."""
IR_VERSION = 8
"""Of the file's layout: the one that came with `OPSET`."""

_MOST = float(np.finfo(np.float32).max)
_END = np.iinfo(np.int64).max
_WHOLE = ("labels", "indices", "counts")  # int64
_ABSENT = -1.0  # the score of what is no detection


def write(job: Job, path: Path) -> None:
    """The network and, unless ``raw``, what makes detections of its outputs, with the description as metadata."""
    model, description = network_graph(job), job.description
    if not description.choices.raw:
        preset, rows = description.config.preset, description.choices.rows
        end = detection_graph(job.anchors, description.config.num_classes, preset, job.thresholds, rows)
        model = _join(model, end)
    _describe(model, description)
    _require("onnx").checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def network_graph(job: Job) -> Model:
    """The network alone, an onnx.ModelProto: input `INPUT`, float32 [B,3,H,W] as the network of ``job`` takes it;
    outputs float32 [B,N,*] by the names of the description. A batch of any size is a dimension named "batch".

    Constants are folded, and that is all: the optimiser that PyTorch's exporter would run (onnxscript 0.7.2) takes an
    added constant up to 1e-8 for none, and without its 1e-10 an `L2Norm` makes NaN of pictures of one colour.
    """
    for module in ("onnx", "onnxscript"):
        _require(module)
    optimizer, rewriter = _require("onnxscript.optimizer"), _require("onnxscript.rewriter")
    rules = _require("onnxscript.rewriter.rules.common")
    batch, (height, width) = job.description.choices.batch, job.description.config.size
    program = torch.onnx.export(
        job.network,
        (torch.zeros(batch or 2, 3, height, width, device=job.anchors.device),),
        input_names=[INPUT],
        output_names=job.description.outputs,
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None  # it is where no file is asked for
    optimizer.fold_constants(program.model)
    rewriter.rewrite(program.model, [rules.materialize_reshape_shape_rule])
    model = program.model_proto
    model.ir_version = IR_VERSION
    _forget_source(model.graph)
    return model


def _require(module: str) -> Any:
    return require(module, "onnx", "format onnx")


def _forget_source(graph: Any) -> None:
    """Remove what the exporter notes of each node: lines and paths of the source code it came from."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")


def _join(network: Model, end: Model) -> Model:
    """One graph: the outputs of ``network`` are inputs of ``end``, and stay outputs."""
    network.graph.node.extend(end.graph.node)
    network.graph.initializer.extend(end.graph.initializer)
    network.graph.output.extend(end.graph.output)
    return network


def _describe(model: Model, description: Description) -> None:
    """Metadata: the whole description under `KEY`, and for readers of other programs what they need of it."""
    text = description.to_json()
    told = json.loads(text)
    plain = {"classes": told["classes"], "size": told["size"]}
    properties = {KEY: text, **{key: json.dumps(value) for key, value in plain.items()}, "preprocessing": told["input"]}
    _require("onnx").helper.set_model_props(model, properties)
    model.producer_name, model.producer_version = "refinedet", __version__
    model.graph.name = "refinedet"
    model.doc_string = f"RefineDet, backbone {description.config.backbone}"


# --- Detection --------------------------------------------------------------------------------------------------------


def detection_graph(
    anchors: Tensor, num_classes: int, preset: Preset, thresholds: Thresholds, rows: str = "fixed"
) -> Model:
    """`refinedet.ops.detect` as a model of its own, an onnx.ModelProto of operators of the standard.

    Inputs: the network's outputs for ``anchors`` [N,4] (cx, cy, w, h), float32 [B,N,*]: ``arm_loc``, ``arm_conf``,
    ``odm_loc``, ``odm_conf``; the last two of a single-step preset. Outputs, K = ``thresholds.keep_top_k``:

        boxes [B,K,4] float32, scores [B,K] float32, labels [B,K] int64, indices [B,K] int64, counts [B] int64

    as `refinedet.ops.Detected` has them; with ``rows`` "variable" boxes [M,4], scores, labels and indices [M] of all
    images one after the other, ``counts[b]`` of image b.

    The rows are those of `ops.detect`, and so is their order, ties included: it hangs on `TopK` alone, whose ties the
    standard decides. What may differ is rounding: of exponentials, so of scores and boxes, and of an IoU, which
    runtimes divide for. Boxes with corners out of order, which only anchors of negative size have, are suppressed as if
    their corners were in order.

    ``thresholds`` has limits top_k and keep_top_k; its nms_iou may be None.
    """
    keep = thresholds.keep_top_k or 0
    graph = _Graph()
    boxes = _decode(graph, anchors, preset)
    scores = _scores(graph, boxes, preset)
    candidates = _suppress(graph, boxes, scores, len(anchors), num_classes - 1, thresholds)
    _select(graph, boxes, candidates, len(anchors), num_classes - 1, keep, rows)
    widths = {"arm_loc": 4, "arm_conf": 2, "odm_loc": 4, "odm_conf": num_classes}
    names = list(widths) if preset.tcb else ["odm_loc", "odm_conf"]
    first = ("batch", keep) if rows == "fixed" else ("rows",)
    return graph.build(
        {name: ("batch", len(anchors), widths[name]) for name in names},
        {"boxes": (*first, 4), "scores": first, "labels": first, "indices": first, "counts": ("batch",)},
    )


class _Graph:
    """A graph as it grows. ``graph("Add", x, 1.0)`` adds a node and returns the name of its output, or with
    ``outputs`` their names; what is no name among its inputs becomes a constant: whole numbers int64, others float32.
    """

    def __init__(self) -> None:
        self.onnx = _require("onnx")
        self.nodes: list[Any] = []
        self.constants: dict[tuple[Any, ...], Any] = {}

    def __call__(self, op: str, *inputs: Value, outputs: int | Sequence[str] = 1, **attributes: Any) -> Any:
        name = f"detect/{op}_{len(self.nodes)}"
        names = [f"{name}:{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        given = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(op, given, names, name=name, **attributes))
        return names[0] if len(names) == 1 else names

    def _constant(self, value: Value) -> str:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.constants:
            name = f"detect/constant_{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(array, name)
        return str(self.constants[key].name)

    def cast(self, value: str, dtype: str) -> str:
        """``value`` as `onnx.TensorProto`'s ``dtype``."""
        return str(self("Cast", value, to=getattr(self.onnx.TensorProto, dtype)))

    def all(self, value: str) -> str:
        """Whether a bool [...,n] is true throughout, [...]."""
        return self.cast(self("ReduceMin", self.cast(value, "INT32"), [-1], keepdims=0), "BOOL")

    def build(self, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> Model:
        helper, types = self.onnx.helper, self.onnx.TensorProto

        def describe(name: str, shape: Shape) -> Any:
            return helper.make_tensor_value_info(name, types.INT64 if name in _WHOLE else types.FLOAT, shape)

        ends = [[describe(*end) for end in shapes.items()] for shapes in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, "detect", *ends, initializer=list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="refinedet")


def _decode(graph: _Graph, anchors: Tensor, preset: Preset) -> str:
    """Corners [B,N,4]: the anchors moved by each stage, in the order of operations of csrc/box_math.h."""
    variances, places = np.asarray(preset.variances), anchors.cpu().numpy()
    center, side = places[:, :2], places[:, 2:]
    for offsets in ("arm_loc", "odm_loc") if preset.tcb and preset.cascade else ("odm_loc",):
        move, stretch = graph("Split", offsets, [2, 2], axis=-1, outputs=2)
        center = graph("Add", graph("Mul", graph("Mul", move, variances[:2]), side), center)
        side = graph("Mul", graph("Exp", graph("Mul", stretch, variances[2:])), side)
    half = graph("Mul", side, 0.5)
    return str(graph("Concat", graph("Sub", center, half), graph("Add", center, half), axis=-1))


def _scores(graph: _Graph, boxes: str, preset: Preset) -> str:
    """Probabilities [B,C-1,N] of the classes but the background; `_ABSENT` of anchors that are dropped: by the filter,
    for a box that is not finite, or for a score that is NaN, as any is of NaN, infinity or only negative infinities."""
    usable = graph.all(graph("LessOrEqual", graph("Abs", boxes), _MOST))  # false for NaN
    largest = graph("ReduceMax", "odm_conf", [-1], keepdims=1)
    numbers = graph("And", graph("LessOrEqual", "odm_conf", _MOST), graph("GreaterOrEqual", largest, -_MOST))
    usable = graph("And", usable, graph.all(numbers))
    if preset.tcb:
        background, foreground = graph("Split", "arm_conf", [1, 1], axis=-1, outputs=2)
        odds = graph("Exp", graph("Sub", background, foreground))
        objectness = graph("Squeeze", graph("Reciprocal", graph("Add", odds, 1.0)), [-1])
        usable = graph("And", usable, graph("GreaterOrEqual", objectness, preset.objectness_threshold))
    probabilities = graph("Slice", graph("Softmax", "odm_conf", axis=-1), [1], [_END], [-1])
    by_class = graph("Transpose", probabilities, perm=[0, 2, 1])
    return str(graph("Where", graph("Unsqueeze", usable, [1]), by_class, _ABSENT))


def _suppress(
    graph: _Graph, boxes: str, scores: str, num_anchors: int, foreground: int, thresholds: Thresholds
) -> tuple[str, str, str]:
    """Of each class of each image the best top_k candidates, suppressed: score, anchor and list of each that is left,
    [M]. List ``image * foreground + label - 1`` is of one class of one image.

    To `NonMaxSuppression` each list is an image of one class, and ranks are its scores: of equal ones the standard does
    not say which goes first, and it knows no top_k.
    """
    size = min(thresholds.top_k or num_anchors, num_anchors)
    best, anchors = graph("TopK", scores, [size], axis=-1, outputs=2)
    candidate = graph("Greater", best, thresholds.score_threshold)
    if thresholds.nms_iou is None:
        flat = graph("Squeeze", graph("NonZero", graph("Reshape", candidate, [-1])), [0])
    else:
        places = graph("GatherND", boxes, graph("Unsqueeze", anchors, [-1]), batch_dims=1)
        ranks = graph("Where", candidate, np.arange(size, 0, -1, dtype=np.float32), 0.0)
        lists = graph("Reshape", places, [-1, size, 4]), graph("Reshape", ranks, [-1, 1, size])
        kept = graph("NonMaxSuppression", *lists, [size], [thresholds.nms_iou], [0.0])
        flat = graph("ReduceSum", graph("Mul", kept, [size, 0, 1]), [-1], keepdims=0)
    score, anchor = (graph("Gather", graph("Reshape", values, [-1]), flat) for values in (best, anchors))
    return score, anchor, graph("Div", flat, size)


def _select(
    graph: _Graph,
    boxes: str,
    candidates: tuple[str, str, str],
    num_anchors: int,
    foreground: int,
    keep: int,
    rows: str,
) -> None:
    """The outputs: of each image the best ``keep`` of all classes.

    Each candidate's score is put where its anchor and class are, so that `TopK`, which takes the first of equal ones,
    orders them by anchor, then by class.
    """
    score, anchor, of_list = candidates
    slots = max(num_anchors * foreground, keep)
    image, label = graph("Div", of_list, foreground), graph("Mod", of_list, foreground)
    place = graph("Add", graph("Add", graph("Mul", anchor, foreground), label), graph("Mul", image, slots))
    absent = graph("Expand", _ABSENT, graph("Mul", graph("Shape", boxes, start=0, end=1), slots))
    scattered = graph("Reshape", graph("ScatterElements", absent, place, score), [-1, slots])
    scores, places = graph("TopK", scattered, [keep], axis=-1, outputs=2)
    found = graph("Greater", scores, _ABSENT)
    indices, labels = graph("Div", places, foreground), graph("Add", graph("Mod", places, foreground), 1)
    chosen = graph("Unsqueeze", graph("Where", found, indices, 0), [-1])
    columns = {
        "boxes": (graph("GatherND", boxes, chosen, batch_dims=1), graph("Unsqueeze", found, [-1]), 0.0, [-1, 4]),
        "scores": (scores, found, 0.0, [-1]),
        "labels": (labels, found, 0, [-1]),
        "indices": (indices, found, -1, [-1]),
    }
    for name, (values, there, padding, flat) in columns.items():
        if rows == "fixed":
            graph("Where", there, values, padding, outputs=[name])
        else:
            flags = graph("Reshape", found, [-1])
            graph("Compress", graph("Reshape", values, flat), flags, axis=0, outputs=[name])
    graph("ReduceSum", graph.cast(found, "INT64"), [-1], keepdims=0, outputs=["counts"])
