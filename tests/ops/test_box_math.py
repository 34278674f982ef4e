"""csrc/box_math.h compiled as plain C++, against its PyTorch twin and against double precision."""

import ctypes
import os
import shlex
import subprocess

import numpy as np
import pytest
import torch
from support.paths import CSRC

from refinedet.ops.reference import portable

SOURCE = r"""
#include "box_math.h"
using namespace refinedet;
extern "C" {
void exps(const float* x, long n, float* y) { for (long i = 0; i < n; ++i) y[i] = portable_exp(x[i]); }
void moderate_exps(const float* x, long n, float* y) {
  for (long i = 0; i < n; ++i) y[i] = portable_exp_of_moderate(x[i]);
}
void objectness_all(const float* x, long n, float* y) {
  for (long i = 0; i < n; ++i) y[i] = objectness(x[2 * i], x[2 * i + 1]);
}
void keys(const float* x, long n, unsigned long long* y) {
  for (long i = 0; i < n; ++i) y[i] = descending_key(x[i], 7);
}
void key_scores(const unsigned long long* x, long n, float* y) { for (long i = 0; i < n; ++i) y[i] = key_score(x[i]); }
void ious(const float* b, long n, float threshold, float* y, unsigned char* over) {
  for (long i = 0; i < n; ++i, b += 8) {
    const Corners a{b[0], b[1], b[2], b[3]}, c{b[4], b[5], b[6], b[7]};
    y[i] = iou(intersection(a, c), area(a), area(c));
    over[i] = overlaps(intersection(a, c), area(a), area(c), threshold);
  }
}
void any_ious(const float* b, long n, float pixel, float* y) {
  const Corners first{b[0], b[1], b[2], b[3]};
  for (long i = 0; i < n; ++i, b += 4) {
    const Corners other{b[0], b[1], b[2], b[3]};
    y[i] = any_iou(intersection(first, other, pixel), area(first, pixel), area(other, pixel));
  }
}
}
"""


@pytest.fixture(scope="module", params=["-O0", "-O3"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("box_math")
    (folder / "box_math.cpp").write_text(SOURCE)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++20", request.param, "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    library = folder / "box_math.so"
    subprocess.run(
        [*compiler, *flags, f"-I{CSRC}", str(folder / "box_math.cpp"), "-o", str(library)], check=True, timeout=120
    )
    return ctypes.CDLL(str(library))


def run(function: ctypes._CFuncPtr, inputs: np.ndarray, count: int, dtype: type) -> np.ndarray:
    outputs = np.empty(count, dtype)
    function(inputs.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(count), outputs.ctypes.data_as(ctypes.c_void_p))
    return outputs


@pytest.fixture(scope="module")
def floats() -> np.ndarray:
    """A million floats: random bit patterns (NaN, inf, denormals among them) and the range where e^x is interesting."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 500_000, dtype=np.uint32).view(np.float32)
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 88.72283, 88.72284, -87.33655, -103.97, -104.1, 1e-45], np.float32
    )
    return np.concatenate([patterns, rng.uniform(-105, 90, 500_000).astype(np.float32), special])


def test_the_short_form_has_the_same_bits_where_it_holds(library: ctypes.CDLL) -> None:
    near = np.linspace(-86, 86, 2_000_001, dtype=np.float32)
    ties = ((np.arange(-124, 124) + 0.5) * np.log(2)).astype(np.float32)  # where 2^n changes
    for step in (-np.inf, np.inf):
        ties = np.concatenate([ties, np.nextafter(ties, np.float32(step))])
    x = np.concatenate([near, ties, np.array([-86, 86, 0, -0.0, 1e-45, -1e-45, 1e-38], np.float32)])
    short, whole = (run(f, x, len(x), np.float32) for f in (library.moderate_exps, library.exps))
    assert np.array_equal(short.view(np.uint32), whole.view(np.uint32))
    assert np.isfinite(whole).all()


def test_exp_equals_its_pytorch_twin_bit_for_bit(library: ctypes.CDLL, floats: np.ndarray) -> None:
    ours = run(library.exps, floats, len(floats), np.float32)
    twin = portable.exp(torch.from_numpy(floats)).numpy()
    number = ~np.isnan(floats)
    assert np.array_equal(ours[number].view(np.uint32), twin[number].view(np.uint32))
    assert np.isnan(ours[~number]).all()
    assert np.isnan(twin[~number]).all()


def test_exp_is_within_one_unit_in_the_last_place(library: ctypes.CDLL, floats: np.ndarray) -> None:
    x = floats[np.isfinite(floats) & (floats > -104) & (floats < 88.72)]
    exact = np.exp(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    error = np.abs(run(library.exps, x, len(x), np.float32) - exact) / unit
    assert error.max() < 1.0


def test_exp_at_the_edges(library: ctypes.CDLL) -> None:
    x = np.array([0, np.inf, -np.inf, 89, 1e30, -104.1, -1e30, 88.72283, -103.0], np.float32)
    y = run(library.exps, x, len(x), np.float32)
    assert y[:7].tolist() == [1, np.inf, 0, np.inf, np.inf, 0, 0]
    assert np.isfinite(y[7])
    assert 0 < y[8] < np.finfo(np.float32).tiny  # gradual underflow


def test_objectness_equals_its_twin(library: ctypes.CDLL) -> None:
    logits = np.random.default_rng(1).normal(0, 8, (100_000, 2)).astype(np.float32)
    ours = run(library.objectness_all, logits, len(logits), np.float32)
    assert np.array_equal(ours, portable.objectness(torch.from_numpy(logits)).numpy())
    difference = (logits[:, 0] - logits[:, 1]).astype(np.float64)
    np.testing.assert_allclose(ours, 1 / (1 + np.exp(difference)), rtol=3e-7)


def test_softmax_twin_is_a_softmax() -> None:
    logits = torch.randn(2000, 21, generator=torch.Generator().manual_seed(0)) * 5
    logits[0, :5] = -torch.inf
    shifted = (logits - logits.amax(dim=-1, keepdim=True)).double()  # rounded once, as in every float32 softmax
    torch.testing.assert_close(portable.softmax(logits).double(), shifted.softmax(dim=-1), rtol=1e-6, atol=0)
    logits[0, 3], logits[1, 2] = torch.nan, torch.inf
    assert portable.softmax(logits)[:2].isnan().all()


def test_keys_sort_by_score_descending_and_give_it_back(library: ctypes.CDLL, floats: np.ndarray) -> None:
    scores = floats[~np.isnan(floats)]
    keys = run(library.keys, scores, len(scores), np.uint64)
    order = np.argsort(keys, kind="stable")
    assert (np.diff(scores[order].astype(np.float64)) <= 0)[np.isfinite(scores[order][1:])].all()
    assert np.array_equal(keys[scores == 0], np.broadcast_to(keys[scores == 0][:1], (scores == 0).sum()))
    assert np.array_equal(run(library.key_scores, keys, len(keys), np.float32), scores)
    assert (keys.astype(np.uint64) & np.uint64(0xFFFFFFFF) == 7).all()


def test_iou_of_literal_boxes(library: ctypes.CDLL) -> None:
    pairs = np.array(
        [
            [0, 0, 2, 2, 1, 1, 3, 3],  # 1 of 7
            [0, 0, 2, 2, 0, 0, 2, 2],  # the same box
            [0, 0, 1, 1, 1, 0, 2, 1],  # only touching
            [2, 2, 0, 0, 0, 0, 2, 2],  # inverted: area 0
            [1, 1, 1, 1, 1, 1, 1, 1],  # two points
        ],
        np.float32,
    )
    ious, over = np.empty(5, np.float32), np.empty(5, np.uint8)
    library.ious(
        pairs.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_long(5),
        ctypes.c_float(0.0),
        ious.ctypes.data_as(ctypes.c_void_p),
        over.ctypes.data_as(ctypes.c_void_p),
    )
    assert ious.tolist() == [np.float32(1) / np.float32(7), 1, 0, 0, 0]
    assert over.tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("official", "expected"),
    [
        # the same, half, a quarter, inverted, touching, a point within, far away
        (False, [1, 0.5, 0.25, 0, 0, 0, 0]),
        # 5 x 5 pixels: the same, 15 of 25, 10 of 25, inverted by more than one, a shared column, one pixel, far away
        (True, [1, 15 / 25, 10 / 25, 0, 5 / 45, 1 / 25, 0]),
    ],
)
def test_iou_with_and_without_a_pixel_more(library: ctypes.CDLL, official: bool, expected: list[float]) -> None:
    boxes = np.array(
        [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 1], [3, 3, 0, 0], [4, 0, 8, 4], [1, 1, 1, 1], [9, 9, 12, 12]], np.float32
    )
    ious = np.empty(len(boxes), np.float32)
    library.any_ious(
        boxes.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_long(len(boxes)),
        ctypes.c_float(official),
        ious.ctypes.data_as(ctypes.c_void_p),
    )
    assert ious.tolist() == np.array(expected, np.float32).tolist()
    assert ious.tolist() == portable.iou(torch.from_numpy(boxes[0]), torch.from_numpy(boxes), official).tolist()
