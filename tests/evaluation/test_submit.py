"""Files for the evaluation servers: read back as the servers read them, and refused where they would refuse them."""

import csv
import gzip
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from support.paths import ROOT
from support.synthetic import scene, tiny_checkpoint

from refinedet.commands import main as cli
from refinedet.data import COCO_CLASSES, VOC_CLASSES, open_dataset
from refinedet.errors import DataError, InputError
from refinedet.evaluation.evaluate import evaluate_checkpoint
from refinedet.evaluation.report import ClassRow, Evaluation
from refinedet.evaluation.submit import default_algorithm, submit, submit_checkpoint
from refinedet.evaluation.voc_ap import ScoredBoxes

IDS = ("2008_000001", "2008_000004", "2012_000003")
SIZE = (96, 128)  # height, width of the images
with (ROOT / "docs" / "specification" / "coco_voc_labels.csv").open() as table:
    CATEGORIES = [(int(row[1]), row[2]) for row in list(csv.reader(table))[2:]]


def voc_test(root: Path, annotated: tuple[str, ...] = ()) -> Path:
    """The layout of VOC2012 test: a list, images (more than are listed), annotations of some or of none."""
    for folder in ("JPEGImages", "ImageSets/Main", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate((*IDS, "2009_000999")):
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), scene(seed)[0])
    (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{name}\n" for name in IDS))
    for name in annotated:
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><object><name>person</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>60</xmax>"
            "<ymax>70</ymax></bndbox></object></annotation>"
        )
    return root


def coco_test(root: Path, *, annotated: bool = False) -> Path:
    """The layout of COCO test-dev: a list of images without annotations, the images in the folder of test2017."""
    (root / "annotations").mkdir(parents=True)
    (root / "test2017").mkdir()
    content = {"images": [], "categories": [{"id": number, "name": name} for number, name in CATEGORIES]}
    for seed, number in enumerate((397133, 37777, 252219)):
        cv2.imwrite(str(root / "test2017" / f"{number:012d}.png"), scene(seed)[0])
        content["images"].append({"id": number, "file_name": f"{number:012d}.png", "height": SIZE[0], "width": SIZE[1]})
    name = "image_info_test-dev2017.json"
    if annotated:
        box = {"id": 1, "image_id": 37777, "category_id": 90, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}
        content["annotations"] = [box]
        name = "instances_test-dev2017.json"
    (root / "annotations" / name).write_text(json.dumps(content))
    return root


def found(images, labels, boxes, scores, classes=VOC_CLASSES, ids=IDS, category_ids=None) -> Evaluation:
    """An evaluation that found these boxes."""
    arrays = np.asarray(images), np.asarray(labels), np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores)
    return Evaluation(
        metric="voc",
        measure="AP@0.5 (area)",
        mean_ap=None,
        iou_threshold=0.5,
        dataset="test",
        images=len(ids),
        protocol=None,
        rows=[ClassRow(name, 0, 0, None, None, None, None, None) for name in classes],
        coco=None,
        seconds={},
        curves=[],
        found=ScoredBoxes(*arrays),
        image_ids=list(ids),
        image_sizes=[SIZE] * len(ids),
        category_ids=category_ids or {label: label for label in range(1, len(classes) + 1)},
    )


def open_test(root: Path, classes=VOC_CLASSES, split="test"):
    return open_dataset(root, split, classes=classes, need_annotations=False)


def read_archive(file: Path) -> dict[str, str]:
    with tarfile.open(file, "r:gz") as archive:
        return {entry.name: archive.extractfile(entry).read().decode() for entry in archive}


def read_zip(file: Path) -> tuple[list[str], list[dict]]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist(), json.loads(archive.read(archive.namelist()[0]))


@pytest.fixture(scope="module")
def voc_model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("voc") / "tiny_voc.safetensors", classes=VOC_CLASSES)


@pytest.fixture(scope="module")
def coco_model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("coco") / "tiny_coco.safetensors", classes=COCO_CLASSES)


def test_the_challenge_may_be_the_name_of_a_link(tmp_path):
    root = tmp_path / "VOC2012"
    root.symlink_to(voc_test(tmp_path / "elsewhere"), target_is_directory=True)
    submission = submit(found([0], [15], [[0, 0, 9, 9]], [0.5]), open_test(root), tmp_path / "out")
    assert set(read_archive(submission.file)) == {f"results/VOC2012/Main/comp4_det_test_{n}.txt" for n in VOC_CLASSES}


def test_a_case_by_hand_for_voc(tmp_path):
    """The first pixel is 1, the best score comes first, and every class has its file."""
    dataset = open_test(voc_test(tmp_path / "VOC2012"))
    evaluation = found([0, 2, 1], [15, 15, 20], [[0, 0, 9.5, 19], [1, 2, 127, 95], [3, 3, 3, 3]], [0.25, 0.75, 0.5])
    submission = submit(evaluation, dataset, tmp_path / "out", competition="comp3")
    assert submission == (tmp_path / "out" / "comp3_det_test.tar.gz", 3, 3, False)
    files = read_archive(submission.file)
    assert sorted(files) == sorted(f"results/VOC2012/Main/comp3_det_test_{name}.txt" for name in VOC_CLASSES)
    assert files["results/VOC2012/Main/comp3_det_test_person.txt"].splitlines() == [
        "2012_000003 0.750000 2.000000 3.000000 128.000000 96.000000",
        "2008_000001 0.250000 1.000000 1.000000 10.500000 20.000000",
    ]
    assert files["results/VOC2012/Main/comp3_det_test_tvmonitor.txt"].split()[:3] == [
        "2008_000004",
        "0.500000",
        "4.000000",
    ]
    assert files["results/VOC2012/Main/comp3_det_test_cat.txt"] == ""
    first = submission.file.read_bytes()
    submit(evaluation, dataset, tmp_path / "out", competition="comp3")
    assert submission.file.read_bytes() == first
    assert [path.name for path in (tmp_path / "out").iterdir()] == [submission.file.name]


def test_a_case_by_hand_for_coco(tmp_path):
    """Boxes are x, y and inclusive sizes, categories those of the annotation file, the JSON is alone in its archive."""
    dataset = open_test(coco_test(tmp_path), COCO_CLASSES, "test-dev2017")
    ids = [record.image_id for record in dataset.records]
    evaluation = found([1, 0], [1, 80], [[10, 20, 39, 79], [0, 0, 127, 95]], [0.5, 1.0], COCO_CLASSES, ids)
    evaluation = replace(evaluation, category_ids=dataset.category_ids)
    submission = submit(evaluation, dataset, tmp_path / "out", algorithm="RefineDet320")
    assert submission.file == tmp_path / "out" / "detections_test-dev2017_RefineDet320_results.zip"
    names, rows = read_zip(submission.file)
    assert names == ["detections_test-dev2017_RefineDet320_results.json"]
    assert rows == [
        {"image_id": 397133, "category_id": 90, "bbox": [0.0, 0.0, 128.0, 96.0], "score": 1.0},
        {"image_id": 37777, "category_id": 1, "bbox": [10.0, 20.0, 30.0, 60.0], "score": 0.5},
    ]


def test_coco_gets_the_best_hundred_of_an_image_and_category(tmp_path):
    dataset = open_test(coco_test(tmp_path), COCO_CLASSES, "test-dev2017")
    ids = [record.image_id for record in dataset.records]
    scores = np.random.default_rng(0).permutation(np.arange(300) / 300)
    evaluation = found([1] * 300, [3] * 250 + [4] * 50, [[0, 0, 9, 9]] * 300, scores, COCO_CLASSES, ids)
    submission = submit(replace(evaluation, category_ids=dataset.category_ids), dataset, tmp_path / "out")
    assert submission.detections == 150
    rows = read_zip(submission.file)[1]
    kept = [row["score"] for row in rows if row["category_id"] == 3]
    assert kept == pytest.approx(sorted(scores[:250], reverse=True)[:100], abs=1e-8)
    assert sum(row["category_id"] == 4 for row in rows) == 50


def test_rounding_is_no_fault(tmp_path):
    """The mean of boxes at the edge of an image may be a rounding error outside it."""
    dataset = open_test(voc_test(tmp_path / "VOC2012"))
    submission = submit(found([0], [15], [[-1e-4, 5, 127.00002, 4.99999]], [0.5]), dataset, tmp_path / "out")
    text = read_archive(submission.file)["results/VOC2012/Main/comp4_det_test_person.txt"]
    assert text == "2008_000001 0.500000 1.000000 6.000000 128.000000 6.000000\n"


def test_voc_test_has_no_annotations(tmp_path, voc_model, capsys):
    """Some annotations, of other tasks, are no annotations: VOC2012 test has such."""
    root = voc_test(tmp_path / "VOC2012", annotated=(IDS[0],))
    arguments = ["evaluate", str(voc_model), "--data", str(root), "--submit", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*arguments, "--out", str(tmp_path / "numbers")]) == 0
    assert json.loads((tmp_path / "numbers" / "evaluation.json").read_text())["mean_ap"] is None
    shown = capsys.readouterr().out
    assert "No AP: the split has no annotations here" in shown
    assert f"For the server: {tmp_path / 'out' / 'comp4_det_test.tar.gz'} (3 images, " in shown
    assert "person" not in shown
    assert cli.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["mean_ap"] is None
    assert (document["submission"]["images"], document["submission"]["annotated"]) == (3, False)
    lines = "".join(read_archive(tmp_path / "out" / "comp4_det_test.tar.gz").values()).splitlines()
    assert len(lines) == document["submission"]["detections"] > 0
    for line in lines:
        name, score, *box = line.split()
        x1, y1, x2, y2 = map(float, box)
        assert name in IDS
        assert 0 <= float(score) <= 1
        assert 1 <= x1 <= x2 <= SIZE[1]
        assert 1 <= y1 <= y2 <= SIZE[0]


def test_the_numbers_survive_where_the_file_of_the_server_cannot_be_written(tmp_path, voc_model, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refinedet.evaluation.submit._write_voc", full)
    root, numbers = voc_test(tmp_path / "VOC2012"), tmp_path / "numbers"
    arguments = ["evaluate", str(voc_model), "--data", str(root), "--submit", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*arguments, "--out", str(numbers), "--json", str(tmp_path / "numbers.json")]) == 2
    assert json.loads((numbers / "detections.json").read_text())
    assert "submission" not in json.loads((tmp_path / "numbers.json").read_text())


def test_the_table_is_shown_when_the_file_for_the_server_fails(tmp_path, voc_model, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refinedet.evaluation.submit._write_voc", full)
    root = voc_test(tmp_path / "VOC2007", annotated=IDS)
    arguments = ["evaluate", str(voc_model), "--data", str(root), "--submit", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(arguments) == 2
    assert "mean AP@0.5" in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["voc", "coco"])
def test_coco_test_has_no_annotations(tmp_path, coco_model, metric, capsys):
    root = coco_test(tmp_path / "coco")
    options = ["--split", "test-dev2017", "--metric", metric, "--device", "cpu"]
    assert (
        cli.main(["evaluate", str(coco_model), "--data", str(root), "--submit", str(tmp_path / "out"), *options]) == 0
    )
    assert "No AP" in capsys.readouterr().out
    file = tmp_path / "out" / "detections_test-dev2017_tiny-coco_results.zip"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "unpacked")
    truth = COCO(str(root / "annotations" / "image_info_test-dev2017.json"))
    loaded = truth.loadRes(str(next((tmp_path / "unpacked").iterdir())))
    assert len(loaded.anns) == len(read_zip(file)[1]) > 0
    assert {row["category_id"] for row in loaded.anns.values()} <= set(truth.getCatIds())


def test_ap_beside_the_file_where_there_are_annotations(tmp_path, voc_model, coco_model):
    root = voc_test(tmp_path / "VOC2007", annotated=IDS)
    evaluation, submission = submit_checkpoint(voc_model, root, "test", tmp_path / "out", progress=False)
    assert evaluation.mean_ap == evaluate_checkpoint(voc_model, root, "test", progress=False).mean_ap
    assert evaluation.mean_ap is not None
    assert submission.annotated
    root = coco_test(tmp_path / "coco", annotated=True)
    evaluation, submission = submit_checkpoint(coco_model, root, "test-dev2017", tmp_path / "out", progress=False)
    assert evaluation.mean_ap is not None
    assert submission.annotated


def test_without_submit_a_split_needs_annotations(tmp_path, voc_model, coco_model):
    with pytest.raises(DataError, match=r"2008_000001\.xml: no such annotation file.*--submit DIR"):
        evaluate_checkpoint(voc_model, voc_test(tmp_path / "VOC2012"), "test", progress=False)
    with pytest.raises(
        DataError, match=r"image_info_test-dev2017.json: lists images without annotations.*--submit DIR"
    ):
        evaluate_checkpoint(coco_model, coco_test(tmp_path / "coco"), "test-dev2017", progress=False)


def test_missing_images_are_named(tmp_path):
    root = voc_test(tmp_path / "VOC2012")
    dataset = open_test(root)
    some = found([0], [1], [[0, 0, 9, 9]], [0.5], ids=IDS[:1])
    with pytest.raises(InputError, match=r"2 of 3 images were not run \(2008_000004, 2012_000003\)"):
        submit(some, dataset, tmp_path / "out")
    for name in IDS[1:]:
        (root / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 3 images are not in .*JPEGImages \(2008_000004, 2012_000003\)"):
        open_test(root)
    root = coco_test(tmp_path / "coco")
    for number in (37777, 252219):
        (root / "test2017" / f"{number:012d}.png").unlink()
    with pytest.raises(
        DataError, match=r"2 of its 3 images are not in .*test2017 \(000000037777\.png, 000000252219\.png"
    ):
        open_test(root, COCO_CLASSES, "test-dev2017")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": (*IDS, "2010_000001")}, "2010_000001 do not belong to the split"),
        ({"ids": (*IDS, IDS[0])}, "were run twice"),
        ({"boxes": [[0, 0, 128, 9]]}, r"2008_000001: box .* is not inside 128x96 pixels"),
        ({"boxes": [[0, -1, 9, 9]]}, "is not inside"),
        ({"boxes": [[9, 0, 8, 9]]}, "is not inside"),
        ({"boxes": [[np.nan, 0, 8, 9]]}, "is not inside"),
        ({"scores": [1.5]}, "score 1.5"),
        ({"scores": [np.nan]}, "score nan"),
        ({"labels": [21]}, "label 21"),
        ({"labels": [0]}, "label 0"),
        ({"images": [], "labels": [], "boxes": [], "scores": []}, "no detection at all"),
    ],
)
def test_what_the_server_would_refuse(tmp_path, change, message):
    dataset = open_test(voc_test(tmp_path / "VOC2012"))
    sound = {"images": [0], "labels": [15], "boxes": [[0, 0, 127, 95]], "scores": [1.0]}
    submit(found(**sound), dataset, tmp_path / "sound")
    with pytest.raises(InputError, match=message):
        submit(found(**{**sound, **change}), dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_and_classes_are_checked_before_any_image_is_run(tmp_path, voc_model, coco_model, monkeypatch):
    def run(*_, **__):
        raise AssertionError("an image was run")

    monkeypatch.setattr("refinedet.evaluation.submit.evaluate", run)
    root, out = voc_test(tmp_path / "VOC2012"), tmp_path / "out"
    others = tiny_checkpoint(tmp_path / "other.safetensors", classes=("person", "tree"))
    with pytest.raises(InputError, match=r"20 classes; the model .* lacks aeroplane.* and of others has tree"):
        submit_checkpoint(others, root, "test", out)
    with pytest.raises(InputError, match="competition is 'comp5'"):
        submit_checkpoint(voc_model, root, "test", out, competition="comp5")
    with pytest.raises(InputError, match="such as VOC2012; call the folder so"):
        submit_checkpoint(voc_model, voc_test(tmp_path / "mine"), "test", out)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file; give a folder"):
        submit_checkpoint(voc_model, root, "test", tmp_path / "file")
    coco = coco_test(tmp_path / "coco")
    with pytest.raises(InputError, match="algorithm is 'a/b'"):
        submit_checkpoint(coco_model, coco, "test-dev2017", out, algorithm="a/b")
    with pytest.raises(InputError, match="algorithm is ''"):
        submit_checkpoint(coco_model, coco, "test-dev2017", out, algorithm="")
    with pytest.raises(InputError, match="COCO takes its 80 classes"):
        submit_checkpoint(voc_model, coco, "test-dev2017", out)
    with pytest.raises(InputError, match=r"algorithm is 'a', which is of COCO's server; leave it out for .*VOC2012"):
        submit_checkpoint(voc_model, root, "test", out, algorithm="a")
    with pytest.raises(InputError, match=r"competition is 'comp4', which is of VOC's server; leave it out for .*coco"):
        submit_checkpoint(coco_model, coco, "test-dev2017", out, competition="comp4")
    assert not out.exists()
    (tmp_path / "taken" / "comp4_det_test.tar.gz").mkdir(parents=True)
    with pytest.raises(InputError, match=r"comp4_det_test\.tar\.gz: is a folder, where the server's file is to be"):
        submit_checkpoint(voc_model, root, "test", tmp_path / "taken")
    with pytest.raises(NotADirectoryError, match="file/deep"):
        submit_checkpoint(voc_model, root, "test", tmp_path / "file" / "deep")


def test_options_of_a_submission_need_one(tmp_path, voc_model, capsys):
    arguments = ["evaluate", str(voc_model), "--data", str(voc_test(tmp_path / "VOC2012", IDS))]
    assert cli.main([*arguments, "--competition", "comp3"]) == 2
    assert "--competition says how to submit; give --submit DIR too" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    dataset = open_test(voc_test(tmp_path / "VOC2012"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(OSError, match=r"No space.*comp4_det_test.tar.gz"):
        submit(found([0], [1], [[0, 0, 9, 9]], [0.5]), dataset, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("name", "expected"), [("runs/a b_c/my_model.safetensors", "my-model"), ("...", "refinedet")])
def test_a_checkpoint_names_its_method(name, expected):
    assert default_algorithm(name) == expected
