"""What only the CUDA operators do; pytest runs this file in the environment that test_operators.py makes."""

import pytest
import torch
from support.detect_cases import in_levels
from torch import Tensor

from refinedet import ops
from refinedet.errors import InputError

SIZES = (200, 60, 0, 40)  # anchors of levels


def outputs(dtype: torch.dtype = torch.float32, anchors: int = 300, classes: int = 5) -> list[Tensor]:
    """arm_loc, arm_conf, odm_loc, odm_conf of two images."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, anchors, n, generator=generator).to(dtype) for n in (4, 2, 4, classes)]


def anchors(count: int = 300) -> Tensor:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.1


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def at_odd_address(tensor: Tensor) -> Tensor:
    """The same elements, contiguous, one element after an aligned address."""
    room = tensor.new_empty(tensor.numel() + 1)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    """Half types are read by the kernels, float64 is converted first."""
    heads = outputs(dtype)
    expected = ops.reference.detect(*(tensor.float() for tensor in heads), anchors())
    assert_equal(ops.detect(*heads, anchors().to(dtype).float()), ops.detect(*heads, anchors().to(dtype)))
    assert_equal(ops.detect(*heads, anchors())[2:], expected[2:])
    assert torch.equal(ops.refine(anchors(), heads[0]), ops.refine(anchors(), heads[0].float()))
    boxes, scores = anchors().to(dtype), torch.rand(300, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(ops.nms(boxes, scores, 0.5), ops.reference.nms(boxes, scores, 0.5))
    labels, ious = (torch.rand(2, 300) < 0.1).long(), torch.zeros(2, 300)
    assert torch.equal(ops.mine(heads[3], labels, ious), ops.reference.mine(heads[3], labels, ious))


@pytest.mark.parametrize("other", range(4))
def test_one_head_of_another_type(other: int) -> None:
    heads = outputs(torch.bfloat16)
    heads[other] = heads[other].float()
    assert_equal(ops.detect(*heads, anchors()), ops.detect(*(tensor.float() for tensor in heads), anchors()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_levels_of_any_type(dtype: torch.dtype) -> None:
    heads = outputs(dtype)
    *levels, places = in_levels((*heads, anchors()), SIZES)
    assert_equal(ops.detect(*levels, places), ops.detect(*heads, places))
    mixed = [list(output) for output in levels]
    mixed[1][2] = mixed[1][2].float()
    assert_equal(ops.detect(*mixed, places), ops.detect(*(tensor.float() for tensor in heads), places))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_need_not_be_aligned(dtype: torch.dtype) -> None:
    heads, places = outputs(dtype), anchors()
    odd = [at_odd_address(tensor) for tensor in heads]
    assert odd[0].data_ptr() % 16 != 0
    assert_equal(ops.detect(*odd, at_odd_address(places)), ops.detect(*heads, places))
    *levels, _ = in_levels((*heads, places), SIZES)
    odd_levels = [[at_odd_address(level) for level in output] for output in levels]
    assert_equal(ops.detect(*odd_levels, places), ops.detect(*heads, places))
    assert torch.equal(ops.refine(at_odd_address(places), odd[0]), ops.refine(places, heads[0]))
    scores = torch.rand(300)
    assert torch.equal(ops.nms(at_odd_address(places), at_odd_address(scores), 0.5), ops.nms(places, scores, 0.5))
    truth = (at_odd_address(places[:7]), torch.arange(1, 8), torch.tensor([0, 3, 7]))
    assert_equal(ops.match(at_odd_address(places), *truth), ops.match(places, places[:7], *truth[1:]))


def test_order_of_special_scores() -> None:
    """-0 and 0 are equal and keep their order, NaN is dropped, infinities are scores."""
    scores = torch.tensor([0.0, -0.0, float("nan"), 0.0, float("inf"), -0.0, -float("inf"), 1.0])
    boxes = torch.arange(8.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert ops.nms(boxes, scores, 0.5).tolist() == [4, 7, 0, 1, 3, 5, 6]


def test_result_of_nms_is_as_long_as_it_says() -> None:
    kept = ops.nms(torch.zeros(100, 4), torch.zeros(100), 0.5)
    assert kept.shape == (100,)
    kept = ops.nms(torch.tensor([[0.0, 0, 1, 1]]).repeat(100, 1), torch.zeros(100), 0.5)
    assert kept.tolist() == [0]
    assert kept.is_contiguous()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 2049}, "top_k is 2049, on CUDA at most 2048"),
        ({"keep_top_k": 1025}, "keep_top_k is 1025, on CUDA at most 1024"),
    ],
)
def test_detect_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=rf"^refinedet\.detect: {message}$"):
        ops.detect(*outputs(anchors=3000), anchors(3000), **options)


def test_detect_refuses_more_classes_than_fit() -> None:
    with pytest.raises(InputError, match=r"^refinedet\.detect: the number of classes is 4096, on CUDA at most 4095$"):
        ops.detect(*outputs(anchors=1, classes=4096), anchors(1))


def test_match_and_mine_refuse_large_batches() -> None:
    size = (65536, 1)
    with pytest.raises(InputError, match=r"^refinedet\.match: the batch size is 65536, on CUDA at most 65535$"):
        ops.match(anchors(1), anchors(1), torch.ones(1).long(), torch.arange(65537).clamp(max=1))
    with pytest.raises(InputError, match=r"^refinedet\.mine: the batch size is 65536, on CUDA at most 65535$"):
        ops.mine(torch.zeros(size), torch.zeros(size).long(), torch.zeros(size))


def test_match_does_not_read_offsets_on_the_host() -> None:
    """Offsets that do not fit are clamped by the kernels: to check them would mean to wait for the GPU."""
    found = ops.match(anchors(), anchors(5), torch.arange(1, 6), torch.tensor([0, 3, 99]))
    assert_equal(found, ops.match(anchors(), anchors(5), torch.arange(1, 6), torch.tensor([0, 3, 5])))
