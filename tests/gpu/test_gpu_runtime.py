"""The operators on a GPU among graphs, streams, devices, types and large sizes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.detect_cases import GOLDEN_NAMES, load_golden
from support.gpu import DEVICE, assert_same, captured, to
from support.gpu_cases import OPERATORS, anchors, heads, inputs, mining, suppression, truth
from torch import Tensor

from refinedet import generate_anchors, ops
from refinedet.errors import InputError

pytestmark = pytest.mark.gpu

SLEEP = 1 << 29  # clock cycles: some 0.3 seconds
REPEATS = 100
EVERY = pytest.mark.parametrize("name", OPERATORS)
CAPTURABLE = pytest.mark.parametrize("name", [name for name in OPERATORS if name != "nms"])


@EVERY
def test_does_not_wait_for_the_gpu(name: str) -> None:
    """A call returns while the GPU sleeps, but for nms, which has to know how many boxes it returns."""
    operator, arguments = OPERATORS[name], inputs(name)
    moved = to(DEVICE, arguments)
    operator(*moved)  # loads the kernels, and leaves the memory it needs in torch's cache
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    awake = torch.cuda.Event()
    awake.record()
    found = operator(*moved)
    assert awake.query() == (name == "nms")
    assert_same(found, operator(*arguments))


@CAPTURABLE
def test_graph(name: str) -> None:
    """Captured once; replayed with other numbers in the same memory."""
    operator, static = OPERATORS[name], to(DEVICE, inputs(name))
    graph, found = captured(lambda: operator(*static))
    for seed in range(1, 4):
        changed = inputs(name, seed)
        for target, source in zip(static, changed, strict=True):
            target.copy_(source)
        graph.replay()
        assert_same(found, operator(*changed))


@EVERY
def test_many_streams(name: str) -> None:
    """Each with inputs of its own, so that a result of another's would show."""
    operator, arguments = OPERATORS[name], [inputs(name, seed) for seed in range(8)]
    streams = [torch.cuda.Stream() for _ in arguments]
    moved = [to(DEVICE, each) for each in arguments]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream, each in zip(streams, moved, strict=True):
            with torch.cuda.stream(stream):
                found.append(operator(*each))
    torch.cuda.synchronize()
    expected = [operator(*each) for each in arguments]
    for i, result in enumerate(found):
        assert_same(result, expected[i % len(expected)])


@EVERY
def test_current_stream(name: str) -> None:
    """The kernels come after what is queued before them: inputs that are written late."""
    operator, arguments = OPERATORS[name], inputs(name)
    late = [torch.zeros_like(argument, device=DEVICE) for argument in arguments]
    ready = to(DEVICE, arguments)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        operator(*ready)  # as above: neither loading nor allocating waits for the GPU below
        torch.cuda._sleep(SLEEP)
        for target, source in zip(late, ready, strict=True):
            target.copy_(source)
        found = operator(*late)
    torch.cuda.synchronize()
    assert_same(found, operator(*arguments))


@EVERY
@pytest.mark.parametrize("gpu", range(torch.cuda.device_count()))
def test_another_thread(name: str, gpu: int) -> None:
    """In which no GPU is current yet, neither for torch nor for the runtime of the kernels."""
    operator, arguments = OPERATORS[name], inputs(name)
    moved = to(torch.device("cuda", gpu), arguments)
    torch.cuda.synchronize(gpu)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(operator, *moved).result()
    assert_same(found, operator(*arguments))


@EVERY
def test_memory_is_given_back(name: str) -> None:
    operator, moved = OPERATORS[name], to(DEVICE, inputs(name))
    operator(*moved)
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        operator(*moved)
    assert torch.cuda.memory_allocated() == before


@EVERY
@pytest.mark.parametrize("count", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097])
def test_sizes(name: str, count: int) -> None:
    operator, arguments = OPERATORS[name], inputs(name, count=count)
    assert_same(operator(*to(DEVICE, arguments)), operator(*arguments))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(name: str, dtype: torch.dtype) -> None:
    operator = OPERATORS[name]
    arguments = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs(name))
    assert_same(operator(*to(DEVICE, arguments)), operator(*arguments))


@pytest.mark.parametrize("other", range(4))
def test_one_head_of_another_type(other: int) -> None:
    mixed = [tensor.bfloat16() for tensor in heads()]
    mixed[other] = mixed[other].float()
    arguments = (*mixed, anchors())
    assert_same(ops.detect(*to(DEVICE, arguments)), ops.detect(*arguments))


def at_odd_address(tensor: Tensor) -> Tensor:
    """The same elements, contiguous, one element after an aligned address."""
    room = tensor.new_empty(tensor.numel() + 1)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_need_not_be_aligned(name: str, dtype: torch.dtype) -> None:
    operator = OPERATORS[name]
    arguments = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs(name))
    odd = [at_odd_address(tensor) for tensor in to(DEVICE, arguments)]
    assert odd[0].data_ptr() % 16 != 0
    assert_same(operator(*odd), operator(*arguments))


@EVERY
def test_every_run_gives_the_same_bits(name: str) -> None:
    """Whatever order the blocks of a kernel come in."""
    operator, moved = OPERATORS[name], to(DEVICE, inputs(name, count=6375))
    first = operator(*moved)
    for _ in range(REPEATS):
        assert_same(operator(*moved), first)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_run_of_a_golden_case_gives_the_same_bits(name: str) -> None:
    arguments, runs = load_golden(name)
    moved = to(DEVICE, arguments)
    for run in runs:
        expected = ops.detect(*arguments, **run.options)
        for _ in range(REPEATS):
            assert_same(ops.detect(*moved, **run.options), expected)


@pytest.mark.parametrize("count", [8, 100, 1000, 4000, 100_000])  # torch sorts few and many in different ways
def test_order_of_special_scores(count: int) -> None:
    """-0 and 0 are equal and keep their order; NaN is dropped."""
    scores = torch.zeros(count)
    scores[1::2] = -0.0
    scores[5] = float("nan")
    boxes = torch.arange(count)[:, None] * 10 + torch.tensor([0.0, 0.0, 1.0, 1.0])
    expected = [i for i in range(count) if i != 5]
    assert ops.nms(*to(DEVICE, (boxes, scores)), 0.5).tolist() == expected


def test_large_match() -> None:
    places = generate_anchors((2240, 2240))[:300_000]
    arguments = (places, *truth(boxes=1000))
    assert_same(ops.match(*to(DEVICE, arguments)), ops.match(*arguments))


@pytest.mark.parametrize(("count", "classes"), [(300_000, 81), (2000, 601)])
def test_large_detect(count: int, classes: int) -> None:
    arguments = (*heads(0, 1, count, classes), anchors(0, count))
    assert_same(ops.detect(*to(DEVICE, arguments)), ops.detect(*arguments))


def test_large_mine() -> None:
    arguments = mining(0, 1, 300_000)
    assert_same(ops.mine(*to(DEVICE, arguments)), ops.mine(*arguments))


@CAPTURABLE
def test_large_batch(name: str) -> None:
    operator, arguments = OPERATORS[name], inputs(name, images=256, count=600)
    assert_same(operator(*to(DEVICE, arguments)), operator(*arguments))


def test_many_boxes() -> None:
    arguments = suppression(count=50_000)
    assert_same(ops.batched_nms(*to(DEVICE, arguments), 0.5), ops.batched_nms(*arguments, 0.5))


def test_tensors_on_two_devices() -> None:
    offsets = heads()[0].to(DEVICE)
    with pytest.raises(
        InputError, match=r"^refinedet\.refine: anchors is on the CPU, but offsets is on GPU 0: move one"
    ):
        ops.refine(anchors(), offsets)
    with pytest.raises(InputError, match=r"^refinedet\.detect: odm_conf is on the CPU, but odm_loc is on GPU 0: move"):
        ops.detect(offsets, None, offsets, heads()[3], anchors().to(DEVICE))
    levels, scores = offsets.split(500, dim=1), heads()[3].split(500, dim=1)
    scores = (scores[0].to(DEVICE), scores[1])
    with pytest.raises(
        InputError, match=r"^refinedet\.detect: odm_conf\[1\] is on the CPU, but odm_loc\[0\] is on GPU 0"
    ):
        ops.detect(levels, None, levels, scores, anchors().to(DEVICE))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@EVERY
def test_second_gpu(name: str) -> None:
    """Which need not be the current one, and is not afterwards."""
    operator, arguments = OPERATORS[name], inputs(name)
    found = operator(*to("cuda:1", arguments))
    assert torch.cuda.current_device() == 0
    assert_same(found, operator(*arguments))


@pytest.mark.parametrize("name", ["detect", "detect by level"])
def test_compile(name: str) -> None:
    """With CUDA graphs, which torch records after a first call."""
    if torch.cuda.get_device_capability(DEVICE) < (7, 0):
        pytest.skip("torch compiles for compute capability 7.0 and later")
    operator = OPERATORS[name]
    compiled = torch.compile(operator, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        arguments = inputs(name, seed)
        assert_same(compiled(*to(DEVICE, arguments)), operator(*arguments))
