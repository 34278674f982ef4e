"""The calls whose kernels are counted: `tools/count_kernels.py`, docs/kernels/counts.md.

The cost model takes what it says of a network from the cases that are named by it, "VOC 320, batch 32": the calls that
benchmarks measure. Of a large batch a part may do, for its images are alike: `images` says how many are counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from problems import arguments_of, crowd, network_outputs, random_boxes
from support.detect_cases import load_golden
from torch import Tensor

from refinedet.profiling import cost

VOC, VOC_512, COCO, COCO_512 = cost.NETWORKS
SINGLE, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
NAMES = {SINGLE: "", HALF: "float16, ", BFLOAT: "bfloat16, "}


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    operator: str
    name: str
    arguments: Callable[[], tuple[Tensor | None, ...]]
    images: int = 1  # that are counted
    quick: bool = False  # counted by `make test`; the others by `make test-cuda`
    by_line: bool = False  # by line of the source, too


def detect(net: cost.Network, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    *heads, anchors = arguments_of("detect", net, images)
    return *(head.to(dtype) for head in heads), anchors


def refine(net: cost.Network, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    anchors, offsets = arguments_of("refine", net, images)
    return anchors, offsets.to(dtype)


def match(net: cost.Network, images: int, _: torch.dtype) -> tuple[Tensor, ...]:
    return arguments_of("match", net, images)


def match_crowd(objects: int) -> tuple[Tensor, ...]:
    """Ground truths that want the same anchors: losers have to search."""
    boxes, _, labels = crowd(objects)
    return arguments_of("match", VOC, 1)[0], boxes, labels + 1, torch.tensor([0, objects])


def mine(net: cost.Network, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Logits, every anchor eligible, as in the first steps of training."""
    logits, *others = arguments_of("mine", net, images)
    return logits.to(dtype), *others


def mine_filtered(net: cost.Network, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The ODM's: anchors that the ARM takes for background are not eligible."""
    return *mine(net, images, dtype), network_outputs(net, images)[1].softmax(2)[..., 1]


def mine_losses(net: cost.Network, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    logits, *others = mine(net, images, SINGLE)
    return -logits.log_softmax(2)[..., 0].to(dtype), *others


def nms(boxes: tuple[Tensor, ...], dtype: torch.dtype = SINGLE) -> tuple[Tensor | float | None, ...]:
    corners, scores, *labels = boxes
    return corners.to(dtype), scores, labels[0] if labels else None, 0.45


def vote(boxes: tuple[Tensor, ...], dtype: torch.dtype = SINGLE) -> tuple[Tensor, ...]:
    """One image; without labels one class."""
    corners, scores, *labels = (tensor[None] for tensor in boxes)
    return corners.to(dtype), scores, labels[0] + 1 if labels else torch.ones(scores.shape, dtype=torch.int64)


def of_network(
    operator: Callable[..., tuple[Tensor, ...]],
    net: cost.Network,
    batch: int,
    dtype: torch.dtype = SINGLE,
    what: str = "",
    images: int | None = None,
    **more: bool,
) -> Case:
    count = images or batch
    name = f"{net.name}, {NAMES[dtype]}{what}batch {batch}"
    return Case(operator.__name__.partition("_")[0], name, partial(operator, net, count, dtype), count, **more)


def _cases() -> Iterator[Case]:
    for net in cost.NETWORKS:
        first = net is VOC
        for batch in (1, 32):
            few = 4 if batch == 32 and net in (COCO, COCO_512) else batch  # 7,000 million instructions otherwise
            quick = first and batch == 1
            yield of_network(detect, net, batch, quick=quick, by_line=quick)
            yield of_network(mine, net, batch, images=few, quick=quick, by_line=quick)
            yield of_network(mine_filtered, net, batch, what="filtered, ", quick=quick)
            if net in (VOC, VOC_512):  # the others have the same anchors
                yield of_network(match, net, batch, quick=quick, by_line=quick)
                yield of_network(refine, net, batch, quick=quick)
        yield of_network(detect, net, 1, HALF, quick=first)
        yield of_network(mine, net, 1, HALF, quick=first)
        if net in (VOC, VOC_512):
            yield of_network(refine, net, 1, HALF, quick=first)
    for operator in (detect, mine, refine):
        yield of_network(operator, VOC, 1, BFLOAT, quick=True)
    for dtype in (SINGLE, HALF, BFLOAT):
        yield of_network(mine_losses, VOC, 1, dtype, "losses, ", quick=True)
    yield of_network(mine_losses, VOC, 32, what="losses, ")
    for name in ("typical_voc320", "clusters_voc320", "dense_voc320", "typical_voc512", "coco81_320"):
        heads = partial(lambda golden: load_golden(golden)[0], name)
        clusters = name == "clusters_voc320"
        yield Case("detect", f"golden {name}", heads, len(heads()[0]), quick=clusters, by_line=clusters)
    for objects in (100, 1000):
        yield Case("match", f"VOC 320, a crowd of {objects:,}", partial(match_crowd, objects), quick=objects == 100)
    for count in (1000, 6375, 20000):
        quick = count == 1000
        yield Case("nms", f"{count:,} boxes of 20 classes", partial(nms, crowd(count)), quick=quick)
    for count in (1000, 2000):
        quick = count == 1000
        yield Case("nms", f"{count:,} random boxes", partial(nms, random_boxes(count)), quick=quick, by_line=quick)
    for dtype in (HALF, BFLOAT):
        yield Case(
            "nms", f"1,000 random boxes, {NAMES[dtype][:-2]}", partial(nms, random_boxes(1000), dtype), quick=True
        )
    yield Case("nms", "4,160 random boxes", partial(nms, random_boxes(4160)), quick=True)  # the least with a rest
    for count in (1000, 6375, 20000):
        quick = count == 1000
        yield Case("vote", f"{count:,} boxes of 20 classes", partial(vote, crowd(count)), quick=quick, by_line=quick)
    yield Case("vote", "2,000 random boxes", partial(vote, random_boxes(2000)))
    for dtype in (HALF, BFLOAT):
        yield Case(
            "vote", f"1,000 boxes of 20 classes, {NAMES[dtype][:-2]}", partial(vote, crowd(1000), dtype), quick=True
        )


CASES = tuple(_cases())
