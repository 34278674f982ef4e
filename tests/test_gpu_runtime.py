"""The operators on a GPU among graphs, streams, devices and large sizes; their launchers without torch in between."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from detect_cases import load_golden
from gpu import DEVICE, require_gpu, to
from torch import Tensor

from refinedet import generate_anchors, ops
from refinedet.errors import InputError
from refinedet.ops import Detected

require_gpu()

VARIANCES = (0.1, 0.1, 0.2, 0.2)


def heads(batch: int = 2, anchors: int = 1000, classes: int = 21, seed: int = 0, dtype: torch.dtype = torch.float32):
    """arm_loc, arm_conf, odm_loc, odm_conf on the CPU; most anchors are background."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(batch, anchors, n, generator=generator) for n in (4, 2, 4, classes)]
    tensors[1][..., 0] += 4
    tensors[3] *= 3
    return [tensor.to(dtype) for tensor in tensors]


def anchors(count: int = 1000, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.rand(count, 2, generator=generator), torch.rand(count, 2, generator=generator) * 0.3], dim=1
    )


def truth(images: int = 2, boxes: int = 9, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """gt_boxes, gt_labels, gt_offsets."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(images * boxes, 2, generator=generator)
    half = torch.rand(images * boxes, 2, generator=generator) * 0.2
    labels = torch.randint(1, 21, (images * boxes,), generator=generator)
    return torch.cat([centers - half, centers + half], dim=1), labels, torch.arange(images + 1) * boxes


def mining(images: int = 2, count: int = 1000, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """losses (logits), labels, ious."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, count, generator=generator) < 0.02).long()
    return torch.randn(images, count, 21, generator=generator), labels, torch.rand(images, count, generator=generator)


CALLS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "detect": (ops.detect, (*heads(), anchors())),
    "match": (ops.match, (anchors(), *truth())),
    "mine": (ops.mine, mining()),
    "refine": (ops.refine, (anchors(), heads()[0])),
}
CAPTURABLE = pytest.mark.parametrize("name", CALLS)


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit, but for the targets of match, which take a logarithm."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    fields = getattr(found, "_fields", ("",) * 5)
    for field, (a, b) in zip(fields, pairs, strict=False):
        if field == "targets":
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a.cpu(), b.cpu()), field


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CAPTURABLE
def test_does_not_wait_for_the_gpu(name: str) -> None:
    operator, arguments = CALLS[name]
    moved = to(DEVICE, arguments)
    with no_synchronisation():
        found = operator(*moved)
    assert_same(found, operator(*arguments))


@CAPTURABLE
def test_graph(name: str) -> None:
    """Captured once; replayed with other numbers in the same memory."""
    operator, arguments = CALLS[name]
    static = to(DEVICE, arguments)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        operator(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operator(*static)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(arguments[0]), generator=generator)
        changed = (arguments[0][order], *arguments[1:])
        static[0].copy_(changed[0])
        graph.replay()
        assert_same(found, operator(*changed))


@CAPTURABLE
def test_many_streams(name: str) -> None:
    operator, arguments = CALLS[name]
    expected = operator(*arguments)
    streams = [torch.cuda.Stream() for _ in range(8)]
    found = []
    moved = to(DEVICE, arguments)
    torch.cuda.synchronize()
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(operator(*moved))
    torch.cuda.synchronize()
    for result in found:
        assert_same(result, expected)


@CAPTURABLE
def test_current_stream(name: str) -> None:
    """The kernels come after what is queued before them: inputs that are written late."""
    operator, arguments = CALLS[name]
    late = [torch.zeros_like(argument, device=DEVICE) for argument in arguments]
    ready = to(DEVICE, arguments)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for target, source in zip(late, ready, strict=True):
            target.copy_(source)
        found = operator(*late)
    torch.cuda.synchronize()
    assert_same(found, operator(*arguments))


@CAPTURABLE
def test_memory_is_given_back(name: str) -> None:
    operator, arguments = CALLS[name]
    moved = to(DEVICE, arguments)
    operator(*moved)
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        operator(*moved)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    inputs = (*heads(dtype=dtype), anchors())
    assert_same(ops.detect(*to(DEVICE, inputs)), ops.detect(*inputs))
    mixed = (heads()[0], *inputs[1:])
    assert_same(ops.detect(*to(DEVICE, mixed)), ops.detect(*mixed))
    assert_same(ops.refine(*to(DEVICE, (anchors(), inputs[0]))), ops.refine(anchors(), inputs[0]))
    logits, labels, ious = mining()
    inputs = (logits.to(dtype), labels, ious)
    assert_same(ops.mine(*to(DEVICE, inputs)), ops.mine(*inputs))
    boxes, scores = truth(1, 3000)[0].to(dtype), torch.rand(3000).to(dtype)
    assert_same(ops.nms(*to(DEVICE, (boxes, scores)), 0.5), ops.nms(boxes, scores, 0.5))


@pytest.mark.parametrize("name", ["typical_voc320", "clusters_voc320", "typical_voc512", "coco81_320", "dense_voc320"])
def test_golden_cases_equal_the_cpu(name: str) -> None:
    inputs, runs = load_golden(name)
    for run in runs:
        assert_same(ops.detect(*to(DEVICE, inputs), **run.options), ops.detect(*inputs, **run.options))


def test_order_of_special_scores() -> None:
    """-0 and 0 are equal and keep their order, in each of torch's sorts: for up to 128, up to 4096, and more."""
    for count in (8, 1000, 100_000):
        scores = torch.zeros(count)
        scores[1::2] = -0.0
        scores[5] = float("nan")
        boxes = torch.arange(count)[:, None] * 10 + torch.tensor([0.0, 0.0, 1.0, 1.0])
        expected = [i for i in range(count) if i != 5]
        assert ops.nms(*to(DEVICE, (boxes, scores)), 0.5).tolist() == expected


def test_large_match() -> None:
    places = generate_anchors((2240, 2240))[:300_000]
    arguments = (places, *truth(2, 1000))
    assert_same(ops.match(*to(DEVICE, arguments)), ops.match(*arguments))


def test_large_detect() -> None:
    inputs = (*heads(1, 300_000, 81), anchors(300_000))
    assert_same(ops.detect(*to(DEVICE, inputs)), ops.detect(*inputs))
    inputs = (*heads(1, 2000, 601), anchors(2000))
    assert_same(ops.detect(*to(DEVICE, inputs)), ops.detect(*inputs))


def test_large_batch() -> None:
    inputs = (*heads(256, 600, 5), anchors(600))
    assert_same(ops.detect(*to(DEVICE, inputs)), ops.detect(*inputs))
    arguments = (anchors(600), *truth(256, 3))
    assert_same(ops.match(*to(DEVICE, arguments)), ops.match(*arguments))
    assert_same(ops.mine(*to(DEVICE, mining(256, 600))), ops.mine(*mining(256, 600)))


def test_many_boxes() -> None:
    boxes, labels, _ = truth(1, 50_000)
    scores = torch.rand(50_000, generator=torch.Generator().manual_seed(4))
    arguments = (boxes, scores, labels)
    assert_same(ops.batched_nms(*to(DEVICE, arguments), 0.5), ops.batched_nms(*arguments, 0.5))


def test_tensors_on_two_devices() -> None:
    with pytest.raises(
        InputError, match=r"^refinedet\.refine: anchors is on the CPU, but offsets is on GPU 0: move one"
    ):
        ops.refine(anchors(), heads()[0].to(DEVICE))
    with pytest.raises(InputError, match=r"^refinedet\.detect: odm_conf is on the CPU, but odm_loc is on GPU 0: move"):
        ops.detect(*to(DEVICE, tuple(heads()[:3])), heads()[3], anchors().to(DEVICE))


@pytest.mark.parametrize("gpu", range(torch.cuda.device_count()))
@CAPTURABLE
def test_new_thread(name: str, gpu: int) -> None:
    """In which no GPU is current yet, neither for torch nor for the runtime of the kernels."""
    operator, arguments = CALLS[name]
    moved = to(torch.device("cuda", gpu), arguments)
    torch.cuda.synchronize(gpu)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(operator, *moved).result()
    assert_same(found, operator(*arguments))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@CAPTURABLE
def test_second_gpu(name: str) -> None:
    """Which need not be the current one, and is not afterwards."""
    operator, arguments = CALLS[name]
    found = operator(*to("cuda:1", arguments))
    assert torch.cuda.current_device() == 0
    assert_same(found, operator(*arguments))


def test_compile() -> None:
    compiled = torch.compile(ops.detect, fullgraph=True, mode="reduce-overhead")
    inputs = (*heads(), anchors())
    for _ in range(3):
        found = compiled(*to(DEVICE, inputs))
    assert_same(found, ops.detect(*inputs))


# --- Launchers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def launchers():
    return sys.modules["refinedet._C"].launchers


def address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def room(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, device=DEVICE)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def test_launch_refine(launchers) -> None:
    places, offsets = to(DEVICE, (anchors(), heads()[0]))
    refined = torch.empty_like(offsets)
    launchers.refine(
        type="float32",
        anchors=address(places),
        shared_anchors=True,
        offsets=address(offsets),
        batch=2,
        num_anchors=1000,
        variances=VARIANCES,
        refined=address(refined),
        stream=stream(),
    )
    assert_same(refined, ops.refine(places, offsets))


@pytest.mark.parametrize("parts", [(1000,), (600, 300, 75, 25)])
def test_launch_detect(launchers, parts: tuple[int, ...]) -> None:
    """Concatenated tensors, and the maps of four levels, which are the same rows in four pieces."""
    whole, places = to(DEVICE, tuple(heads())), anchors().to(DEVICE)
    pieces = [[piece.contiguous() for piece in tensor.split(parts, dim=1)] for tensor in whole]
    levels = [(*(address(piece[i]) for piece in pieces), count) for i, count in enumerate(parts)]
    sizes = {"batch": 2, "num_classes": 21, "top_k": 1000, "keep_top_k": 500}
    workspace = room(launchers.detect_workspace_bytes(**sizes, num_anchors=1000))
    found = Detected(*(torch.empty_like(tensor) for tensor in ops.detect(*whole, places)))
    launchers.detect(
        type="float32",
        levels=levels,
        anchors=address(places),
        objectness_threshold=0.01,
        score_threshold=0.01,
        iou_threshold=0.45,
        variances=VARIANCES,
        **{name: address(tensor) for name, tensor in found._asdict().items()},
        **sizes,
        workspace=address(workspace),
        stream=stream(),
    )
    assert_same(found, ops.detect(*whole, places))


def test_launch_nms(launchers) -> None:
    boxes, labels, _ = to(DEVICE, truth(1, 5000))
    scores = torch.rand(5000, device=DEVICE)
    order = scores.sort(descending=True, stable=True).indices
    kept, count = torch.empty_like(order), torch.empty(1, dtype=torch.int64, device=DEVICE)
    workspace = room(launchers.nms_workspace_bytes(num_boxes=5000))
    launchers.nms(
        type="float32",
        boxes=address(boxes),
        scores=address(scores),
        labels=address(labels),
        order=address(order),
        num_boxes=5000,
        iou_threshold=0.5,
        kept=address(kept),
        count=address(count),
        workspace=address(workspace),
        stream=stream(),
    )
    assert_same(kept[: count.item()], ops.batched_nms(boxes, scores, labels, 0.5))


def test_an_error_is_reported_once(launchers) -> None:
    """The launch after a failed call succeeds."""
    none = dict.fromkeys(("boxes", "scores", "labels", "order", "kept", "count", "workspace"), 0)
    with pytest.raises(RuntimeError, match=r"^memset: invalid argument$"):
        launchers.nms(type="float32", num_boxes=0, iou_threshold=0.5, stream=stream(), **none)
    test_launch_refine(launchers)


# --- The detector -----------------------------------------------------------------------------------------------------


def test_model_on_the_gpu() -> None:
    """The network's own arithmetic differs a little between devices: the same objects, not the same bits."""
    import refinedet

    model = refinedet.load("bccd")
    image = torch.rand(3, 320, 320, generator=torch.Generator().manual_seed(0))
    (expected,) = model.detect([image], score_threshold=0.3)
    (found,) = model.to(DEVICE).detect([image], score_threshold=0.3)
    assert torch.equal(found.labels.cpu(), expected.labels)
    torch.testing.assert_close(found.boxes.cpu(), expected.boxes, rtol=1e-2, atol=1)
