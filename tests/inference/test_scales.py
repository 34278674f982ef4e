"""The parts of a testing protocol on cases worked by hand (spec section 10)."""

import cv2
import numpy as np
import pytest
import torch

from refinedet import ops
from refinedet.inference.scales import Rows, group_by_input, make_inputs, merge, to_images
from refinedet.ops import Detected
from refinedet.preprocessing import Preprocessing, normalize, prepare
from refinedet.protocols import Protocol, Scale

BOTH = Scale(64, flipped=True)


def detected(boxes, labels=None, scores=None) -> Detected:
    """[B,K,4] corners in units of the image side."""
    corners = torch.tensor(boxes, dtype=torch.float32)
    shape = corners.shape[:2]
    return Detected(
        corners,
        torch.tensor(scores) if scores else torch.full(shape, 0.5),
        torch.tensor(labels) if labels else torch.ones(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.int64),
        torch.full(shape[:1], shape[1]),
    )


def test_a_box_of_the_mirror_image_goes_to_w_minus_x_after_it_was_clipped():
    """Of an image of 10 x 20 pixels: one box in the image, one in its mirror image, each twice as wide to the left."""
    boxes = [[[-0.5, 0.0, 0.5, 0.5]], [[-0.5, 0.0, 0.5, 0.5]]]
    rows = to_images(detected(boxes), BOTH, [(10, 20)])
    # As it is [0, 10]; mirrored 20 - 10 and 20 - 0, one pixel beyond the last column, which is 19.
    assert rows.boxes.tolist() == [[[0.0, 0.0, 10.0, 5.0], [10.0, 0.0, 20.0, 5.0]]]
    whole = to_images(detected([[[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]]]), BOTH, [(10, 20)])
    assert whole.boxes.tolist() == [[[0.0, 0.0, 19.0, 9.0], [1.0, 0.0, 20.0, 9.0]]]


def test_the_mirror_image_alone():
    scale = Scale(64, original=False, flipped=True)
    rows = to_images(detected([[[0.1, 0.0, 0.3, 0.5]]]), scale, [(10, 20)])
    torch.testing.assert_close(rows.boxes, torch.tensor([[[14.0, 0.0, 18.0, 5.0]]]))


def test_looks_at_one_image_are_its_rows_in_the_order_of_the_looks():
    """Inputs come by look and then by image, rows by image and then by look; each image has its own size."""
    boxes = [[[k / 8, 0.0, (k + 1) / 8, 0.5]] for k in range(4)]
    scores = [[0.9], [0.8], [0.7], [0.6]]
    labels = [[1], [2], [3], [4]]
    rows = to_images(detected(boxes, labels, scores), BOTH, [(8, 8), (16, 80)])
    torch.testing.assert_close(rows.scores, torch.tensor([[0.9, 0.7], [0.8, 0.6]]))
    assert rows.labels.tolist() == [[1, 3], [2, 4]]
    assert rows.boxes.tolist() == [
        [[0.0, 0.0, 1.0, 4.0], [5.0, 0.0, 6.0, 4.0]],
        [[10.0, 0.0, 20.0, 8.0], [40.0, 0.0, 50.0, 8.0]],
    ]


@pytest.mark.parametrize(
    ("keep", "labels"),
    [
        ({}, [1, 1, 1, 0]),
        ({"min_side_below": 12}, [1, 1, 0, 0]),  # 11, 11 and 31 pixels
        ({"min_side_below": 11}, [0, 0, 0, 0]),
        ({"max_side_above": 21}, [0, 1, 1, 0]),  # 21, 41 and 41 pixels
        ({"max_side_above": 20}, [1, 1, 1, 0]),
        ({"min_side_below": 31, "max_side_above": 40}, [0, 1, 0, 0]),
    ],
)
def test_sides_count_the_last_pixel_and_the_ends_of_the_range_are_outside(keep, labels):
    """Boxes of 21 x 11, 11 x 41 and 41 x 31 pixels, and padding."""
    pixels = torch.tensor([[16, 16, 36, 26], [16, 16, 26, 56], [0, 0, 40, 30], [0, 0, 0, 0]])
    found = detected([(pixels / 128).tolist()], [[1, 1, 1, 0]])
    assert to_images(found, Scale(64, **keep), [(128, 128)]).labels.tolist() == [labels]


def test_inputs_are_prepared_as_the_evaluation_script_does_mirrored_before_they_are_resized():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (30, 50, 3), dtype=np.uint8) for _ in range(2)]
    rgb = Preprocessing(order="rgb", std=(2.0, 3.0, 4.0))
    inputs = make_inputs([normalize(picture, rgb) for picture in pictures], (64, 128), (False, True), rgb)
    expected = [prepare(picture, (64, 128), rgb) for picture in (*pictures, *(cv2.flip(p, 1) for p in pictures))]
    assert torch.equal(inputs, torch.stack(expected))


def test_images_are_grouped_by_the_size_of_their_input_with_their_mirror_images():
    sizes = [(10, 20), (20, 10), (10, 30), (10, 40), (10, 10)]
    turned = Scale((64, 128), turned=True)
    assert group_by_input(turned, sizes, (64, 128), 8) == [((64, 128), [0, 2, 3]), ((128, 64), [1, 4])]
    # As many pixels as 3 of 64 x 128: one image with its mirror image, and never less than that.
    both = Scale((64, 128), flipped=True)
    assert [numbers for _, numbers in group_by_input(both, sizes, (64, 128), 3)] == [[0], [1], [2], [3], [4]]
    assert [numbers for _, numbers in group_by_input(both, sizes, (64, 128), 4)] == [[0, 1], [2, 3], [4]]
    assert [numbers for _, numbers in group_by_input(both, sizes, (64, 64), 1)] == [[0], [1], [2], [3], [4]]
    assert group_by_input(Scale(64), sizes, (64, 128), 3) == [((64, 64), [0, 1, 2, 3, 4])]
    assert group_by_input(Scale(), sizes, (64, 128), 5) == [((64, 128), [0, 1, 2, 3, 4])]


SIZE = (60, 100)
SOME = Rows(
    torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [50.0, 0.0, 59.0, 9.0], [5.0, 5.0, 5.0, 5.0]]),
    torch.tensor([0.75, 0.5, 0.9, 0.99]),
    torch.tensor([1, 1, 1, 0]),
)
OTHER = Rows(torch.tensor([[90.0, 0.0, 100.0, 9.0]]), torch.tensor([0.95]), torch.tensor([2]))


def merged(merge_name: str, score_threshold=None, **options) -> list[tuple[list[float], float, int]]:
    protocol = Protocol("mine", merge=merge_name, **options)
    found = merge([[SOME, OTHER]], [SIZE], protocol, score_threshold)
    rows = zip(found.boxes[0].tolist(), found.scores[0].tolist(), found.labels[0].tolist(), strict=True)
    return [(box, pytest.approx(score, rel=1e-6), label) for box, score, label in list(rows)[: found.counts[0]]]


BEST = ([90.0, 0.0, 99.0, 9.0], 0.95, 2)  # its last column is 100 in the mirror image, 99 in the image
ALONE = ([50.0, 0.0, 59.0, 9.0], 0.9, 1)


def test_unmerged_rows_come_by_score_without_padding():
    assert merged("none") == [BEST, ALONE, ([0.0, 0.0, 9.0, 9.0], 0.75, 1), ([0.0, 0.0, 9.0, 8.0], 0.5, 1)]
    assert merged("none", 0.75) == [BEST, ALONE]


def test_soft_nms_counts_the_last_pixel():
    """The second box is 9 of the first one's 10 rows of pixels: IoU 0.9, so its score becomes 0.5 * 0.1."""
    decayed = ([0.0, 0.0, 9.0, 8.0], 0.05, 1)
    assert merged("soft_nms") == [BEST, ALONE, ([0.0, 0.0, 9.0, 9.0], 0.75, 1), decayed]
    assert merged("soft_nms", merge_iou=0.9)[3][1] == 0.5  # 0.9 is not above it
    assert merged("soft_nms", merge_score_threshold=0.06) == [BEST, ALONE, ([0.0, 0.0, 9.0, 9.0], 0.75, 1)]
    assert merged("soft_nms", 0.06) == merged("soft_nms", 0.6) == merged("soft_nms", merge_score_threshold=0.06)
    assert merged("soft_nms", merge_sigma=0.5)[3] == ([0.0, 0.0, 9.0, 8.0], 0.5 * np.exp(-0.81 / 0.5), 1)


def test_votes_are_means_of_what_overlaps():
    """(0.75 * 9 + 0.5 * 8) / 1.25 = 8.6"""
    first, second, mean = merged("vote")
    assert (first, second) == (BEST, ALONE)
    assert mean[1:] == (0.75, 1)
    assert mean[0] == pytest.approx([0.0, 0.0, 9.0, 8.6])
    soft = merged("soft_vote")
    assert len(soft) == 4
    assert soft[3] == ([0.0, 0.0, 9.0, 8.0], 0.05, 1)
    assert len(merged("soft_vote", merge_score_threshold=0.06)) == len(merged("vote")) == 3
    assert len(merged("vote", merge_iou=0.91)) == 4


def test_a_threshold_is_asked_of_votes_when_all_have_voted():
    assert merged("vote", 0.6)[2][0] == pytest.approx([0.0, 0.0, 9.0, 8.6])
    assert merged("vote", 0.75) == [BEST, ALONE]


@pytest.mark.parametrize("name", ["none", "soft_nms", "vote", "soft_vote"])
def test_images_of_different_numbers_of_rows_go_together(name):
    protocol = Protocol("mine", merge=name)
    looks = [[SOME, OTHER], [OTHER], [SOME]]
    together = merge(looks, [SIZE] * 3, protocol, None)
    for i, image in enumerate(looks):
        alone = merge([image], [SIZE], protocol, None)
        count = int(alone.counts[0])
        assert together.counts[i] == count > 0
        for column in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(together, column)[i, :count], getattr(alone, column)[0, :count])


@pytest.mark.parametrize("name", ["none", "soft_nms", "vote", "soft_vote"])
def test_nothing_merges_to_nothing(name):
    nothing = Rows(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert merge([[nothing]], [SIZE], Protocol("mine", merge=name), 0.1).counts.tolist() == [0]


def test_merging_is_that_of_the_operators_on_pixels():
    rows = [torch.cat([a, b])[None] for a, b in zip(SOME, OTHER, strict=True)]
    protocol = Protocol("mine", merge="soft_vote", merge_iou=0.3, merge_score_threshold=0.02)
    found = merge([[SOME, OTHER]], [(1000, 1000)], protocol, None)
    expected = ops.vote(*rows, iou_threshold=0.3, soft=True, score_threshold=0.02, official=True)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("shape", [(4, 1, 3), (1, 4, 3), (256, 3, 3)])
def test_normalising_is_the_arithmetic_of_float32(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for std in ((1.0, 1.0, 1.0), (57.375, 57.12, 58.395)):
        preprocessing = Preprocessing(mean=(103.939, 116.779, 123.68), std=std)
        expected = (image.astype(np.float32) - np.float32(preprocessing.mean)) / np.float32(std)
        assert np.array_equal(normalize(image, preprocessing), expected)
