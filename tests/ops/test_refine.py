"""The CPU operator refine. Tests with the argument ``refine`` run on the CUDA kernels too: test_cuda_refine.py."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.detect_cases import random_anchors, random_tensor, threads
from support.paths import GOLDEN
from torch import Tensor

from refinedet import ops
from refinedet.boxes import decode, to_centers, to_corners
from refinedet.errors import InputError

RefineOp = Callable[..., Tensor]
VECTOR = GOLDEN / "prior" / "decode_test_vector.json"


@pytest.fixture(scope="module")
def refine() -> RefineOp:
    """What is tested."""
    return ops.refine


def test_literal(refine: RefineOp) -> None:
    anchors = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    offsets = torch.tensor([[[1.0, -1.0, 0.0, 0.0]]])
    torch.testing.assert_close(refine(anchors, offsets), torch.tensor([[[0.52, 0.46, 0.2, 0.4]]]))


def test_both_stages_of_the_published_vector(refine: RefineOp) -> None:
    vector = json.loads(VECTOR.read_text())
    anchor, arm, odm = (torch.tensor([vector[key]]) for key in ("prior", "arm_loc", "odm_loc"))
    refined = refine(to_centers(anchor), arm[None])
    final = refine(refined, odm[None])
    torch.testing.assert_close(to_corners(refined)[0], torch.tensor([vector["refined_anchor"]]), rtol=1e-6, atol=0)
    torch.testing.assert_close(to_corners(final)[0], torch.tensor([vector["final_box"]]), rtol=1e-6, atol=0)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 3),
    count=st.integers(0, 40),
    shared=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    trouble=st.sampled_from([0.0, 0.2]),
    transposed=st.booleans(),
)
def test_equals_reference(
    refine: RefineOp,
    seed: int,
    batch: int,
    count: int,
    shared: bool,
    dtype: torch.dtype,
    trouble: float,
    transposed: bool,
) -> None:
    rng = np.random.default_rng(seed)
    anchors = random_anchors(rng, count) if shared else random_anchors(rng, batch * count).view(batch, count, 4)
    offsets = random_tensor(rng, (batch, count, 4), scale=3, steps=False, trouble=trouble).to(dtype)
    if transposed:  # the same numbers, not contiguous
        offsets = offsets.transpose(0, 1).contiguous().transpose(0, 1)
    refined = refine(anchors, offsets)
    assert refined.dtype == torch.float32
    assert refined.is_contiguous()
    torch.testing.assert_close(refined, ops.reference.refine(anchors, offsets), rtol=0, atol=0, equal_nan=True)
    if trouble == 0:
        torch.testing.assert_close(refined, decode(anchors, offsets.float()), rtol=1e-6, atol=1e-6)


def test_many_anchors_do_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    anchors, offsets = random_anchors(rng, 6375), random_tensor(rng, (3, 6375, 4), scale=2, steps=False, trouble=0)
    with threads(2):
        on_two = ops.refine(anchors, offsets)
    with threads(1):
        assert torch.equal(on_two, ops.refine(anchors, offsets))
    assert torch.equal(on_two, ops.reference.refine(anchors, offsets))


def test_no_gradient_flows_through() -> None:
    offsets = torch.zeros(1, 2, 4, requires_grad=True)
    assert not ops.refine(torch.ones(2, 4), offsets).requires_grad


@pytest.mark.parametrize(
    ("anchors", "offsets", "variances", "message"),
    [
        (torch.zeros(5, 4), torch.zeros(2, 6, 4), (0.1,) * 4, r"anchors has shape \[5, 4\], expected \[6, 4\]"),
        (
            torch.zeros(1, 6, 4),
            torch.zeros(2, 6, 4),
            (0.1,) * 4,
            r"anchors has shape \[1, 6, 4\], expected \[2, 6, 4\]",
        ),
        (torch.zeros(6, 4), torch.zeros(6, 4), (0.1,) * 4, r"offsets has shape \[6, 4\], expected \[\*, \*, 4\]"),
        (torch.zeros(6, 4), torch.zeros(2, 6, 4), (0.1,) * 3, "variances must be 4 numbers, got 3"),
        (torch.zeros(6, 4).int(), torch.zeros(2, 6, 4), (0.1,) * 4, r"anchors must hold floating-point numbers"),
    ],
)
def test_bad_input(anchors: Tensor, offsets: Tensor, variances: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.refine(anchors, offsets, variances)


def test_opcheck() -> None:
    for anchors in (torch.rand(6, 4), torch.rand(2, 6, 4)):
        torch.library.opcheck(torch.ops.refinedet.refine.default, (anchors, torch.rand(2, 6, 4), [0.1, 0.1, 0.2, 0.2]))


def test_compile_and_export() -> None:
    class Refine(torch.nn.Module):
        def forward(self, anchors: Tensor, offsets: Tensor) -> Tensor:
            return to_corners(ops.refine(anchors, offsets))

    inputs = (torch.rand(6, 4), torch.rand(2, 6, 4))
    expected = Refine()(*inputs)
    assert torch.equal(torch.compile(Refine(), fullgraph=True, backend="aot_eager")(*inputs), expected)
    assert torch.equal(torch.export.export(Refine(), inputs).module()(*inputs), expected)
