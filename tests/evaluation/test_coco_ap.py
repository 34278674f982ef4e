"""COCO average precision: published values and small cases counted by hand."""

import copy
import json

import numpy as np
import pytest
from support.paths import GOLDEN

from refinedet.errors import InputError
from refinedet.evaluation.coco_ap import METRICS, coco_ap

FIXTURES = GOLDEN / "eval"
IMAGES = [{"id": 10}, {"id": 20}]
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "square"}]
ONE = pytest.approx(1.0, abs=1e-12)  # COCOeval adds an epsilon to its denominators
BOX, OTHER = [10, 10, 50, 50], [100, 100, 50, 50]


def load(*names):
    return [json.loads((FIXTURES / name).read_text()) for name in names]


def truth(*annotations):
    return {"images": IMAGES, "categories": CATEGORIES, "annotations": list(annotations)}


def annotation(box=BOX, *, image=10, category=3, **more):
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def result(box=BOX, score=0.9, *, image=10, category=3):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


@pytest.mark.parametrize(
    ("ground_truth", "results", "published", "tolerance"),
    [
        (
            "coco_fake100/instances_val2014_100.json",
            "coco_fake100/instances_val2014_fakebbox100_results.json",
            "coco_fake100/pycocotools_2.x_bbox.json",
            5e-7,  # six decimals are given
        ),
        ("crowd_1img/gt.json", "crowd_1img/dets.json", "crowd_1img/expected.json", 1e-12),
    ],
)
def test_published_values(ground_truth, results, published, tolerance):
    ground_truth, results, published = load(ground_truth, results, published)
    found = coco_ap(ground_truth, results)
    assert list(found.metrics) == list(published) == list(METRICS)
    expected = {name: np.nan if value == -1 else value for name, value in published.items()}
    assert found.metrics == pytest.approx(expected, abs=tolerance, rel=0, nan_ok=True)
    assert np.nanmean(list(found.category_ap.values())) == pytest.approx(found.metrics["AP"], abs=1e-12)
    assert np.nanmean(list(found.category_ap50.values())) == pytest.approx(found.metrics["AP50"], abs=1e-12)
    assert set(found.category_ap) == {category["id"] for category in ground_truth["categories"]}


def test_per_category():
    ground_truth = truth(annotation(), annotation(OTHER, image=20))
    found = coco_ap(ground_truth, [result(), result(OTHER, image=10)])
    # One of two objects is found at precision 1: recall levels 0, 0.01 .. 0.50 of the 101 see it.
    assert found.category_ap[3] == pytest.approx(51 / 101)
    assert np.isnan(found.category_ap[7])
    assert found.metrics["AP"] == pytest.approx(51 / 101)
    assert found.metrics["AR100"] == pytest.approx(0.5)
    assert np.isnan(found.metrics["APl"])


def test_inner_box_counts_up_to_its_iou():
    inner = [10, 10, 50, 36]  # IoU 0.72: right at the thresholds 0.50 to 0.70, five of ten
    found = coco_ap(truth(annotation()), [result(inner)])
    assert found.metrics["AP"] == pytest.approx(0.5)
    assert (found.metrics["AP50"], found.metrics["AP75"]) == (ONE, 0.0)
    assert found.category_ap50[3] == ONE


def test_crowd_swallows_detections():
    ground_truth = truth(annotation(), annotation(OTHER, iscrowd=1))
    inside_crowd = [[100, 100, 20, 20], [120, 120, 30, 30]]
    found = coco_ap(ground_truth, [result(box, 0.95) for box in inside_crowd] + [result()])
    assert found.metrics["AP"] == ONE
    assert coco_ap(truth(annotation()), [result(inside_crowd[0], 0.95), result()]).metrics["AP"] == pytest.approx(0.5)


def test_no_detections():
    found = coco_ap(truth(annotation()), [])
    assert [found.metrics[name] for name in ("AP", "AP50", "APm", "AR1", "AR100")] == [0.0] * 5
    assert np.isnan(found.metrics["APs"])
    assert found.category_ap[3] == 0.0


def test_no_annotations():
    found = coco_ap(truth(), [result()])
    assert all(np.isnan(value) for value in found.metrics.values())


def test_annotation_with_id_0_can_be_found():
    assert coco_ap(truth(annotation(id=0)), [result()]).metrics["AP"] == ONE


def test_area_of_the_annotation_decides_its_size_class():
    outline = truth(annotation(area=100.0))
    assert coco_ap(outline, [result()]).metrics["APs"] == ONE
    assert coco_ap(truth(annotation()), [result()]).metrics["APm"] == ONE


def test_ids_may_be_text():
    ground_truth = {
        "images": [{"id": "b_2"}, {"id": "a_1"}],
        "categories": CATEGORIES,
        "annotations": [annotation(image="a_1"), annotation(image="b_2")],
    }
    assert coco_ap(ground_truth, [result(image="b_2"), result(image="a_1")]).metrics["AP"] == ONE


@pytest.mark.parametrize("ids", [(1, "b"), ("1", 1), (2**63, 2**64), (10**399, 10**399 + 1), (-1, 2**53 + 1), (2.0, 3)])
@pytest.mark.parametrize("kind", ["images", "categories"])
def test_ids_may_be_mixed_and_large(kind, ids):
    key = {"images": "image", "categories": "category"}[kind]
    ground_truth = truth(*(annotation(**{key: id_}) for id_ in ids)) | {kind: [{"id": id_} for id_ in ids]}
    found = coco_ap(ground_truth, [result(**{key: id_}) for id_ in ids])
    assert found.metrics["AP"] == ONE
    if kind == "categories":
        assert found.category_ap == {id_: ONE for id_ in ids}
        half = coco_ap(ground_truth, [result(**{key: ids[1]})])
        assert half.category_ap == {ids[0]: 0.0, ids[1]: ONE}


def test_unknown_ids_among_mixed_ones():
    ground_truth = truth() | {"categories": [{"id": 1}, {"id": "b"}]}
    with pytest.raises(InputError, match=r"category_id 2 is not a category of the ground truth; known: 1, 'b'"):
        coco_ap(ground_truth, [result(category=2)])


def test_prints_nothing_and_changes_nothing(capsys):
    ground_truth, results = load("crowd_1img/gt.json", "crowd_1img/dets.json")
    before = copy.deepcopy((ground_truth, results))
    coco_ap(ground_truth, results)
    assert capsys.readouterr() == ("", "")
    assert (ground_truth, results) == before


@pytest.mark.parametrize(
    ("ground_truth", "results", "message"),
    [
        ({"images": [], "categories": CATEGORIES}, [], "'images' is missing or empty"),
        ({"images": IMAGES}, [], "'categories' is missing or empty"),
        (truth(annotation(image=30)), [], "ground truth annotation 0: image_id 30 is not among the 2 images"),
        (truth(), [result(), result(image=30)], "result 1: image_id 30 is not among the 2 images"),
        (truth(), [result(image="10")], "result 0: image_id '10' is not among"),
        (truth(), [result(category=1)], "result 0: category_id 1 is not a category .* known: 3, 7"),
        (truth(), [{"image_id": 10, "bbox": BOX}], "result 0: no category_id and no score; add it"),
        (truth(), [result(BOX[:3])], "result 0: bbox .10, 10, 50. or its score"),
        (truth(), [result(score=float("nan"))], "result 0: bbox .* or its score is not finite"),
        (truth(annotation([0, 0, float("inf"), 1])), [], "ground truth annotation 0: bbox .*inf"),
        (truth(annotation([0, 0, 10**400, 1])), [], "ground truth annotation 0: bbox .* is not finite numbers"),
        (truth(annotation(None)), [], "ground truth annotation 0: bbox None or its score is not finite numbers"),
        (truth(), [result(["1", "2", "3", "4"])], "result 0: bbox .'1', .* is not finite numbers"),
        (truth(), [result(score=None)], "result 0: bbox .* or its score is not finite numbers"),
    ],
)
def test_bad_input(ground_truth, results, message):
    with pytest.raises(InputError, match=message):
        coco_ap(ground_truth, results)
