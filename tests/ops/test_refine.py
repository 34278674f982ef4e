"""refine. Tests with the argument ``refine`` run on every implementation; those of the kernels alone come last."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.harness import Harness
from simulated.torch_arrays import DTYPES, to_array
from support.detect_cases import random_anchors, random_tensor, threads
from support.implementations import IMPLEMENTATIONS
from support.paths import GOLDEN
from torch import Tensor

from refinedet import ops
from refinedet.boxes import decode, to_centers, to_corners
from refinedet.errors import InputError

RefineOp = Callable[..., Tensor]
VECTOR = GOLDEN / "prior" / "decode_test_vector.json"


def launch(
    harness: Harness,
    anchors: Tensor,
    offsets: Tensor,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    *,
    misaligned: bool = False,
    seed: int = 0,
) -> Tensor:
    """The kernel on the harness."""
    if offsets.dtype not in DTYPES:
        offsets = offsets.float()
    arrays = {"anchors": anchors.float().numpy(), "offsets": to_array(offsets.contiguous())}
    scalars = {
        "type": DTYPES.index(offsets.dtype),
        "batch": offsets.shape[0],
        "num_anchors": offsets.shape[1],
        "shared_anchors": anchors.dim() == 2,
        **{f"variance_{axis}": float(value) for axis, value in zip("xywh", variances, strict=True)},
    }
    outputs = {"refined": (np.float32, tuple(offsets.shape))}
    result = harness.run("refine", arrays, scalars, outputs, seed=seed, misaligned=tuple(arrays) if misaligned else ())
    assert result.launches <= 1
    return torch.from_numpy(result.outputs["refined"].copy())


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def refine(request: pytest.FixtureRequest) -> RefineOp:
    return request.param(request, ops.refine, launch)


@pytest.mark.small
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


# --- The operator in torch: threads, gradients, refusals, tracing -----------------------------------------------------


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


# --- The kernel on the harness: sizes, schedules, views that matter to it ---------------------------------------------

SEEDS = range(5)  # of schedules


def check_case(
    harness: Harness,
    batch: int,
    count: int,
    *,
    shared: bool = True,
    dtype: torch.dtype = torch.float32,
    trouble: float = 0.0,
    misaligned: bool = False,
    seed: int = 0,
) -> None:
    """Runs the kernel and the CPU operator on random numbers; the results must be the same bit for bit."""
    rng = np.random.default_rng(seed)
    anchors = random_anchors(rng, count) if shared else random_anchors(rng, batch * count).view(batch, count, 4)
    offsets = random_tensor(rng, (batch, count, 4), scale=3, steps=False, trouble=trouble).to(dtype)
    found = launch(harness, anchors, offsets, misaligned=misaligned, seed=seed)
    torch.testing.assert_close(found, ops.refine(anchors, offsets), rtol=0, atol=0, equal_nan=True)


def check(harness: Harness) -> None:
    """Quick cases in which every bounds check matters."""
    check_case(harness, 2, 300)
    check_case(harness, 2, 300, shared=False, dtype=torch.float16, trouble=0.1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("anchors", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025])
def test_number_of_anchors(harness: Harness, anchors: int, seed: int) -> None:
    dtype = (torch.float32, torch.float16, torch.bfloat16)[seed % 3]
    check_case(harness, 2, anchors, shared=seed % 2 == 0, dtype=dtype, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_views_need_not_be_aligned(harness: Harness, dtype: torch.dtype, shared: bool) -> None:
    check_case(harness, 2, 40, shared=shared, dtype=dtype, misaligned=True)


def test_every_half_number(harness: Harness) -> None:
    """Conversion is ours: all 65,536 float16 and bfloat16 numbers, as the offset of a unit anchor."""
    anchors = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2**14, 4)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 2**14, 4)
        moved = launch(harness, anchors, numbers, variances=(1.0, 1.0, 1.0, 1.0))
        torch.testing.assert_close(moved[..., :2], numbers[..., :2].float() + 0, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shared", [True, False])
def test_more_images_than_the_grid_has_rows(fast_harness: Harness, shared: bool) -> None:
    check_case(fast_harness, 1026, 3, shared=shared)


def test_no_race(racing_harness: Harness) -> None:
    check_case(racing_harness, 2, 200)
