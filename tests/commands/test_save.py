"""``refinedet detect --save``: data sets that our readers and those of other libraries take, with the same boxes."""

import errno
import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from globox import AnnotationSet
from PIL import Image
from pycocotools.coco import COCO
from supervision import DetectionDataset
from support.synthetic import CLASSES, FixedNetwork, scene
from support.videos import make_video

import refinedet
from refinedet.classes import COCO_CATEGORY_IDS, COCO_CLASSES
from refinedet.commands import main as cli
from refinedet.data import COCODataset, VOCDataset
from refinedet.data.images import read_image
from refinedet.evaluation.pixels import truth_to_pixels
from refinedet.inference.detector import Detector
from refinedet.interchange.coco import COCOFolder
from refinedet.interchange.yolo import YOLOFolder

FORMATS = ("coco", "voc", "yolo", "labelme")
BOXES = [[0.25, 0.25, 0.75, 0.75], [0.013, 0.017, 0.2, 0.31]]


@pytest.fixture
def fixed(monkeypatch) -> FixedNetwork:
    """The network that the command loads in this test: it finds a disc and a square in every image."""
    network = FixedNetwork(BOXES, [1, 2], [0.9, 0.75])
    monkeypatch.setattr(refinedet, "load", lambda path, device="cpu": Detector(network), raising=False)
    return network


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 0.png, 1.png and 2.png, of different sizes."""
    for index in range(3):
        write(tmp_path / "photos" / f"{index}.png", 60 + 10 * index)
    return tmp_path / "photos"


def write(path: Path, height: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, scene(0, height, 100)[0])[1].tobytes())
    return path


def write_turned(path: Path) -> Path:
    """A JPEG of 100x60 stored pixels that EXIF turns upright: 60x100."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(0, 60, 100)[0]).save(path, exif=exif, quality=95)
    return path


def detect(*arguments) -> int:
    return cli.main(["detect", "any", *map(str, arguments)])


def saved(out: Path) -> dict[str, set[str]]:
    """The images of each format's data set, by name."""
    places = {"coco": "coco/images", "voc": "voc/JPEGImages", "yolo": "yolo/images", "labelme": "labelme"}
    files = {name: {path.name for path in (out / place).iterdir()} for name, place in places.items()}
    files["labelme"] = {name for name in files["labelme"] if not name.endswith(".json")}
    return files


def test_all_formats_hold_the_same_boxes(fixed, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        detect(photos, "--out", out, "--save", "coco,voc", "--save", "yolo,labelme", "--json", tmp_path / "f.json") == 0
    )
    shown = capsys.readouterr().out
    assert all(f"Data set ({name}): {out / name}" in shown for name in FORMATS)
    found = json.loads((tmp_path / "f.json").read_text())["images"]
    wanted = {Path(image["path"]).name: [row["box"] for row in image["detections"]] for image in found}
    assert all(names == wanted.keys() for names in saved(out).values())

    for dataset in (
        COCODataset(out / "coco", "default", classes=CLASSES),
        VOCDataset(out / "voc", "default", classes=CLASSES),
    ):
        assert dataset.warnings == []
        for sample in dataset:
            np.testing.assert_allclose(truth_to_pixels(sample), wanted[Path(sample.path).name], atol=2e-3)
            np.testing.assert_array_equal(sample.image, read_image(photos / Path(sample.path).name))
            assert sample.labels.tolist() == [1, 2]

    yolo, labelme = out / "yolo", out / "labelme"
    for read in (
        DetectionDataset.from_coco(str(out / "coco/images"), str(out / "coco/annotations/instances_default.json")),
        DetectionDataset.from_pascal_voc(str(out / "voc/JPEGImages"), str(out / "voc/Annotations")),
        DetectionDataset.from_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml")),
        DetectionDataset.from_labelme(str(labelme), str(labelme)),
    ):
        assert len(read) == 3
        for path, _, objects in read:
            edges = np.add(wanted[Path(path).name], (0, 0, 1, 1))
            np.testing.assert_allclose(objects.xyxy, edges, atol=2e-3)
            assert [read.classes[number] for number in objects.class_id] == list(CLASSES)


def test_coco_has_scores_and_is_its_own_results(fixed, photos, tmp_path):
    assert detect(photos, "--out", tmp_path / "out", "--save", "coco") == 0
    file = tmp_path / "out" / "coco" / "annotations" / "instances_default.json"
    document = json.loads(file.read_text())
    assert [item["id"] for item in document["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [item["id"] for item in document["images"]] == [1, 2, 3]
    truth = COCO(str(file))
    results = truth.loadRes(document["annotations"])
    by_globox = AnnotationSet.from_coco(file)
    assert [box.confidence for box in by_globox["0.png"].boxes] == pytest.approx([0.9, 0.75], abs=1e-6)
    assert [box.label for box in by_globox["0.png"].boxes] == list(CLASSES)
    for number, annotation in truth.anns.items():
        same = results.anns[number]
        assert (same["bbox"], same["score"]) == (annotation["bbox"], annotation["score"])
        assert annotation["area"] == pytest.approx(same["area"])


def test_cocos_classes_have_cocos_ids(tmp_path):
    COCOFolder(tmp_path, COCO_CLASSES).close()
    document = json.loads((tmp_path / "annotations" / "instances_default.json").read_text())
    assert [item["id"] for item in document["categories"]] == list(COCO_CATEGORY_IDS.values())
    assert [item["name"] for item in document["categories"]] == list(COCO_CLASSES)


def test_lists_of_class_names(tmp_path):
    classes = ("stop sign", "yes", "a: 'b' \"c\" # d", "Zelle_ä😀", "007")
    YOLOFolder(tmp_path, classes).close()
    assert yaml.safe_load((tmp_path / "data.yaml").read_text("utf-8"))["names"] == dict(enumerate(classes))
    assert (tmp_path / "classes.txt").read_text("utf-8").splitlines() == list(classes)


def test_images_without_objects(fixed, photos, tmp_path):
    out = tmp_path / "out"
    assert detect(photos, "--out", out, "--score-threshold", "0.95", "--save", ",".join(FORMATS)) == 0
    assert all(len(names) == 3 for names in saved(out).values())
    assert [path.read_text() for path in sorted((out / "yolo" / "labels").iterdir())] == ["", "", ""]
    assert json.loads((out / "labelme" / "0.json").read_text())["shapes"] == []
    for dataset in (
        COCODataset(out / "coco", "default", classes=CLASSES),
        VOCDataset(out / "voc", "default", classes=CLASSES),
    ):
        assert [len(sample.boxes) for sample in dataset] == [0, 0, 0]


def test_two_images_of_one_stem(fixed, tmp_path):
    inputs = [write(tmp_path / name) for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/X_2.png")]
    assert detect(*inputs, "--out", tmp_path / "out", "--save", "voc,yolo") == 0
    names = ["x.png", "x_2.jpg", "x_3.png", "X_2_2.png"]
    assert {path.name for path in (tmp_path / "out/voc/JPEGImages").iterdir()} == set(names)
    assert {path.stem for path in (tmp_path / "out/yolo/labels").iterdir()} == {Path(name).stem for name in names}
    for path, name in zip(inputs, names, strict=True):
        assert (tmp_path / "out/voc/JPEGImages" / name).read_bytes() == path.read_bytes()
    assert len(VOCDataset(tmp_path / "out/voc", "default")) == 4


def test_images_that_exif_turns_are_saved_upright(fixed, tmp_path):
    turned, straight = write_turned(tmp_path / "in" / "turned.JPG"), write(tmp_path / "in" / "straight.jpg")
    out = tmp_path / "out"
    assert detect(tmp_path / "in", "--out", out, "--save", ",".join(FORMATS)) == 0
    for place in ("coco/images", "voc/JPEGImages", "yolo/images", "labelme"):
        upright = read_image(out / place / "turned.JPG")
        assert upright.shape == (100, 60, 3)
        assert np.abs(upright.astype(int) - read_image(turned, apply_exif=True)).mean() < 4
        assert (out / place / "straight.jpg").samefile(straight)
    for sample in COCODataset(out / "coco", "default"):
        height, width = sample.image.shape[:2]
        assert truth_to_pixels(sample)[0] == pytest.approx(
            [width / 4, height / 4, 0.75 * width, 0.75 * height], abs=0.01
        )


def test_unusual_names(fixed, tmp_path):
    names = {
        "a b.png": "a b.png",
        "#1 'x', \"y\".png": "#1 'x', \"y\".png",
        "Fuß 猫.png": "Fuß 猫.png",
        "a\nb.png": "a_b.png",
        "c\\d.png": "c_d.png",
        os.fsdecode(b"bad\xff.png"): "bad_.png",
        " .hidden.png": "hidden.png",
        "photo.jpg.png": "photo.jpg.png",
        "no_image_suffix.dat": "no_image_suffix.png",
    }
    for name in names:
        write(tmp_path / "in.png").rename(tmp_path / name)
    out = tmp_path / "out"
    assert detect(*(tmp_path / name for name in names), "--out", out, "--save", ",".join(FORMATS)) == 0
    assert all(files == set(names.values()) for files in saved(out).values())
    assert len(VOCDataset(out / "voc", "default")) == len(COCODataset(out / "coco", "default")) == len(names)
    for name in names.values():
        assert json.loads((out / "labelme" / f"{Path(name).stem}.json").read_text())["imagePath"] == name


def test_where_links_cannot_be_made_files_are_copied(fixed, photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert detect(photos, "--out", tmp_path / "out", "--save", "yolo") == 0
    for path in photos.iterdir():
        assert (tmp_path / "out/yolo/images" / path.name).read_bytes() == path.read_bytes()
        assert path.stat().st_nlink == 1


def test_a_label_that_cannot_be_written_leaves_no_image(fixed, photos, tmp_path, capsys):
    blocked = photos / f"{'x' * 251}.png"  # a longer suffix makes its label's name too long
    write(photos / "y.png").rename(blocked)
    assert detect(photos, "--out", tmp_path / "out", "--save", "coco,labelme", "--json", tmp_path / "f.json") == 1
    document = json.loads((tmp_path / "f.json").read_text())
    assert [failure["path"] for failure in document["failed"]] == [str(blocked)]
    assert "File name too long" in document["failed"][0]["error"]
    assert blocked.name not in os.listdir(tmp_path / "out" / "labelme")
    assert len(COCODataset(tmp_path / "out" / "coco", "default")) == 4  # it was whole there


def test_an_interrupted_run_keeps_what_was_found(fixed, photos, tmp_path, monkeypatch, hears_signals):
    forward = fixed.forward

    def interrupted(images, by_level):
        if len(fixed.inputs) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(images, by_level=by_level)

    monkeypatch.setattr(fixed, "forward", interrupted)
    out = tmp_path / "out"
    assert detect(photos, "--out", out, "--batch-size", "1", "--save", ",".join(FORMATS)) == 130
    assert all(files == {"0.png", "1.png"} for files in saved(out).values())
    assert len(VOCDataset(out / "voc", "default")) == len(COCODataset(out / "coco", "default")) == 2
    assert (out / "yolo" / "data.yaml").is_file()


def test_nothing_is_overwritten(fixed, photos, tmp_path, capsys):
    corrected = tmp_path / "out" / "yolo" / "labels" / "0.txt"
    corrected.parent.mkdir(parents=True)
    corrected.write_text("0 0.5 0.5 0.1 0.1\n")
    assert detect(photos, "--out", tmp_path / "out", "--save", "voc,yolo") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"refinedet: error: --save yolo: {corrected.parent.parent} is there already; move it, or give another folder "
        "by --out"
    )
    assert corrected.read_text() == "0 0.5 0.5 0.1 0.1\n"
    assert fixed.inputs == []


def test_videos_are_refused(fixed, photos, tmp_path, capsys):
    clip = make_video(tmp_path / "clip.avi", frames=2)
    assert detect(photos, clip, "--out", tmp_path / "out", "--save", "voc") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"refinedet: error: --save voc: {clip} is a video")
    assert fixed.inputs == []


@pytest.mark.parametrize(
    ("given", "words"), [("yolov8", "did you mean 'yolo'"), ("voc,", "''"), ("coco voc", "'coco voc' is unknown")]
)
def test_formats_that_are_unknown(given, words, photos, tmp_path, capsys):
    assert detect(photos, "--out", tmp_path / "out", "--save", given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "choose from coco, voc, yolo, labelme" in line


def test_classes_that_no_file_holds(fixed, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Detector, "classes", ("a\nb", "square"))
    assert detect(photos, "--out", tmp_path / "out", "--save", "yolo") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--save: a class of the checkpoint is 'a\\nb', with characters" in line
    assert fixed.inputs == []
