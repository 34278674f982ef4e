"""What the Python faces of all operators have in common."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from refinedet import ops
from refinedet.errors import InputError
from refinedet.ops import extension

BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)
LABELS, OFFSETS = torch.ones(3, dtype=torch.int64), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (ops.nms, (BOXES.numpy(), SCORES, 0.5), "nms: boxes is of type ndarray; give Tensor"),
        (ops.nms, (BOXES, SCORES, "0.5"), "nms: iou_threshold is of type str; give float"),
        (ops.batched_nms, (BOXES, SCORES, [1, 1, 1], 0.5), r"nms: labels is of type list; give .*Tensor"),
        (ops.soft_nms, (BOXES[None].numpy(), SCORES[None], LABELS[None]), "soft_nms: boxes is of type ndarray"),
        (ops.vote, (BOXES[None], SCORES[None], [[1, 1, 1]]), "vote: labels is of type list"),
        (ops.refine, (BOXES, BOXES[None].numpy()), "refine: offsets is of type ndarray"),
        (ops.match, (BOXES, BOXES, LABELS, np.array([0, 3])), "match: gt_offsets is of type ndarray"),
        (ops.mine, (SCORES[None], LABELS[None], SCORES[None].numpy(), None), "mine: ious is of type ndarray"),
        (ops.detect, (None, None, BOXES[None], BOXES[None], BOXES.tolist()), "detect: anchors is of type list"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(function, arguments, message):
    with pytest.raises(InputError, match=rf"^refinedet\.{message}"):
        function(*arguments)


OUTPUTS = (torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), torch.zeros(1, 3, 5), BOXES)


@pytest.mark.parametrize(
    ("rows", "words"), [(2**40, f"tried to allocate {2**44} bytes"), (2**61, f"sizes=[1, {2**61}, 4]")]
)
def test_no_memory_for_the_results_is_the_error_that_torch_has_for_it(rows, words):
    """With the operator and its shapes, and nothing of the place in torch's headers where it came from."""
    shapes = r"\[1, 3, 4\], \[1, 3, 2\], \[1, 3, 4\], \[1, 3, 5\], \[3, 4\]"
    with pytest.raises(torch.OutOfMemoryError, match=rf"^refinedet\.detect of {shapes}: ") as error:
        ops.detect(*OUTPUTS, keep_top_k=rows)
    # Torch 2.10 hands no message over.
    assert (words if torch.__version__ >= "2.11" else "out of memory for the results") in str(error.value)
    assert "ops.h" not in str(error.value)


def test_no_memory_for_a_copy_of_an_input():
    huge = torch.zeros(1, 1, 1).expand(1, 2**46, 4)
    with pytest.raises(torch.OutOfMemoryError, match=rf"^refinedet\.refine of \[{2**46}, 4\], .*: ") as error:
        ops.refine(huge[0], huge)
    assert "ops.h" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ('torch_call_dispatcher( "aten::new_empty", "", stack.data(), TORCH_ABI_VERSION)', "the results"),
        ("aoti_torch_empty_strided(shape.size(), &result)", "the results"),
        ('torch_call_dispatcher( "aten::contiguous", "", stack.data(), TORCH_ABI_VERSION)', "a copy of an input"),
        ('torch_call_dispatcher( "aten::to", "dtype_layout", stack.data(), TORCH_ABI_VERSION)', "a copy of an input"),
    ],
)
def test_no_memory_that_torch_says_nothing_of(monkeypatch, function, what):
    """As torch 2.10 has it."""

    def fail(*_):
        raise RuntimeError(f"{function} API call failed at ops.h, line 579")

    monkeypatch.setattr(torch.ops.refinedet.refine, "default", fail)
    with pytest.raises(torch.OutOfMemoryError, match=rf"^refinedet\.refine of .*: out of memory for {what}"):
        ops.refine(BOXES, torch.zeros(1, 3, 4))


def test_no_memory_on_a_gpu(monkeypatch):
    """What the boundary of torch's C interface makes of the error of its allocator, here in levels."""

    def fail(*_):
        raise RuntimeError(
            "CUDA out of memory. Tried to allocate 342.76 GiB. GPU 0 has 79.10 GiB. (originally from "
            "torch_call_dispatcher() API call failed at /torch/csrc/stable/ops.h, line 961)\nException raised from"
        )

    monkeypatch.setattr(torch.ops.refinedet.detect, "default", fail)
    with pytest.raises(torch.OutOfMemoryError) as error:
        ops.detect(None, None, [OUTPUTS[2], OUTPUTS[2]], [OUTPUTS[3], OUTPUTS[3]], torch.zeros(6, 4))
    assert str(error.value) == (
        "refinedet.detect of [1, 3, 4], [1, 3, 4], [1, 3, 5], [1, 3, 5], [6, 4]: "
        "CUDA out of memory. Tried to allocate 342.76 GiB. GPU 0 has 79.10 GiB."
    )


def test_a_kernel_that_cannot_be_launched_is_told_with_operator_and_shapes(monkeypatch):
    def fail(*_):
        raise RuntimeError("refine_anchors_kernel: an illegal memory access was encountered\nException raised from")

    monkeypatch.setattr(torch.ops.refinedet.refine, "default", fail)
    monkeypatch.setattr(extension, "cuda_problem", lambda device: None)
    with FakeTensorMode():
        anchors, offsets = torch.empty(3, 4, device="cuda"), torch.empty(1, 3, 4, device="cuda")
    with pytest.raises(RuntimeError) as error:
        ops.refine(anchors, offsets)
    assert str(error.value) == (
        "refinedet.refine of [3, 4], [1, 3, 4]: refine_anchors_kernel: an illegal memory access was encountered"
    )


def test_a_tensor_that_is_not_dense():
    with pytest.raises(InputError, match=r"^refinedet\.refine takes dense tensors of the CPU or a GPU, got sparse_coo"):
        ops.refine(BOXES.to_sparse(), BOXES[None])
    with pytest.raises(InputError, match=r"^refinedet\.refine takes dense tensors of the CPU or a GPU, got None$"):
        ops.refine(None, None)


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_error_without_text(monkeypatch, text):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(torch.ops.refinedet.refine, "default", fail)
    with pytest.raises(RuntimeError) as error:
        ops.refine(BOXES, BOXES[None])
    assert str(error.value) == text


def test_an_error_without_text_on_a_gpu(monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(torch.ops.refinedet.refine, "default", fail)
    monkeypatch.setattr(extension, "cuda_problem", lambda device: None)
    with FakeTensorMode():
        anchors, offsets = torch.empty(3, 4, device="cuda"), torch.empty(1, 3, 4, device="cuda")
    with pytest.raises(
        RuntimeError, match=r"^refinedet\.refine of \[3, 4\], \[1, 3, 4\]: RuntimeError without a message$"
    ):
        ops.refine(anchors, offsets)


def test_a_number_beyond_64_bits():
    with pytest.raises(InputError, match=r"^refinedet\.detect: keep_top_k does not fit in 64 bits; give a smaller"):
        ops.detect(*OUTPUTS, keep_top_k=2**63)


def test_no_operator_is_differentiable():
    """The multi-task loss takes refined anchors, matches and mined negatives as constants (spec section 7)."""
    boxes = torch.rand(1, 3, 4, requires_grad=True)
    scores = torch.rand(1, 3, requires_grad=True)
    found = [
        ops.refine(boxes[0], boxes),
        *ops.match(boxes[0], boxes[0], LABELS, OFFSETS),
        ops.mine(scores, LABELS[None], scores, None),
        ops.nms(boxes[0], scores[0], 0.5),
        *ops.soft_nms(boxes, scores, LABELS[None]),
        *ops.vote(boxes, scores, LABELS[None]),
        *ops.detect(boxes, boxes[..., :2], boxes, boxes, boxes[0]),
    ]
    assert not any(tensor.requires_grad for tensor in found)
