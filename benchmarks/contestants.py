"""Who is measured beside each operator: its peers, how they are called, and what has to be equal before.

Unlike results fail a benchmark before anything is timed. Of golden cases and of crowds every row has to be found. In
the others so many boxes meet that some decision hangs on the rounding of an exponential or of an IoU, so that `ROUNDED`
of the rows may differ; the others are equal to the tolerances below.

Peers that go through images one by one are measured at batch 1: a batch takes them so many times as long. What is no
PyTorch gets float32 on the CPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import peers
import peers_loop
import torch
import torchvision
from matrix import CROWDS, GOLDEN, OPTIONS, Case
from torch import Tensor

from refinedet.boxes import decode

ROUNDED = 0.002  # share of rows
KEEP_TOP_K = 500  # of ops.detect and its peers
Call = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """``prepare(case, arguments)`` is the call; ``check(case, arguments, ours, theirs)`` compares two results."""

    name: str
    prepare: Callable[[Case, tuple[Any, ...]], Call]
    check: Callable[[Case, tuple[Any, ...], Any, Any], None]
    takes: Callable[[Case, tuple[Any, ...]], bool]
    modules: tuple[str, ...] = ()  # without which it is left out

    @property
    def installed(self) -> bool:
        return all(find_spec(module) is not None for module in self.modules)


def peers_of(case: Case, given: tuple[Any, ...]) -> Iterator[Peer]:
    """Those that take the case, installed or not."""
    name = OPTIONS.get(case.operator, (case.operator, {}))[0]
    yield from (peer for peer in PEERS[name] if peer.takes(case, given))


def bar(case: Case, peer: str) -> float | None:
    """How many times as fast the operator has to be; on a GPU nothing is demanded yet: none was measured."""
    if case.device != "cpu":
        return None
    return BARS.get((case.operator, case.scenario, peer), 1.0)


BARS = {
    ("detect", "typical_voc320", "PyTorch"): 8.0,
    ("detect", "clusters_voc320", "PyTorch"): 8.0,
    ("detect", "dense_voc320", "OpenVINO"): 30.0,
    ("soft_nms", "crowd-1000", "loop"): 50.0,
    ("soft_nms", "crowd-6375", "loop"): 25.0,
    ("soft_nms", "crowd-1000", "ensemble_boxes"): 10.0,
    ("soft_nms_gaussian", "crowd-1000", "loop"): 50.0,
    ("soft_nms_gaussian", "crowd-6375", "loop"): 25.0,
    ("soft_nms_gaussian", "crowd-1000", "ensemble_boxes"): 10.0,
    ("vote", "crowd-1000", "ensemble_boxes"): 10.0,
    ("vote_official", "crowd-1000", "loop"): 50.0,
    ("vote_official", "crowd-10000", "loop"): 25.0,
    ("vote_official_soft", "crowd-1000", "loop"): 50.0,
    ("vote_official_soft", "crowd-10000", "loop"): 25.0,
}


# --- Which cases a peer takes -----------------------------------------------------------------------------------------


def _always(case: Case, given: tuple[Any, ...]) -> bool:
    return True


def _float32_on_cpu(case: Case, given: tuple[Any, ...]) -> bool:
    return case.device == "cpu" and case.dtype == "float32"


def _image_by_image(case: Case, given: tuple[Any, ...]) -> bool:
    return _float32_on_cpu(case, given) and (case.batch == 1 or case.scenario in GOLDEN)


def _opencv_takes(case: Case, given: tuple[Any, ...]) -> bool:
    import peers_opencv

    apart = case.operator == "nms" or peers_opencv.keeps_classes_apart(given[0])
    return _image_by_image(case, given) and apart


def _ensemble_boxes_takes(case: Case, given: tuple[Any, ...]) -> bool:
    """Boxes within the unit square, each with an area: it changes others."""
    return _float32_on_cpu(case, given) and case.scenario == "crowd-1000" and not case.operator.startswith("vote_")


# --- How a peer is called ---------------------------------------------------------------------------------------------


def _pytorch(function: Callable[..., Any], case: Case, given: tuple[Any, ...]) -> Call:
    """Computes in float32, as the operators do, with the conversion in its time."""
    if case.dtype == "float32":
        return partial(function, *given)
    narrow = [isinstance(value, Tensor) and value.is_floating_point() for value in given]
    return lambda: function(
        *(value.float() if is_narrow else value for value, is_narrow in zip(given, narrow, strict=True))
    )


def _openvino(case: Case, given: tuple[Any, ...]) -> Call:
    from peers_openvino import openvino_detection_output

    return openvino_detection_output(given)


def _onnxruntime(case: Case, given: tuple[Any, ...]) -> Call:
    import peers_onnxruntime

    call: Call = getattr(peers_onnxruntime, case.operator)(*given)
    return call


def _opencv(case: Case, given: tuple[Any, ...]) -> Call:
    import peers_opencv

    call: Call = getattr(peers_opencv, case.operator)(*given)
    return call


def _arrays(given: tuple[Any, ...]) -> list[Any]:
    return [value[0].numpy() for value in given]


def _soft_nms_code(case: Case) -> int:
    return peers_loop.CODES["gaussian" if case.operator.endswith("gaussian") else "linear"]


def _soft_nms_loop(case: Case, given: tuple[Any, ...]) -> Call:
    return partial(peers_loop.soft_nms, *_arrays(given), _soft_nms_code(case))


def _soft_nms_ensemble_boxes(case: Case, given: tuple[Any, ...]) -> Call:
    from ensemble_boxes import soft_nms

    options = {"iou_thr": peers_loop.SOFT_IOU, "sigma": peers_loop.SIGMA, "thresh": peers_loop.SOFT_FLOOR}
    return partial(soft_nms, *([array] for array in _arrays(given)), method=_soft_nms_code(case), **options)


def _vote_loop(case: Case, given: tuple[Any, ...]) -> Call:
    options = OPTIONS.get(case.operator, ("", {}))[1]
    return partial(
        peers_loop.vote, *_arrays(given), soft=options.get("soft", False), official=options.get("official", False)
    )


def _vote_ensemble_boxes(case: Case, given: tuple[Any, ...]) -> Call:
    from ensemble_boxes import non_maximum_weighted

    return partial(non_maximum_weighted, *([array] for array in _arrays(given)), iou_thr=peers_loop.VOTE_IOU)


# --- What has to be equal ---------------------------------------------------------------------------------------------


def allowed(case: Case, rows: int) -> int:
    """How many of the rows may differ."""
    return 0 if case.scenario in GOLDEN or case.scenario in CROWDS else max(2, round(ROUNDED * rows))


def _same_detections(case: Case, given: tuple[Any, ...], ours: Any, theirs: Any) -> None:
    """``theirs``: per image boxes, scores, labels and more; or the rows image, label, score, box of OpenVINO."""
    if isinstance(theirs, np.ndarray):
        padding = np.flatnonzero(theirs[:, 0] < 0)
        rows = torch.from_numpy(theirs[: padding[0]] if len(padding) else theirs)
        theirs = [
            (rows[rows[:, 0] == i, 3:], rows[rows[:, 0] == i, 2], rows[rows[:, 0] == i, 1])
            for i in range(len(ours.counts))
        ]
    elif case.scenario in GOLDEN:
        peers.assert_detects_the_same(given)  # anchors and order, too
    differ = 0
    for image, (boxes, scores, labels, *_) in enumerate(theirs):
        count = int(ours.counts[image])
        found = torch.cat(
            [ours.labels[image, :count, None], ours.scores[image, :count, None], ours.boxes[image, :count]], 1
        )
        expected = torch.cat([labels[:, None], scores[:, None], boxes], dim=1)
        if count == KEEP_TOP_K:  # of equal scores at the cut a peer may keep any
            found, expected = (rows[rows[:, 1] > rows[:, 1].min() * (1 + 1e-5)] for rows in (found, expected))
        differ = max(differ, _without_equal(found, expected))
    assert differ <= allowed(case, KEEP_TOP_K), f"{differ} detections of an image differ"


def _without_equal(found: Tensor, expected: Tensor) -> int:
    """Rows (label, score, box) of either side that the other has not."""
    close = torch.ones(len(found), len(expected), dtype=torch.bool, device=found.device)
    for column, ours in enumerate(found.T):
        theirs = expected[:, column].to(ours.dtype)
        close &= torch.isclose(ours[:, None], theirs[None], rtol=1e-5, atol=1e-5 if column > 1 else 1e-7)
    return int((~close.any(dim=1)).sum() + (~close.any(dim=0)).sum())


def _same_matches(case: Case, given: tuple[Any, ...], ours: Any, theirs: Any) -> None:
    labels, targets, indices, _ = theirs
    differ = int((ours.indices != indices).sum())
    assert differ <= (0 if case.dtype == "float32" else allowed(case, indices.numel())), f"{differ} anchors differ"
    same = ours.indices == indices
    assert torch.equal(ours.labels[same], labels[same])
    torch.testing.assert_close(ours.targets[same], targets[same], rtol=1e-5, atol=1e-5)


def _same_negatives(case: Case, given: tuple[Any, ...], ours: Tensor, theirs: Tensor) -> None:
    """In the narrow types losses are equal, of which a sort takes any."""
    assert ours.any()
    if case.dtype == "float32":
        assert torch.equal(ours, theirs)
        return
    losses = given[0].float()
    if losses.dim() == 3:
        losses = -losses.log_softmax(dim=-1)[..., 0]
    assert torch.equal(ours.sum(dim=1), theirs.sum(dim=1))
    torch.testing.assert_close(losses[ours].sort().values, losses[theirs].sort().values, rtol=1e-5, atol=1e-6)


def _same_anchors(case: Case, given: tuple[Any, ...], ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def _same_kept(case: Case, given: tuple[Any, ...], ours: Tensor, theirs: Any) -> None:
    """The same boxes; the order of all, which is total here, nobody else promises for equal scores."""
    theirs = torch.as_tensor(theirs, dtype=torch.int64, device=ours.device)
    differ = len(set(ours.tolist()) ^ set(theirs.tolist()))
    assert differ <= allowed(case, len(ours)), f"{differ} of {len(ours)} boxes differ"


def _same_decayed(case: Case, given: tuple[Any, ...], ours: Any, theirs: Any) -> None:
    rows, scores = theirs
    left = int(ours.counts[0])
    found = dict(zip(ours.indices[0, :left].tolist(), ours.scores[0, :left].tolist(), strict=True))
    expected = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    assert len(found.keys() ^ expected.keys()) <= allowed(case, left)
    close = [np.isclose(found[row], expected[row], rtol=1e-4, atol=1e-6) for row in found.keys() & expected.keys()]
    assert len(close) - sum(close) <= allowed(case, left)
    if case.scenario in CROWDS:  # elsewhere so many scores are alike that rounding changes places
        assert (ours.indices[0, :left] == rows).float().mean() > 0.99


def _same_by_class(case: Case, given: tuple[Any, ...], ours: Any, theirs: Any) -> None:
    """Its boxes come class by class in the order of their decayed scores; the scores are those that went in."""
    boxes, _, labels = map(torch.from_numpy, theirs)
    assert ours.counts.tolist() == [len(boxes)]
    for label in labels.unique():
        assert torch.equal(ours.boxes[ours.labels == label], boxes[labels == label])


def _same_voted(case: Case, given: tuple[Any, ...], ours: Any, theirs: Any) -> None:
    peer, count = torch.from_numpy(theirs), int(ours.counts[0])
    assert abs(count - len(peer)) <= allowed(case, count)
    if count == len(peer):
        torch.testing.assert_close(ours.scores[0, :count], peer[:, 4], rtol=1e-4, atol=1e-6)
    size = float(given[0].max())
    found = torch.cat([ours.labels[0, :count, None], ours.scores[0, :count, None], ours.boxes[0, :count] / size], dim=1)
    expected = torch.cat([peer[:, 5:], peer[:, 4:5], peer[:, :4] / size], dim=1)
    assert _without_equal(found, expected) <= allowed(case, count)


def _same_tops(case: Case, given: tuple[Any, ...], ours: Any, theirs: Any) -> None:
    """Of `non_maximum_weighted`, the nearest thing to box voting there: the same tops with the same scores, but a box
    joins the top that it overlaps most, and weighs score * IoU. So tops and scores are compared, and the boxes of tops
    that stay alone. (`weighted_boxes_fusion` moves its clusters while it fills them: other tops.)"""
    boxes, _, labels = given
    peer_boxes, peer_scores, peer_labels = map(torch.from_numpy, theirs)
    count = len(peer_scores)
    assert ours.counts.tolist() == [count]
    assert torch.equal(ours.scores[0, :count], peer_scores)
    assert torch.equal(ours.labels[0, :count], peer_labels.long())
    meets = (torchvision.ops.box_iou(boxes[0], boxes[0]) > peers_loop.VOTE_IOU) & (labels[0, :, None] == labels[0])
    alone = (meets.sum(dim=1) == 1)[ours.indices[0, :count]]
    assert alone.sum() > 300
    torch.testing.assert_close(ours.boxes[0, :count][alone], peer_boxes[alone], rtol=1e-6, atol=0)


# --- The peers --------------------------------------------------------------------------------------------------------


def _torch(name: str, function: Callable[..., Any], check: Callable[..., None]) -> Peer:
    return Peer(name, partial(_pytorch, function), check, _always)


PEERS: dict[str, tuple[Peer, ...]] = {
    "detect": (
        _torch("PyTorch", peers.detect, _same_detections),
        Peer("loop", partial(_pytorch, peers_loop.detect), _same_detections, _image_by_image),
        Peer("OpenVINO", _openvino, _same_detections, _float32_on_cpu, ("openvino",)),
    ),
    "refine": (_torch("PyTorch", decode, _same_anchors),),
    "match": (_torch("PyTorch", peers.match, _same_matches),),
    "mine": (_torch("PyTorch", peers.mine, _same_negatives),),
    "nms": (
        _torch("PyTorch", torchvision.ops.nms, _same_kept),
        Peer("loop", partial(_pytorch, peers_loop.nms), _same_kept, _image_by_image),
        Peer("ONNX Runtime", _onnxruntime, _same_kept, _float32_on_cpu, ("onnx", "onnxruntime")),
        Peer("OpenCV", _opencv, _same_kept, _opencv_takes, ("cv2",)),
    ),
    "batched_nms": (
        _torch("PyTorch", torchvision.ops.batched_nms, _same_kept),
        Peer("loop", partial(_pytorch, peers_loop.batched_nms), _same_kept, _image_by_image),
        Peer("ONNX Runtime", _onnxruntime, _same_kept, _image_by_image, ("onnx", "onnxruntime")),
        Peer("OpenCV", _opencv, _same_kept, _opencv_takes, ("cv2",)),
    ),
    "soft_nms": (
        Peer("loop", _soft_nms_loop, _same_decayed, _image_by_image),
        Peer("ensemble_boxes", _soft_nms_ensemble_boxes, _same_by_class, _ensemble_boxes_takes, ("ensemble_boxes",)),
    ),
    "vote": (
        Peer("loop", _vote_loop, _same_voted, _image_by_image),
        Peer("ensemble_boxes", _vote_ensemble_boxes, _same_tops, _ensemble_boxes_takes, ("ensemble_boxes",)),
    ),
}
