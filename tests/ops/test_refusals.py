"""Every bad input is refused by the operator and by its fake kernel, with the same words; every good one by neither.

The fake kernel runs on meta tensors and under torch.compile and torch.export. What it let through would be a tensor of
unwritten memory, or an exported program that cannot run.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from refinedet import ops
from refinedet.errors import InputError


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, 0.5, dtype=dtype)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)


LEVELS = (2, 3)  # anchors


def levels(width: int, batch: int = 2) -> list[Tensor]:
    return [floats(batch, anchors, width) for anchors in LEVELS]


GOOD: dict[str, dict[str, Any]] = {
    "refine": {"anchors": floats(6, 4), "offsets": floats(2, 6, 4)},
    "nms": {"boxes": floats(3, 4), "scores": floats(3), "iou_threshold": 0.5},
    "batched_nms": {"boxes": floats(3, 4), "scores": floats(3), "labels": ones(3), "iou_threshold": 0.5},
    "soft_nms": {"boxes": floats(2, 3, 4), "scores": floats(2, 3), "labels": ones(2, 3)},
    "vote": {"boxes": floats(2, 3, 4), "scores": floats(2, 3), "labels": ones(2, 3)},
    "mine": {"losses": floats(2, 6, 5), "labels": ones(2, 6), "ious": floats(2, 6), "objectness": floats(2, 6)},
    "match": {
        "anchors": floats(5, 4),
        "gt_boxes": floats(3, 4),
        "gt_labels": ones(3),
        "gt_offsets": torch.tensor([0, 1, 3]),
    },
    "detect": {
        "arm_loc": floats(2, 5, 4),
        "arm_conf": floats(2, 5, 2),
        "odm_loc": floats(2, 5, 4),
        "odm_conf": floats(2, 5, 21),
        "anchors": floats(5, 4),
    },
}
IN_LEVELS = {"arm_loc": levels(4), "arm_conf": levels(2), "odm_loc": levels(4), "odm_conf": levels(21)}


@dataclass
class Bad:
    """Arguments that replace good ones, and what is said of them."""

    op: str
    message: str
    change: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.message}"[:60]


def numbers(op: str, least: int | None, *names: str) -> list[Bad]:
    """Values out of range of options that are at least ``least``, or any number."""
    wanted = "a number" if least is None else f"at least {least}"
    values = [math.nan] if least is None else [-0.5, -math.inf, math.nan]
    return [Bad(op, f"{name} must be {wanted}, got {value:g}", {name: value}) for name in names for value in values]


def types(op: str, *names: str) -> list[Bad]:
    """Tensors of other types than the operator reads."""
    bad = []
    for name in names:
        tensor = GOOD[op][name]
        if tensor.dtype == torch.int64:
            others, wanted = (torch.int32, torch.float32, torch.bool), "int64: convert it with .long()"
        else:
            others = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
            wanted = "floating-point numbers: convert it with .float()"
        bad += [Bad(op, f"{name} must hold {wanted}", {name: tensor.to(other)}) for other in others]
    return bad


def variances(op: str) -> list[Bad]:
    first = (0.0, -0.1, math.nan, math.inf, 1e-50, 1e50)
    counts = [Bad(op, f"variances must be 4 numbers, got {n}", {"variances": (0.1,) * n}) for n in (0, 3, 5)]
    return counts + [
        Bad(op, f"variances must be numbers above 0, got {value:g}", {"variances": (0.1, value, 0.2, 0.2)})
        for value in first
    ]


def shape(op: str, name: str, given: tuple[int, ...], expected: str) -> Bad:
    dtype = GOOD[op][name].dtype
    text = f"{name} has shape {list(given)}, expected {expected}"
    return Bad(op, text, {name: floats(*given).to(dtype)})


def level(name: str, index: int, tensor: Tensor, message: str) -> Bad:
    changed = list(IN_LEVELS[name])
    changed[index] = tensor
    return Bad("detect", f"{name}[{index}] {message}", {**IN_LEVELS, name: changed})


REFINE = [
    shape("refine", "offsets", (6, 4), "[*, *, 4]"),
    shape("refine", "offsets", (2, 6, 5), "[*, *, 4]"),
    shape("refine", "offsets", (), "[*, *, 4]"),
    shape("refine", "anchors", (5, 4), "[6, 4]"),
    shape("refine", "anchors", (1, 6, 4), "[2, 6, 4]"),
    shape("refine", "anchors", (6,), "[2, 6, 4]"),
    *variances("refine"),
    *types("refine", "anchors", "offsets"),
]
NMS = [
    bad
    for op in ("nms", "batched_nms")
    for bad in (
        shape(op, "boxes", (3, 5), "[*, 4]"),
        shape(op, "boxes", (3,), "[*, 4]"),
        shape(op, "scores", (2,), "[3]"),
        shape(op, "scores", (3, 1), "[3]"),
        *numbers(op, 0, "iou_threshold"),
        *types(op, "boxes", "scores"),
    )
] + [shape("batched_nms", "labels", (2,), "[3]"), *types("batched_nms", "labels")]
SOFT_NMS = [
    shape("soft_nms", "boxes", (3, 4), "[*, *, 4]"),
    shape("soft_nms", "boxes", (2, 3, 5), "[*, *, 4]"),
    shape("soft_nms", "scores", (2, 2), "[2, 3]"),
    shape("soft_nms", "scores", (2, 3, 1), "[2, 3]"),
    shape("soft_nms", "labels", (3,), "[2, 3]"),
    *numbers("soft_nms", 0, "iou_threshold"),
    *numbers("soft_nms", None, "score_threshold"),
    *(
        Bad("soft_nms", f"sigma must be a number above 0, got {value:g}", {"sigma": value})
        for value in (0.0, -0.5, math.nan, -math.inf, 1e-50)
    ),
    *(
        Bad("soft_nms", f"method is {method!r}; choose linear or gaussian", {"method": method})
        for method in ("soft", "Linear", "", 2, None)
    ),
    *types("soft_nms", "boxes", "scores", "labels"),
]
VOTE = [
    shape("vote", "boxes", (3, 4), "[*, *, 4]"),
    shape("vote", "boxes", (2, 3, 5), "[*, *, 4]"),
    shape("vote", "scores", (2, 2), "[2, 3]"),
    shape("vote", "scores", (2, 3, 1), "[2, 3]"),
    shape("vote", "labels", (3,), "[2, 3]"),
    *numbers("vote", 0, "iou_threshold"),
    *numbers("vote", None, "score_threshold"),
    *types("vote", "boxes", "scores", "labels"),
]
MINE = [
    shape("mine", "labels", (6,), "[*, *]"),
    shape("mine", "losses", (2, 5), "[2, 6]"),
    shape("mine", "losses", (2, 5, 5), "[2, 6, *]"),
    shape("mine", "ious", (2, 7), "[2, 6]"),
    shape("mine", "objectness", (2, 6, 2), "[2, 6]"),
    Bad("mine", "losses are logits of 0 classes, expected at least 1", {"losses": floats(2, 6, 0)}),
    *numbers("mine", 0, "negative_iou", "negative_ratio"),
    *numbers("mine", None, "objectness_threshold"),
    *types("mine", "losses", "labels", "ious", "objectness"),
]
MATCH = [
    shape("match", "gt_offsets", (3, 1), "[*]"),
    Bad("match", "gt_offsets is empty, expected one entry more than images", {"gt_offsets": ones(0)}),
    shape("match", "anchors", (5, 3), "[*, 4]"),
    shape("match", "anchors", (3, 5, 4), "[2, *, 4]"),
    shape("match", "gt_boxes", (3, 5), "[*, 4]"),
    shape("match", "gt_labels", (2,), "[3]"),
    *numbers("match", 0, "iou_threshold"),
    *variances("match"),
    *types("match", "anchors", "gt_boxes", "gt_labels", "gt_offsets"),
]
DETECT = [
    shape("detect", "odm_loc", (5, 4), "[*, *, 4]"),
    shape("detect", "odm_conf", (1, 5, 21), "[2, 5, *]"),
    shape("detect", "arm_loc", (2, 4, 4), "[2, 5, 4]"),
    shape("detect", "arm_conf", (2, 5, 3), "[2, 5, 2]"),
    shape("detect", "anchors", (2, 5, 4), "[5, 4]"),
    shape("detect", "anchors", (4, 4), "[5, 4]"),
    Bad("detect", "odm_conf must have at least one class, the background", {"odm_conf": floats(2, 5, 0)}),
    level("odm_loc", 1, floats(3, 3, 4), "has shape [3, 3, 4], expected [2, *, 4]"),
    level("odm_conf", 1, floats(2, 3, 20), "has shape [2, 3, 20], expected [2, 3, 21]"),
    level("arm_loc", 1, floats(2, 3, 5), "has shape [2, 3, 5], expected [2, 3, 4]"),
    level("arm_conf", 0, floats(2, 3, 2), "has shape [2, 3, 2], expected [2, 2, 2]"),
    level("odm_conf", 1, floats(2, 3, 21).long(), "must hold floating-point numbers: convert it with .float()"),
    Bad("detect", "odm_loc has 0 levels, expected 1 to 4", {"odm_loc": []}),
    Bad("detect", "odm_loc has 5 levels, expected 1 to 4", {"odm_loc": [floats(2, 1, 4)] * 5}),
    Bad("detect", "the number of levels differs: odm_conf has 1, odm_loc 2", {"odm_loc": levels(4)}),
    Bad("detect", "the number of levels differs: odm_conf has 0, odm_loc 1", {"odm_conf": []}),
    Bad("detect", "the number of levels differs: arm_loc has 2, odm_loc 1", {"arm_loc": levels(4)}),
    *numbers("detect", None, "objectness_threshold", "score_threshold"),
    *numbers("detect", 0, "iou_threshold"),
    *(
        Bad("detect", f"{name} must be at least 1, got {value}", {name: value})
        for name in ("top_k", "keep_top_k")
        for value in (0, -3)
    ),
    *variances("detect"),
    *types("detect", "arm_loc", "arm_conf", "odm_loc", "odm_conf", "anchors"),
    Bad(  # on the CPU; without memory, for which there would have to be much
        "detect",
        f"the number of anchors is {2**32}, on the CPU at most {2**32 - 1}",
        {
            "arm_loc": None,
            "arm_conf": None,
            "odm_loc": floats(1, 1, 4).expand(1, 2**32, 4),
            "odm_conf": floats(1, 1, 1).expand(1, 2**32, 1),
            "anchors": floats(1, 4).expand(2**32, 4),
        },
    ),
]
NONE = [
    Bad(op, f"{name} is None, expected a tensor", {name: None})
    for op, name in [
        ("refine", "anchors"),
        ("refine", "offsets"),
        ("nms", "boxes"),
        ("nms", "scores"),
        ("soft_nms", "boxes"),
        ("soft_nms", "labels"),
        ("vote", "boxes"),
        ("vote", "labels"),
        ("mine", "labels"),
        ("match", "gt_offsets"),
        ("detect", "anchors"),
    ]
]
BAD = [*NONE, *REFINE, *NMS, *SOFT_NMS, *VOTE, *MINE, *MATCH, *DETECT]


def each(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """An argument with its tensors converted."""
    if isinstance(value, list):
        return [each(item, convert) for item in value]
    return convert(value) if isinstance(value, Tensor) else value


def on_meta(value: Any) -> Any:
    return each(value, lambda tensor: tensor.to("meta"))


def run(op: str, arguments: dict[str, Any]) -> Any:
    return getattr(ops, op)(**arguments)


def run_on_meta(op: str, arguments: dict[str, Any]) -> Any:
    return run(op, {name: on_meta(value) for name, value in arguments.items()})


def run_fake(op: str, arguments: dict[str, Any]) -> Any:
    with FakeTensorMode() as mode:
        return run(op, {name: each(value, mode.from_tensor) for name, value in arguments.items()})


PLACES = {"operator": run, "meta": run_on_meta, "fake": run_fake}


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_bad_input_is_refused_everywhere_alike(place: str, bad: Bad) -> None:
    with pytest.raises(InputError) as error:
        PLACES[place](bad.op, {**GOOD[bad.op], **bad.change})
    assert str(error.value) == f"refinedet.{bad.op.removeprefix('batched_')}: {bad.message}"


NEEDS_THE_RUN = ("nms", "batched_nms")
NO_SHAPE = {"meta": (RuntimeError, "data-dependent shape"), "fake": (DynamicOutputShapeException, "nms")}


@pytest.mark.parametrize("op", GOOD)
@pytest.mark.parametrize("place", PLACES)
def test_good_input_is_taken_everywhere(place: str, op: str) -> None:
    """How many boxes nms keeps, only the run knows: torch asks the tracer for a symbol, where there is one."""
    if op in NEEDS_THE_RUN and place != "operator":
        error, message = NO_SHAPE[place]
        with pytest.raises(error, match=message):
            PLACES[place](op, GOOD[op])
    else:
        PLACES[place](op, GOOD[op])


# --- Devices ----------------------------------------------------------------------------------------------------------

FIRST = {
    "refine": "offsets",
    "nms": "boxes",
    "batched_nms": "boxes",
    "soft_nms": "boxes",
    "vote": "boxes",
    "mine": "losses",
    "match": "anchors",
}
TENSORS = [(op, name) for op, given in GOOD.items() for name, value in given.items() if isinstance(value, Tensor)]
NAMES = {"cpu": "the CPU", "meta": "the meta device", "cuda": "GPU 0"}


def refusal_of_devices(op: str, name: str, other: str, rest: str) -> str:
    """Of an argument that is on another device than the rest."""
    first = FIRST.get(op, "odm_loc")
    if name != first:
        return f"{name} is on {NAMES[other]}, but {first} is on {NAMES[rest]}: move one of them with .to()"
    second = next(argument for argument in ("arm_loc", *GOOD[op]) if argument in GOOD[op] and argument != first)
    return f"{second} is on {NAMES[rest]}, but {first} is on {NAMES[other]}: move one of them with .to()"


@pytest.mark.parametrize(("op", "name"), TENSORS)
@pytest.mark.parametrize("other", ["cpu", "meta"])
def test_a_tensor_without_memory_among_others(op: str, name: str, other: str) -> None:
    rest = {"cpu": "meta", "meta": "cpu"}[other]
    arguments = {
        key: each(value, lambda tensor, device=other if key == name else rest: tensor.to(device))
        for key, value in GOOD[op].items()
    }
    with pytest.raises(InputError) as error:
        run(op, arguments)
    told = refusal_of_devices(op, name, other, rest)
    assert str(error.value) == f"refinedet.{op.removeprefix('batched_')}: {told}"


def on_fake_gpu(arguments: dict[str, Any], devices: dict[str, str] | None = None) -> dict[str, Any]:
    """On fake tensors of GPU 0, but for those in ``devices``. Only in a `FakeTensorMode`."""

    def place(name: str) -> Callable[[Tensor], Tensor]:
        device = (devices or {}).get(name, "cuda:0")
        return lambda tensor: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    return {name: each(value, place(name)) for name, value in arguments.items()}


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_tensor_beside_the_gpu(op: str, name: str) -> None:
    with FakeTensorMode(), pytest.raises(InputError) as error:
        run(op, on_fake_gpu(GOOD[op], {name: "cpu"}))
    told = refusal_of_devices(op, name, "cpu", "cuda")
    assert str(error.value) == f"refinedet.{op.removeprefix('batched_')}: {told}"


def test_levels_on_several_devices() -> None:
    mixed = {**GOOD["detect"], **IN_LEVELS, "arm_conf": [IN_LEVELS["arm_conf"][0], IN_LEVELS["arm_conf"][1].to("meta")]}
    with pytest.raises(InputError, match=r"arm_conf\[1\] is on the meta device, but odm_loc\[0\] is on the CPU"):
        run("detect", mixed)


# --- Limits of the kernels: those of the headers ----------------------------------------------------------------------

TOO_LARGE: list[tuple[str, str, dict[str, tuple[int, ...]], dict[str, Any]]] = [
    (
        "nms",
        "the number of boxes is 2147483648, on CUDA at most 2147483647",
        {"boxes": (2**31, 4), "scores": (2**31,)},
        {},
    ),
    *(
        (op, message, {"boxes": (*size, 4), "scores": size, "labels": size}, {})
        for op in ("soft_nms", "vote")
        for message, size in [
            ("the batch size is 65536, on CUDA at most 65535", (65536, 1)),
            ("the number of boxes is 2147483648, on CUDA at most 2147483647", (1, 2**31)),
        ]
    ),
    *(
        ("mine", message, {"losses": losses, **dict.fromkeys(("labels", "ious", "objectness"), losses[:2])}, {})
        for message, losses in [
            ("the batch size is 65536, on CUDA at most 65535", (65536, 1, 2)),
            ("the number of anchors is 2147483648, on CUDA at most 2147483647", (1, 2**31)),
            ("the number of classes is 4096, on CUDA at most 4095", (1, 1, 4096)),
        ]
    ),
    *(
        (
            "match",
            message,
            {"anchors": (anchors, 4), "gt_boxes": (boxes, 4), "gt_labels": (boxes,), "gt_offsets": (batch + 1,)},
            {},
        )
        for message, batch, anchors, boxes in [
            ("the batch size is 65536, on CUDA at most 65535", 65536, 1, 1),
            ("the number of anchors is 2147483648, on CUDA at most 2147483647", 1, 2**31, 1),
            ("the number of ground truths is 2147483648, on CUDA at most 2147483647", 1, 1, 2**31),
        ]
    ),
    *(
        (
            "detect",
            message,
            {
                "arm_loc": (*size[:2], 4),
                "arm_conf": (*size[:2], 2),
                "odm_loc": (*size[:2], 4),
                "odm_conf": size,
                "anchors": (size[1], 4),
            },
            options,
        )
        for message, size, options in [
            ("the batch size is 65536, on CUDA at most 65535", (65536, 1, 2), {}),
            ("the number of classes is 4096, on CUDA at most 4095", (1, 1, 4096), {}),
            ("the number of anchors is 2147483648, on CUDA at most 2147483647", (1, 2**31, 2), {}),
            ("top_k is 2049, on CUDA at most 2048", (1, 2049, 2), {"top_k": 2049}),
            ("keep_top_k is 1025, on CUDA at most 1024", (1, 1, 2), {"keep_top_k": 1025}),
        ]
    ),
]


@pytest.mark.parametrize(("op", "message", "shapes", "options"), TOO_LARGE)
def test_what_the_cuda_kernels_refuse_their_fakes_refuse(
    op: str, message: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    """The messages of the kernels stand in the `test_refused_sizes` of tests/ops/test_<op>.py."""
    given = {name: value for name, value in GOOD[op].items() if name not in shapes}
    with FakeTensorMode():
        tensors = {
            name: torch.empty(size, dtype=GOOD[op][name].dtype, device="cuda:0") for name, size in shapes.items()
        }
    with pytest.raises(InputError) as error:
        run(op, {**given, **tensors, **options})
    assert str(error.value) == f"refinedet.{op}: {message}"


def test_all_candidates_of_few_anchors_fit_whatever_top_k_is() -> None:
    with FakeTensorMode():
        run("detect", {**on_fake_gpu(GOOD["detect"]), "top_k": 10**6})


# --- torch.export and torch.compile -----------------------------------------------------------------------------------


class Calls(torch.nn.Module):
    """A network that ends in an operator. Takes its tensors in the order of ``arguments``."""

    def __init__(self, op: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.arguments = op, arguments

    def forward(self, *tensors: Any) -> Any:
        return run(self.op, {**self.arguments, **dict(zip(self.arguments, tensors, strict=False))})


def tensors_of(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Those and the lists of them; they come first."""
    return tuple(value for value in arguments.values() if isinstance(value, (Tensor, list)))


EXPORTED = [
    next(bad for bad in BAD if bad.op == op and kind in bad.message) for op in GOOD for kind in ("shape", "must")
]


@pytest.mark.parametrize("bad", EXPORTED, ids=str)
def test_an_export_that_could_not_run_is_refused(bad: Bad) -> None:
    arguments = {**GOOD[bad.op], **bad.change}
    with pytest.raises(Exception, match=re.escape(bad.message)):
        torch.export.export(Calls(bad.op, arguments), tensors_of(arguments))


# Which sizes of GOOD are free, by argument: those of one letter are the same.
FREE: dict[str, dict[str, str]] = {
    "refine": {"anchors": "n-", "offsets": "bn-"},
    "batched_nms": {"boxes": "n-", "scores": "n", "labels": "n"},
    "soft_nms": {"boxes": "bn-", "scores": "bn", "labels": "bn"},
    "vote": {"boxes": "bn-", "scores": "bn", "labels": "bn"},
    "mine": {"losses": "bnc", "labels": "bn", "ious": "bn", "objectness": "bn"},
    "match": {"anchors": "n-", "gt_boxes": "m-", "gt_labels": "m", "gt_offsets": "+"},
    "detect": {"arm_loc": "bn-", "arm_conf": "bn-", "odm_loc": "bn-", "odm_conf": "bnc", "anchors": "n-"},
}


def sizes_of(op: str) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("b", max=1000)
    sizes = {"b": batch, "+": batch + 1, **{name: torch.export.Dim(name, max=100_000) for name in "nmc"}}
    return tuple(
        {axis: sizes[letter] for axis, letter in enumerate(letters) if letter != "-"} for letters in FREE[op].values()
    )


def sized(op: str, *, b: int, n: int, m: int, c: int) -> tuple[Tensor, ...]:
    """Tensors whose free sizes are these."""
    sizes = {"b": b, "+": b + 1, "n": n, "m": m, "c": c}
    found = {}
    for name, letters in FREE[op].items():
        good = GOOD[op][name]
        found[name] = torch.ones([sizes.get(x, size) for x, size in zip(letters, good.shape, strict=True)]).to(good)
    if op == "match":
        found["gt_offsets"] = torch.tensor([0, 2, *[m] * (b - 1)])
    return tuple(found.values())


def leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def assert_same(found: Any, wanted: Any) -> None:
    for one, other in zip(leaves(found), leaves(wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("op", FREE)
def test_checks_fix_no_size_that_is_free(op: str) -> None:
    module = Calls(op, GOOD[op])
    program = torch.export.export(module, tensors_of(GOOD[op]), dynamic_shapes=(sizes_of(op),))
    other = sized(op, b=3, n=7, m=9, c=6)
    assert_same(program.module()(*other), module(*other))


@pytest.mark.parametrize("op", FREE)
def test_one_compilation_serves_all_sizes(op: str) -> None:
    module = Calls(op, GOOD[op])
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, error_on_recompile=True):
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        # Sizes that are equal at first would be taken for one.
        for tensors in (sized(op, b=6, n=8, m=9, c=5), sized(op, b=3, n=11, m=12, c=10)):
            assert_same(compiled(*tensors), module(*tensors))


def test_options_may_be_symbols() -> None:
    """torch.compile(dynamic=True) traces a threshold as one."""

    def suppress(boxes: Tensor, threshold: float) -> Tensor:
        return ops.refine(boxes, boxes[None], (threshold, 0.1, 0.2, 0.2))

    compiled = torch.compile(suppress, fullgraph=True, dynamic=True, backend="aot_eager")
    for threshold in (0.5, 0.25, 0.125):
        assert torch.equal(compiled(floats(3, 4), threshold), suppress(floats(3, 4), threshold))


def test_sizes_that_only_the_run_knows() -> None:
    """Of boxes that are chosen by their scores: nothing can be compared before."""

    def best(boxes: Tensor, scores: Tensor) -> Tensor:
        rows = (scores > 0.4).nonzero().squeeze(1)
        return ops.nms(boxes[rows], scores[rows], 0.5)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(floats(3, 4), floats(3)), best(floats(3, 4), floats(3)))
