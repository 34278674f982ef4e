"""VOC average precision: published values, cases counted by hand, and a plain implementation with exact fractions."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import GOLDEN

from refinedet.errors import InputError
from refinedet.evaluation.voc_ap import GroundTruth, ScoredBoxes, best_f1, mean_ap, pixel_iou, voc_ap

PADILLA = GOLDEN / "eval" / "padilla_voc"
LEFT, RIGHT, FAR = (0, 0, 9, 9), (20, 0, 29, 9), (70, 70, 79, 79)


def one_class(truth, found, *, difficult=None, num_classes=2, **options):
    """voc_ap of class 1: truth rows (image, box), found rows (image, box, score)."""
    flags = [False] * len(truth) if difficult is None else difficult
    ground_truth = GroundTruth([image for image, _ in truth], [1] * len(truth), [box for _, box in truth], flags)
    detections = ScoredBoxes(
        [row[0] for row in found], [1] * len(found), [row[1] for row in found], [row[2] for row in found]
    )
    return voc_ap(ground_truth, detections, num_classes, **options)[0]


def read_padilla(folder):
    """Image numbers and the numeric columns of all files of a folder."""
    rows = [(i, line.split()[1:]) for i, file in enumerate(sorted(folder.glob("*.txt"))) for line in file.open()]
    return np.array([i for i, _ in rows]), np.array([values for _, values in rows], float)


@pytest.mark.parametrize("method", ["11point", "every_point"])
@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.5", "0.75"])
def test_published_values(method, threshold):
    truth_images, truth = read_padilla(PADILLA / "gts")
    found_images, found = read_padilla(PADILLA / "dets")
    # That project takes x, y, x + w, y + h for inclusive corners.
    ground_truth = GroundTruth(
        truth_images, np.ones(15), np.c_[truth[:, :2], truth[:, :2] + truth[:, 2:]], np.zeros(15)
    )
    detections = ScoredBoxes(found_images, np.ones(24), np.c_[found[:, 1:3], found[:, 1:3] + found[:, 3:]], found[:, 0])
    result = voc_ap(ground_truth, detections, 2, iou_threshold=float(threshold), use_07_metric=method == "11point")[0]
    expected = json.loads((PADILLA / "expected.json").read_text())[method][threshold]
    assert result.ap == pytest.approx(expected, abs=1e-9, rel=0)
    assert (result.ground_truth, result.detections) == (15, 24)


def test_iou_counts_the_last_pixel():
    boxes = np.array([(0, 0, 9, 9), (5, 0, 14, 9), (9, 9, 9, 9), (10, 0, 19, 9), (5, 5, 3, 9)], float)
    expected = [1, 50 / 150, 1 / 100, 0, 0]
    np.testing.assert_array_equal(pixel_iou(boxes[:1], boxes)[0], expected)
    assert pixel_iou(boxes[4:], boxes[4:]).item() == 0  # inverted: no area, and no division by it


def test_curve_of_hits_and_misses():
    truth = [(0, LEFT), (0, RIGHT), (1, LEFT), (1, RIGHT)]
    found = [(0, LEFT, 0.9), (0, FAR, 0.8), (1, RIGHT, 0.7), (1, FAR, 0.6), (0, RIGHT, 0.5)]
    result = one_class(truth, found)
    np.testing.assert_array_equal(result.scores, [0.9, 0.8, 0.7, 0.6, 0.5])
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5], rtol=1e-15)
    np.testing.assert_array_equal(result.recall, [0.25, 0.25, 0.5, 0.5, 0.75])
    assert result.ap == pytest.approx(0.25 * 1 + 0.25 * 2 / 3 + 0.25 * 3 / 5, abs=1e-15)
    # Recall levels 0, .1, .2 see precision 1; .3, .4, .5 see 2/3; .6, .7 see 3/5; .8, .9, 1 see nothing.
    assert one_class(truth, found, use_07_metric=True).ap == pytest.approx((3 + 3 * 2 / 3 + 2 * 3 / 5) / 11, abs=1e-15)


def test_perfect_detector():
    truth = [(0, LEFT), (0, RIGHT), (3, FAR)]
    found = [(image, box, 0.5) for image, box in truth]
    assert one_class(truth, found).ap == 1.0
    assert one_class(truth, found, use_07_metric=True).ap == 1.0


def test_duplicate_is_a_false_positive():
    result = one_class([(0, LEFT)], [(0, LEFT, 0.9), (0, LEFT, 0.8)])
    np.testing.assert_array_equal(result.precision, [1, 0.5])
    assert result.ap == 1.0


def test_duplicate_does_not_fall_back_on_a_free_object():
    """Each detection stands or falls with the object it overlaps most, as in the official evaluator."""
    near = (2, 0, 11, 9)  # IoU with LEFT: 80 / 120
    result = one_class([(0, LEFT), (0, near)], [(0, LEFT, 0.9), (0, LEFT, 0.8)])
    np.testing.assert_array_equal(result.precision, [1, 0.5])
    np.testing.assert_array_equal(result.recall, [0.5, 0.5])


def test_first_of_two_equal_overlaps_is_taken():
    middle, left, right = (10, 0, 19, 9), (8, 0, 17, 9), (12, 0, 21, 9)  # IoU of middle with either: 80 / 120
    both = [(0, middle, 0.9), (0, middle, 0.8)]
    hard_first = one_class([(0, left), (0, right)], both, difficult=[True, False])
    hard_last = one_class([(0, left), (0, right)], both, difficult=[False, True])
    assert len(hard_first.scores) == 0
    assert hard_first.ap == 0.0
    np.testing.assert_array_equal(hard_last.precision, [1, 0.5])


def test_overlap_equal_to_the_threshold_is_no_match():
    half = (0, 0, 9, 4)
    assert one_class([(0, LEFT)], [(0, half, 0.9)]).ap == 0.0
    assert one_class([(0, LEFT)], [(0, half, 0.9)], iou_threshold=0.49).ap == 1.0


def test_other_image_and_other_class_do_not_match():
    assert one_class([(0, LEFT)], [(1, LEFT, 0.9)]).ap == 0.0
    results = voc_ap(GroundTruth([0], [1], [LEFT], [False]), ScoredBoxes([0], [2], [LEFT], [0.9]), 3)
    assert results[0].ap == 0.0
    assert np.isnan(results[1].ap)
    assert mean_ap(results) == 0.0


def test_difficult_is_neither_hit_nor_miss():
    truth, flags = [(0, LEFT), (0, RIGHT)], [True, False]
    found = [(0, LEFT, 0.9), (0, LEFT, 0.8), (0, RIGHT, 0.7)]
    result = one_class(truth, found, difficult=flags)
    np.testing.assert_array_equal(result.scores, [0.7])
    assert (result.ap, result.ground_truth, result.detections) == (1.0, 1, 3)


def test_equal_scores_keep_the_order_of_the_input():
    hit_first = one_class([(0, LEFT)], [(0, LEFT, 0.5), (0, FAR, 0.5)])
    miss_first = one_class([(0, LEFT)], [(0, FAR, 0.5), (0, LEFT, 0.5)])
    assert (hit_first.ap, miss_first.ap) == (1.0, 0.5)


@pytest.mark.parametrize("use_07_metric", [False, True])
def test_nothing_found_and_nothing_to_find(use_07_metric):
    options = {"use_07_metric": use_07_metric}
    assert one_class([(0, LEFT)], [], **options).ap == 0.0
    no_truth = one_class([], [(0, LEFT, 0.9)], **options)
    all_difficult = one_class([(0, LEFT)], [(0, LEFT, 0.9), (0, FAR, 0.8)], difficult=[True], **options)
    for result in (no_truth, all_difficult, one_class([], [], **options)):
        assert np.isnan(result.ap)
        assert result.ground_truth == 0
        assert best_f1(result) is None
        assert np.isnan(mean_ap([result]))
    np.testing.assert_array_equal(all_difficult.scores, [0.8])
    assert mean_ap([no_truth, one_class([(0, LEFT)], [(0, LEFT, 0.9)], **options)]) == 1.0


def test_eleven_points_are_the_official_floats():
    """Recall 3/10 is below the official level 3 * 0.1 = 0.30000000000000004, so it counts for 0, 0.1 and 0.2 only."""
    truth = [(image, LEFT) for image in range(10)]
    found = [(image, LEFT, 1 - image / 10) for image in range(3)]
    assert one_class(truth, found, use_07_metric=True).ap == pytest.approx(3 / 11, abs=1e-15)
    assert one_class(truth, found).ap == pytest.approx(3 / 10, abs=1e-15)


def test_best_operating_point():
    truth = [(0, LEFT), (0, RIGHT), (1, LEFT)]
    found = [(0, LEFT, 0.9), (0, RIGHT, 0.8), (1, FAR, 0.4), (1, LEFT, 0.1)]
    point = best_f1(one_class(truth, found))
    assert point == (0.1, 0.75, 1.0, pytest.approx(6 / 7))
    # Three detections share the score 0.5: no threshold keeps only the first of them.
    tied = one_class([(0, LEFT)], [(0, LEFT, 0.5), (0, FAR, 0.5), (1, FAR, 0.5)])
    assert best_f1(tied) == (0.5, pytest.approx(1 / 3), 1.0, 0.5)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (([0], [1], [LEFT, RIGHT], [False]), ([], [], [], []), "ground truth: shapes disagree: images .* boxes .2, 4"),
        (([], [], [], []), ([0], [1], [LEFT], [0.1, 0.2]), "detections: shapes disagree: .* scores .2,"),
        (([], [], [], []), ([0], [3], [LEFT], [0.1]), "detections: labels go from 3 to 3; with num_classes=3 .* 1..2"),
        (([0], [0], [LEFT], [False]), ([], [], [], []), "ground truth: labels go from 0 to 0"),
        (([], [], [], []), ([0], [1], [LEFT], [np.nan]), "detections: boxes or scores hold NaN"),
        (([0], [1], [(0, 0, np.inf, 9)], [False]), ([], [], [], []), "ground truth: boxes or difficult hold NaN"),
    ],
)
def test_bad_input(truth, found, message):
    with pytest.raises(InputError, match=message):
        voc_ap(GroundTruth(*truth), ScoredBoxes(*found), 3)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_bad_threshold(threshold):
    with pytest.raises(InputError, match="iou_threshold is"):
        one_class([(0, LEFT)], [], iou_threshold=threshold)


def plain_voc_ap(truth, found, threshold, use_07_metric):
    """The definition, one detection and one object at a time; IoU, precision and recall are exact fractions.

    truth: rows (image, box, difficult); found: rows (image, box, score). Returns (ap, precision, recall).
    """
    taken, hits, misses, curve = set(), 0, 0, []
    objects = sum(not difficult for _, _, difficult in truth)
    for image, box, _ in sorted(found, key=lambda row: -row[2]):  # sorted() is stable
        best, best_iou = None, Fraction(-1)
        for number, (other_image, other, _) in enumerate(truth):
            if other_image == image and plain_iou(box, other) > best_iou:
                best, best_iou = number, plain_iou(box, other)
        if best is not None and best_iou > threshold:
            if truth[best][2]:
                continue
            hits, misses = (hits, misses + 1) if best in taken else (hits + 1, misses)
            taken.add(best)
        else:
            misses += 1
        curve.append((Fraction(hits, objects), Fraction(hits, hits + misses)))
    if use_07_metric:
        levels = [i * 0.1 for i in range(11)]
        ap = sum(max([p for r, p in curve if float(r) >= level], default=0) for level in levels) / Fraction(11)
    else:
        ap, before = Fraction(0), Fraction(0)
        for recall in sorted({r for r, _ in curve}):
            ap += (recall - before) * max(p for r, p in curve if r >= recall)
            before = recall
    return float(ap), [float(p) for _, p in curve], [float(r) for r, _ in curve]


def plain_iou(a, b):
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    return Fraction(shared, sum(area) - shared)


def boxes():
    """Small whole-pixel boxes, so that equal overlaps and overlaps of exactly one half are common."""
    side = st.integers(0, 5)
    return st.tuples(side, side, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


images = st.integers(0, 2)
truths = st.lists(st.tuples(images, boxes(), st.booleans()), min_size=1, max_size=12)
founds = st.lists(st.tuples(images, boxes(), st.integers(1, 8).map(lambda n: n / 8)), max_size=20)


@settings(max_examples=400, deadline=None)
@given(truths, founds, st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.booleans())
def test_equals_the_plain_implementation(truth, found, threshold, use_07_metric):
    difficult = [flag for _, _, flag in truth]
    if all(difficult):
        difficult[0] = False
        truth = [(*truth[0][:2], False), *truth[1:]]
    result = one_class(
        [row[:2] for row in truth], found, difficult=difficult, iou_threshold=threshold, use_07_metric=use_07_metric
    )
    ap, precision, recall = plain_voc_ap(truth, found, Fraction(threshold), use_07_metric)
    assert result.ap == pytest.approx(ap, abs=1e-12)
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


@settings(max_examples=50, deadline=None)
@given(truths, founds, st.integers(0, 2**32 - 1))
def test_classes_are_independent_and_detections_may_come_shuffled(truth, found, seed):
    """Two classes at once give what each gives alone; with distinct scores the order of the rows says nothing."""
    rng = np.random.default_rng(seed)
    found = [(image, box, (i + 1) / 32) for i, (image, box, _) in enumerate(found)]
    truth_labels, found_labels = rng.integers(1, 3, len(truth)), rng.integers(1, 3, len(found))
    order = rng.permutation(len(found))
    shuffled = [found[i] for i in order]
    together = voc_ap(
        GroundTruth([t[0] for t in truth], truth_labels, [t[1] for t in truth], [t[2] for t in truth]),
        ScoredBoxes([f[0] for f in shuffled], found_labels[order], [f[1] for f in shuffled], [f[2] for f in shuffled]),
        3,
    )
    for label in (1, 2):
        rows = [row for row, own in zip(truth, truth_labels, strict=True) if own == label]
        alone = one_class(
            [row[:2] for row in rows],
            [row for row, own in zip(found, found_labels, strict=True) if own == label],
            difficult=[row[2] for row in rows],
        )
        np.testing.assert_array_equal(together[label - 1].precision, alone.precision)
        np.testing.assert_array_equal(together[label - 1].recall, alone.recall)
        np.testing.assert_equal(together[label - 1].ap, alone.ap)
