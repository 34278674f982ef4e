"""What was found, in each format: read back by the libraries that know it, with the boxes that went in."""

import json
import sys
from xml.etree import ElementTree

import globox
import numpy as np
import pytest
import supervision
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from supervision.dataset.formats.labelme import labelme_shapes_to_detections
from supervision.dataset.formats.pascal_voc import detections_from_xml_obj
from supervision.dataset.formats.yolo import yolo_annotations_to_detections

from refinedet.classes import COCO_CATEGORY_IDS, COCO_CLASSES
from refinedet.errors import InputError
from refinedet.records import Detections

HEIGHT, WIDTH = 300, 400
BOXES = [[0.0, 0.0, 9.0, 7.0], [10.25, 20.5, 30.125, 44.875], [390.0, 290.0, 399.0, 299.0]]
EDGES = [[0.0, 0.0, 10.0, 8.0], [10.25, 20.5, 31.125, 45.875], [390.0, 290.0, 400.0, 300.0]]
NAMES = ["stop sign", "dog", "stop sign"]
LABELS = [1, 2, 1]
SCORES = [0.9, 0.75, 0.5]


def detections(count: int = 3, path: str | None = "photos/a b.jpg") -> Detections:
    return Detections(
        torch.tensor(BOXES[:count]).reshape(-1, 4),
        torch.tensor(SCORES[:count]),
        torch.tensor(LABELS[:count], dtype=torch.int64),
        NAMES[:count],
        path,
        (HEIGHT, WIDTH),
    )


def corners(annotation: globox.Annotation) -> list[tuple[float, ...]]:
    return [box.ltrb for box in annotation.boxes]


def test_supervision():
    found = detections().to_supervision()
    np.testing.assert_array_equal(found.xyxy, EDGES)
    np.testing.assert_array_equal(found.class_id, [0, 1, 0])
    np.testing.assert_array_equal(found.confidence, np.float32(SCORES))
    assert list(found.data["class_name"]) == NAMES
    assert found[found["class_name"] == "dog"].class_id == [1]
    assert list(found.area) == [80.0, 20.875 * 25.375, 100.0]


def test_supervision_of_nothing():
    found = detections(0).to_supervision()
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert len(supervision.Detections.merge([found, detections().to_supervision()])) == 3


def test_supervision_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"supervision cannot be imported .*; pip install supervision$"):
        detections().to_supervision()


def truth(rows: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 7, "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": n, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row} for n, row in enumerate(rows, 1)
        ],
        "categories": [{"id": row["category_id"]} for row in rows],
    }
    coco.createIndex()
    return coco


def test_coco_results_are_those_that_pycocotools_loads():
    rows = detections().to_coco(7)
    assert [row["bbox"] for row in rows] == [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in EDGES]
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 1), (7, 2), (7, 1)]
    assert [row["score"] for row in rows] == pytest.approx(SCORES, abs=1e-7)
    coco = truth(rows)
    evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(rows))), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert detections(0).to_coco(7) == []


def test_coco_categories():
    assert [row["category_id"] for row in detections().to_coco(7, {1: 13, 2: "x"})] == [13, "x", 13]
    with pytest.raises(InputError, match="no id for label 2, class 'dog'"):
        detections().to_coco(7, {1: 13})


def test_official_category_ids():
    """Some of those in COCO's own files."""
    ids = {name: COCO_CATEGORY_IDS[label] for label, name in enumerate(COCO_CLASSES, start=1)}
    assert ids["person"] == 1
    assert ids["fire hydrant"] == 11
    assert ids["stop sign"] == 13
    assert ids["backpack"] == 27
    assert ids["wine glass"] == 46
    assert ids["dining table"] == 67
    assert ids["toilet"] == 70
    assert ids["tv"] == 72
    assert ids["book"] == 84
    assert ids["toothbrush"] == 90
    assert len(set(ids.values())) == 80


def test_voc(tmp_path):
    xml = detections().to_voc_xml()
    found, classes = detections_from_xml_obj(ElementTree.fromstring(xml), [], (WIDTH, HEIGHT))
    np.testing.assert_array_equal(found.xyxy, EDGES)
    assert [classes[number] for number in found.class_id] == NAMES
    (tmp_path / "a.xml").write_text(xml)
    read = globox.Annotation.from_pascal_voc(tmp_path / "a.xml")  # the corners as they stand
    assert corners(read) == [tuple(value + 1 for value in box) for box in BOXES]
    assert (read.image_id, read.image_size) == ("a b.jpg", (WIDTH, HEIGHT))


def test_voc_of_an_array_and_of_nothing():
    assert ElementTree.fromstring(detections(path=None).to_voc_xml()).findtext("filename") == ""
    tree = ElementTree.fromstring(detections(0).to_voc_xml("x<&>.png"))
    assert tree.findtext("filename") == "x<&>.png"
    assert tree.find("object") is None


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "a\udcffb", "\ufffe"])
def test_names_that_xml_cannot_hold(name):
    with pytest.raises(InputError, match=r"the image's name is .*; rename it"):
        detections().to_voc_xml(name)
    with pytest.raises(InputError, match=r"the class is .*; rename it"):
        detections(1)._replace(names=[name]).to_voc_xml()


def test_yolo(tmp_path):
    lines = detections().to_yolo()
    found = yolo_annotations_to_detections(lines.splitlines(), (WIDTH, HEIGHT), with_masks=False)
    np.testing.assert_allclose(found.xyxy, EDGES, atol=1e-3)
    np.testing.assert_array_equal(found.class_id, [0, 1, 0])
    (tmp_path / "a.txt").write_text(lines)
    read = globox.Annotation.from_yolo_darknet(tmp_path / "a.txt", image_size=(WIDTH, HEIGHT))
    np.testing.assert_allclose(corners(read), EDGES, atol=1e-3)
    assert detections(0).to_yolo() == ""


def test_yolo_with_scores(tmp_path):
    (tmp_path / "a.txt").write_text(detections().to_yolo(scores=True))
    read = globox.Annotation.from_yolo_v5(tmp_path / "a.txt", image_size=(WIDTH, HEIGHT))
    np.testing.assert_allclose(corners(read), EDGES, atol=1e-3)
    assert [box.confidence for box in read.boxes] == SCORES


def test_labelme(tmp_path):
    document = json.loads(json.dumps(detections().to_labelme("a b.jpg")))
    found = labelme_shapes_to_detections(document["shapes"], {"stop sign": 0, "dog": 1}, (WIDTH, HEIGHT), False)
    np.testing.assert_array_equal(found.xyxy, EDGES)
    np.testing.assert_array_equal(found.class_id, [0, 1, 0])
    (tmp_path / "a.json").write_text(json.dumps(document))
    read = globox.Annotation.from_labelme(tmp_path / "a.json")
    assert corners(read) == [tuple(box) for box in EDGES]
    assert (read.image_id, read.image_size) == ("a b.jpg", (WIDTH, HEIGHT))
    assert [shape["score"] for shape in document["shapes"]] == SCORES
