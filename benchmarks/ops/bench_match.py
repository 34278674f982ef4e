"""``ops.match`` beside a matcher on torchvision's matrix of IoUs: time, and peak memory of a process of its own."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor

from refinedet import generate_anchors, ops
from refinedet.boxes import encode, to_corners


def problem(anchors: Tensor, images: int, objects: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same number of random objects in each of some images."""
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(images * objects, 2, generator=generator)
    half = torch.rand(images * objects, 2, generator=generator) * 0.15 + 0.02
    labels = torch.randint(1, 21, (images * objects,), generator=generator)
    return anchors, torch.cat([center - half, center + half], dim=1), labels, torch.arange(images + 1) * objects


def peer(
    anchors: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_offsets: Tensor, iou_threshold: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, targets, indices and best IoUs by vectorised PyTorch: a loop only where two objects want one anchor."""
    size = (len(gt_offsets) - 1, len(anchors))
    labels, indices = torch.zeros(size, dtype=torch.int64), torch.full(size, -1)
    targets, ious = torch.zeros(*size, 4), torch.zeros(size)
    corners = to_corners(anchors)
    for image, (first, last) in enumerate(pairwise(gt_offsets.tolist())):
        iou = torchvision.ops.box_iou(gt_boxes[first:last], corners)
        ious[image], best = iou.max(dim=0)
        best[ious[image] < iou_threshold] = -1
        truths, taken = bipartite(iou)
        best[taken] = truths
        indices[image] = best
        matched = (best >= 0).nonzero().squeeze(1)
        rows = best[matched] + first
        labels[image, matched] = gt_labels[rows]
        targets[image, matched] = encode(gt_boxes[rows], anchors[matched])
    return labels, targets, indices, ious


def bipartite(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy pairs of rows and columns of ``iou``, which it overwrites."""
    best, column = iou.max(dim=1)
    if len(column.unique()) == len(column):
        return torch.arange(len(column)), column
    rows, columns = [], []
    for _ in range(len(iou)):
        row = best.argmax()
        rows.append(row)
        columns.append(column[row].clone())
        iou[row] = -1
        iou[:, columns[-1]] = -1
        best[row] = -1
        stale = (column == columns[-1]) & (best > 0)
        if stale.any():
            best[stale], column[stale] = iou[stale].max(dim=1)
    return torch.stack(rows), torch.stack(columns)


def assert_same(arguments: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    found, (labels, targets, indices, _) = ops.match(*arguments), peer(*arguments)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.targets, targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "images", "objects"), [(320, 1, 8), (320, 32, 8), (512, 32, 8), (320, 4, 100)])
def test_match(size: int, images: int, objects: int, compare: Callable[..., None]) -> None:
    arguments = problem(generate_anchors((size, size)), images, objects)
    assert_same(arguments)
    compare(lambda: ops.match(*arguments), lambda: peer(*arguments), rounds=10)


def peak_growth(which: str, side: int, objects: int) -> float:
    """MiB by which the peak memory of a process is above what it holds before it matches."""
    command = [sys.executable, __file__, which, str(side), str(objects)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    side, objects = 1024, 200
    ours, others = peak_growth("ours", side, objects), peak_growth("peer", side, objects)
    with capsys.disabled():
        print(f"\npeak memory, {side} x {side} pixels, {objects} objects: ours {ours:.1f} MiB, peer {others:.1f} MiB")
    assert ours < others


def memory(name: str) -> float:
    """Memory of this process in MiB: "VmRSS" is what it holds, "VmHWM" the most it has held."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def main(which: str, side: int, objects: int) -> None:
    match = {"ours": ops.match, "peer": peer}[which]
    match(*problem(generate_anchors((64, 64)), 1, 2))
    arguments = problem(generate_anchors((side, side)), 1, objects)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide growth
    before = memory("VmRSS")
    match(*arguments)
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
