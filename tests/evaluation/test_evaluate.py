"""Evaluation of a model on a data set, from images on disk to files in a folder."""

import json
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.paths import GOLDEN
from support.synthetic import CLASSES, FixedNetwork, make_coco, make_voc, tiny_checkpoint, tiny_model
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from refinedet.commands import main as cli
from refinedet.data import DetectionDataset, open_dataset
from refinedet.data.images import image_size
from refinedet.errors import DataError, InputError
from refinedet.evaluation.coco_ap import coco_ap
from refinedet.evaluation.evaluate import evaluate, evaluate_checkpoint
from refinedet.evaluation.pixels import truth_to_pixels
from refinedet.inference.detector import Detector
from refinedet.inference.timing import STAGES
from refinedet.preprocessing import prepare
from refinedet.presets import OFFICIAL
from refinedet.records import RawOutput, Sample

HEIGHT, WIDTH = 96, 128  # of the synthetic images
SIDES = (WIDTH, HEIGHT, WIDTH, HEIGHT)
PADILLA = GOLDEN / "eval" / "padilla_voc"
ONE = pytest.approx(1.0, abs=1e-12)  # COCOeval adds an epsilon to its denominators


class ScriptedNetwork(nn.Module):
    """Finds in the i-th image it sees what the i-th of ``networks`` finds."""

    def __init__(self, networks):
        super().__init__()
        first = networks[0]
        self.config, self.anchors, self.device, self.dtype = first.config, first.anchors, first.device, first.dtype
        self.script = iter(networks)
        self.batch_sizes = []
        self.modes = []

    def forward(self, images, *, by_level=False):
        self.batch_sizes.append(len(images))
        self.modes.append(self.training)
        outputs = [next(self.script)(image[None]) for image in images]
        return RawOutput(*(torch.cat(tensors) for tensors in zip(*outputs, strict=True)))


def perfect_detector(dataset, *, one_based, leave_out=()):
    """Finds every annotated object, but those of the images ``leave_out``, so that its pixels come out exact.

    The scripts take the network's corners as 0-based inclusive pixels, and add 1 for VOC's frame.
    """
    networks = []
    for i in range(len(dataset)):
        sample = dataset[i]
        boxes = sample.boxes - (np.array(1) if one_based else np.array((0, 0, 1, 1))) / SIDES
        kept = slice(0) if i in leave_out else slice(None)
        networks.append(FixedNetwork(boxes[kept], sample.labels[kept].tolist(), [0.9] * len(sample.labels[kept])))
    return Detector(ScriptedNetwork(networks))


@pytest.fixture
def voc(tmp_path):
    return open_dataset(make_voc(tmp_path / "voc", {"test": 3}), "test")


@pytest.fixture
def coco(tmp_path):
    return open_dataset(make_coco(tmp_path / "coco", {"val": 3}), "val")


def test_images_come_in_order_and_prepared_as_the_evaluation_script_does(tmp_path):
    dataset = open_dataset(make_voc(tmp_path, {"test": 7}), "test")
    network = FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.9], size=(64, 192))
    result = evaluate(Detector(network), dataset, batch_size=3, progress=False)
    assert [len(inputs) for inputs in network.inputs] == [3, 3, 1]
    samples = [dataset[i] for i in range(len(dataset))]
    assert result.image_ids == [sample.image_id for sample in samples]
    for blob, sample in zip(torch.cat(network.inputs), samples, strict=True):
        assert torch.equal(blob, prepare(sample.image, (64, 192), network.config.preprocessing))


@pytest.mark.parametrize("data", ["voc", "coco"])
@pytest.mark.parametrize("metric", ["voc", "coco"])
def test_perfect_detector(data, metric, request):
    dataset = request.getfixturevalue(data)
    result = evaluate(perfect_detector(dataset, one_based=data == "voc"), dataset, metric=metric, progress=False)
    assert result.mean_ap == ONE
    assert [row.name for row in result.rows] == list(CLASSES)
    assert [(row.ap, row.precision, row.recall, row.f1) for row in result.rows] == [(ONE, 1.0, 1.0, 1.0)] * 2
    assert sum(row.ground_truth for row in result.rows) == sum(len(dataset[i].labels) for i in range(3))
    assert [row.detections for row in result.rows] == [row.ground_truth for row in result.rows]
    if metric == "coco":
        small = ("AP", "AP50", "AP75", "APs", "AR10", "AR100", "ARs")  # no object is above 32 x 32 pixels
        assert {name: result.coco[name] for name in small} == dict.fromkeys(small, ONE)
        assert {result.coco[name] for name in ("APm", "APl", "ARm", "ARl")} == {None}
    else:
        assert result.coco is None


@pytest.mark.parametrize("data", ["voc", "coco"])
def test_missed_image_costs_its_objects(data, request):
    dataset = request.getfixturevalue(data)
    detector = perfect_detector(dataset, one_based=data == "voc", leave_out=[1])
    result = evaluate(detector, dataset, batch_size=2, progress=False)
    labels = [dataset[i].labels for i in range(3)]
    for label, row in enumerate(result.rows, start=1):
        objects = [int((found == label).sum()) for found in labels]
        recall = (objects[0] + objects[2]) / sum(objects)
        assert (row.ground_truth, row.detections) == (sum(objects), objects[0] + objects[2])
        assert (row.ap, row.recall, row.precision) == (pytest.approx(recall), pytest.approx(recall), 1.0)
    assert result.mean_ap == pytest.approx(np.mean([row.ap for row in result.rows]))
    assert detector.network.batch_sizes == [2, 1]


def test_eleven_points(voc):
    areas = evaluate(perfect_detector(voc, one_based=True, leave_out=[1]), voc, progress=False)
    points = evaluate(perfect_detector(voc, one_based=True, leave_out=[1]), voc, metric="voc07", progress=False)
    for by_area, by_points in zip(areas.rows, points.rows, strict=True):
        levels = np.arange(0, 1.1, 0.1)
        assert by_points.ap == pytest.approx((levels <= by_area.recall).sum() / 11)
    assert "11-point" in points.measure


def test_network_box_to_pixels_is_that_of_the_released_scripts(voc):
    """x * W, clipped to [0, W-1]; COCO's width x2 - x1 + 1 (spec 1.3, 10.5)."""
    detector = Detector(FixedNetwork([(0.25, 0.5, 1.5, 0.75), (-0.5, 0.0, 0.5, 0.25)], [1, 2], [0.9, 0.8]))
    found = list(evaluate(detector, voc, progress=False).coco_results())
    assert len(found) == 6
    assert [row["image_id"] for row in found] == [voc[i].image_id for i in (0, 0, 1, 1, 2, 2)]
    assert [row["category_id"] for row in found] == [1, 2] * 3
    np.testing.assert_allclose([row["bbox"] for row in found[:2]], [[32, 48, 96, 25], [0, 0, 65, 25]], atol=1e-3)
    np.testing.assert_allclose([row["score"] for row in found[:2]], [0.9, 0.8], atol=1e-6)


def test_ground_truth_to_pixels():
    image = np.zeros((100, 200, 3), np.uint8)
    unit = (np.array([[1, 1, 200, 100], [31, 41, 50, 60]]) / (200, 100, 200, 100)).astype(np.float32)
    sample = Sample(image, unit, np.array([1, 1]), np.array([False, False]), "a.jpg", "a")
    one_based = sample._replace(one_based=True)
    np.testing.assert_array_equal(truth_to_pixels(one_based), [[0, 0, 199, 99], [30, 40, 49, 59]])
    np.testing.assert_array_equal(truth_to_pixels(sample), [[1, 1, 199, 99], [31, 41, 49, 59]])


class Wrapper:
    """What a user puts around a data set."""

    def __init__(self, dataset, numbers):
        self.dataset, self.numbers, self.classes = dataset, numbers, dataset.classes

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.dataset[self.numbers[index]]


def joined(dataset):
    return DetectionDataset("both", dataset.classes, [*dataset.records, *dataset.records])


def derived(dataset):
    class Mine(type(dataset)):
        pass

    dataset.__class__ = Mine
    return dataset


def shortened(dataset):
    dataset.records = dataset.records[:2]
    return dataset


def subset(dataset):
    chosen = Subset(dataset, [2, 0])
    chosen.classes = dataset.classes
    return chosen


def concatenated(dataset):
    both = ConcatDataset([dataset, dataset])
    both.classes = dataset.classes
    return both


@pytest.mark.parametrize("data", ["voc", "coco"])
@pytest.mark.parametrize("metric", ["voc", "coco"])
@pytest.mark.parametrize(
    "change", [joined, derived, shortened, subset, concatenated, lambda dataset: Wrapper(dataset, [1, 1, 2])]
)
def test_a_data_set_that_is_joined_or_wrapped_is_measured_in_its_own_pixels(data, metric, change, request):
    dataset = request.getfixturevalue(data)
    truth = sum(len(sample.labels) for sample in (dataset[i] for i in range(3)))
    dataset = change(dataset)
    detector = perfect_detector(dataset, one_based=data == "voc")
    result = evaluate(detector, dataset, metric=metric, iou_threshold=0.99, progress=False)
    assert result.mean_ap == ONE
    count = sum(row.ground_truth for row in result.rows)
    assert count == sum(len(dataset[i].labels) for i in range(len(dataset)))
    if change in (joined, concatenated):
        assert count == 2 * truth
    if metric == "coco":
        assert result.coco["AR100"] == ONE


def test_voc_and_coco_joined(tmp_path):
    voc = open_dataset(make_voc(tmp_path / "voc", {"test": 2}), "test")
    coco = open_dataset(make_coco(tmp_path / "coco", {"val": 2}), "val")
    both = DetectionDataset("both", voc.classes, [*voc.records, *coco.records])
    for metric in ("voc", "coco"):
        result = evaluate(_detector_of(both), both, metric=metric, iou_threshold=0.99, progress=False)
        assert result.mean_ap == ONE
        assert [row["image_id"] for row in result.coco_results()][::6] == ["000000", 0]


def _detector_of(dataset):
    """The perfect detector of records of either kind."""
    networks = []
    for record in dataset.records:
        shift = np.array(1) if record.one_based else np.array((0, 0, 1, 1))
        height, width = image_size(record.path)
        boxes = record.boxes - shift / np.array((width, height, width, height))
        networks.append(FixedNetwork(boxes, record.labels.tolist(), [0.9] * len(record.labels)))
    return Detector(ScriptedNetwork(networks))


def test_a_wrapper_without_classes_is_one_error(voc):
    with pytest.raises(InputError, match="Subset: the data set has no classes; set them to those of the data set"):
        evaluate(perfect_detector(voc, one_based=True), Subset(voc, [0]), progress=False)


def test_a_wrapper_without_images_is_one_error(voc):
    with pytest.raises(InputError, match="Wrapper: the data set holds no images; nothing can be evaluated"):
        evaluate(perfect_detector(voc, one_based=True), Wrapper(voc, []), progress=False)


def test_areas_of_outlines_are_those_of_the_file(tmp_path):
    """An outline below 32 x 32 pixels makes an object small, whatever its box."""
    root = make_coco(tmp_path, {"val": 1}, height=300, width=400, objects=1)
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for area, size in ((100, "APs"), (50 * 50, "APm"), (None, "APm")):
        content["annotations"][0]["area"] = area
        file.write_text(json.dumps(content))
        dataset = open_dataset(root, "val", classes=CLASSES)
        for data in (dataset, joined(dataset)):
            result = evaluate(perfect_detector(data, one_based=False), data, metric="coco", progress=False)
            assert [name for name in ("APs", "APm", "APl") if result.coco[name] is not None] == [size]


@pytest.mark.parametrize("ids", [(1, "b", "1"), (2**63, 10**399, 0), ("x", "y", "z")])
def test_ids_of_any_kind_are_measured_and_written(tmp_path, ids):
    root = make_coco(tmp_path, {"val": 3})
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for item in content["images"]:
        item["id"] = ids[item["id"]]
    for item in content["annotations"]:
        item["image_id"] = ids[item["image_id"]]
        item["category_id"] = {3: "disc", 7: 2**70}[item["category_id"]]
    content["categories"] = [{"id": "disc", "name": "disc"}, {"id": 2**70, "name": "square"}]
    file.write_text(json.dumps(content))
    dataset = open_dataset(root, "val")
    detector = perfect_detector(dataset, one_based=False, leave_out=[2])
    result = evaluate(detector, dataset, metric="coco", progress=False)
    found = list(result.coco_results())
    assert {row["image_id"] for row in found} == set(ids[:2])
    assert {row["category_id"] for row in found} == {"disc", 2**70}
    expected = coco_ap(json.loads(file.read_text()), found).metrics
    assert result.coco == {name: None if np.isnan(value) else pytest.approx(value) for name, value in expected.items()}
    assert 0 < result.mean_ap < 1
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == found


def test_crowd_is_ignored_by_both_metrics(tmp_path):
    root = make_coco(tmp_path, {"val": 1})
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    crowd = content["annotations"][0]
    crowd["iscrowd"] = 1
    file.write_text(json.dumps(content))
    dataset = open_dataset(root, "val")
    for metric in ("voc", "coco"):
        result = evaluate(perfect_detector(dataset, one_based=False), dataset, metric=metric, progress=False)
        assert sum(row.ground_truth for row in result.rows) == len(content["annotations"]) - 1
        assert sum(row.detections for row in result.rows) == len(content["annotations"])
        assert result.mean_ap == ONE


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [float("nan"), 5, 3, 9]},
        {"bbox": [5, 5, 0, 9]},
        {"bbox": [5, 5, -3, 9]},
        {"area": None, "iscrowd": None},
    ],
)
@pytest.mark.filterwarnings("ignore:.*dropped")
def test_what_the_data_set_drops_or_forgives_the_coco_metric_does_too(tmp_path, change):
    root = make_coco(tmp_path, {"val": 2})
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0].update(change)
    file.write_text(json.dumps(content))
    dataset = open_dataset(root, "val")
    result = evaluate(perfect_detector(dataset, one_based=False), dataset, metric="coco", progress=False)
    assert (result.mean_ap, result.coco["AR100"]) == (ONE, ONE)
    assert sum(row.ground_truth for row in result.rows) == len(content["annotations"]) - ("bbox" in change)


def test_class_without_ground_truth_is_listed_and_left_out(tmp_path):
    root = make_voc(tmp_path, {"test": 1}, objects=1)
    dataset = open_dataset(root, "test", classes=CLASSES)
    present = int(dataset[0].labels[0])
    box = (dataset[0].boxes[0] - np.array(1) / SIDES).tolist()
    for metric in ("voc", "coco"):
        detector = Detector(FixedNetwork([box, box], [1, 2], [0.9, 0.8]))
        result = evaluate(detector, dataset, metric=metric, progress=False)
        absent = result.rows[2 - present]
        assert absent.name == CLASSES[2 - present]
        assert (absent.ap, absent.precision, absent.recall, absent.ground_truth) == (None, None, None, 0)
        assert absent.detections == 1
        assert result.mean_ap == ONE
        line = next(line for line in result.table().splitlines() if line.startswith(absent.name))
        assert line.split() == [absent.name, "0", "1", "-", "-", "-", "-"]
        assert "of 1 classes: 1.000" in result.table()


def test_files(coco, tmp_path):
    out = tmp_path / "new" / "out"
    result = evaluate(perfect_detector(coco, one_based=False, leave_out=[1]), coco, metric="coco", progress=False)
    for _ in range(2):  # the second time over the files of the first
        result.save(out)
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "evaluation.json", "precision_recall.png"]
    saved = json.loads((out / "evaluation.json").read_text())
    assert saved == json.loads(result.to_json())
    assert saved["mean_ap"] == saved["coco"]["AP"] == result.mean_ap
    assert [row["name"] for row in saved["rows"]] == list(CLASSES)
    assert set(saved["seconds"]) == {*STAGES, "metric"}
    assert all(value > 0 for value in saved["seconds"].values())
    assert cv2.imread(str(out / "precision_recall.png")) is not None
    detections = json.loads((out / "detections.json").read_text())
    assert {row["category_id"] for row in detections} == {3, 7}
    again = coco_ap(json.loads(coco.annotation_file.read_text()), detections)
    assert {name: None if np.isnan(value) else value for name, value in again.metrics.items()} == result.coco


def test_table(coco):
    result = evaluate(perfect_detector(coco, one_based=False), coco, metric="coco", progress=False)
    lines = result.table().splitlines()
    assert lines[0].split() == ["class", "objects", "detections", "AP", "precision", "recall", "at", "score"]
    count = str(result.rows[0].ground_truth)
    assert lines[1].split() == ["disc", count, count, "1.000", "1.000", "1.000", "0.900"]
    assert lines[3] == "mean AP@0.50:0.95 of 2 classes: 1.000"
    assert lines[4].startswith("AP 1.000  AP50 1.000  AP75 1.000")
    assert lines[6].startswith("3 images, ")


def test_no_detections(voc, tmp_path):
    for metric in ("voc", "coco"):
        result = evaluate(Detector(tiny_model()), voc, metric=metric, score_threshold=1.0, progress=False)
        assert (result.mean_ap, list(result.coco_results())) == (0.0, [])
        assert [(row.ap, row.detections, row.score_threshold) for row in result.rows] == [(0.0, 0, None)] * 2
        result.save(tmp_path / metric)


def test_score_threshold_overrides_the_preset(voc):
    detector = Detector(FixedNetwork([(0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9)], [1, 1], [0.9, 0.4]))
    found = [len(evaluate(detector, voc, score_threshold=t, progress=False).found.scores) for t in (None, 0.5, 0.95)]
    assert found == [6, 3, 0]


@pytest.mark.parametrize("training", [False, True])
def test_eval_mode_and_back(voc, training):
    detector = perfect_detector(voc, one_based=True)
    detector.network.train(training)
    evaluate(detector, voc, progress=False)
    assert detector.network.modes == [False]
    assert detector.network.training is training


def test_a_frozen_backbone_stays_frozen(voc):
    network = tiny_model().train()
    network.backbone.eval()
    before = [module.training for module in network.modules()]
    evaluate(Detector(network), voc, progress=False)
    assert [module.training for module in network.modules()] == before


def test_progress_goes_to_stderr(voc, capsys):
    evaluate(perfect_detector(voc, one_based=True), voc, metric="coco")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 of 3 images" in captured.err
    evaluate(perfect_detector(voc, one_based=True), voc, metric="coco", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "map"}, "metric is 'map'; choose one of voc, voc07, coco"),
        ({"metric": None}, "metric is None; choose one of voc, voc07, coco"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"iou_threshold": 1.0}, "iou_threshold is 1.0"),
        ({"score_threshold": -0.5}, "score_threshold is -0.5; give a value from 0 to 1"),
    ],
)
def test_bad_options_come_before_any_work(voc, options, message):
    network = FixedNetwork([(0.1, 0.1, 0.3, 0.3)], [1], [0.9])
    with pytest.raises(InputError, match=message):
        evaluate(Detector(network), voc, **options)
    assert network.inputs == []


def test_classes_must_agree(voc):
    detector = Detector(tiny_model(classes=("square", "disc")))
    with pytest.raises(
        InputError, match="classes are square, disc, the data set's disc, square; open the data set with"
    ):
        evaluate(detector, voc)


def test_checkpoint(tmp_path):
    root = make_voc(tmp_path / "voc", {"test": 2})
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors")
    result = evaluate_checkpoint(checkpoint, root, progress=False)
    expected = evaluate(Detector(tiny_model()), open_dataset(root, "test"), progress=False)
    assert result.images == 2
    assert len(result.found.scores) > 0
    assert list(result.coco_results()) == list(expected.coco_results())
    assert result.rows == expected.rows


def test_dtype_at_the_command_line(tmp_path, monkeypatch):
    root = make_voc(tmp_path / "voc", {"test": 2})
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors")
    run, computed = Detector.run, []

    def noting(self, images):
        raw = run(self, images)
        computed.append(raw.odm_conf[0].dtype)
        return raw

    monkeypatch.setattr(Detector, "run", noting)
    for verb in (
        ["evaluate", str(checkpoint), "--data", str(root)],
        ["detect", str(checkpoint), str(root / "JPEGImages"), "--out", str(tmp_path / "out")],
    ):
        for options, expected in (([], torch.float32), (["--dtype", "bfloat16"], torch.bfloat16)):
            computed.clear()
            assert cli.main([*verb, "--device", "cpu", *options]) == 0
            assert set(computed) == {expected}


def test_checkpoint_of_other_classes(tmp_path):
    root = make_voc(tmp_path / "voc", {"test": 2})
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors", classes=("disc", "triangle"))
    message = "class 'square' is not among the 2 known classes .* a trained model knows its own classes only"
    with pytest.raises(DataError, match=message):
        evaluate_checkpoint(checkpoint, root, progress=False)


def test_names_outside_the_data_folder_need_an_option(tmp_path, monkeypatch, capsys):
    root = make_coco(tmp_path / "coco", {"test": 2})
    file = root / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    (root / "test" / content["images"][1]["file_name"]).rename(tmp_path / "outside.png")
    content["images"][1]["file_name"] = "../../outside.png"
    file.write_text(json.dumps(content))
    detector = Detector(FixedNetwork([[0.1, 0.1, 0.3, 0.3]], [1], [0.9]))
    monkeypatch.setattr("refinedet.evaluation.evaluate.load", lambda path, device: detector)
    arguments = ["evaluate", "any", "--data", str(root)]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "file_name '../../outside.png' leaves the data folder" in message
    assert "--allow-outside" in message
    assert cli.main([*arguments, "--allow-outside"]) == 0


def write_padilla(root, side=200):
    """The published case of test_voc_ap.py as a VOC data set; returns a detector that finds its detections."""
    files = sorted((PADILLA / "gts").glob("*.txt"))
    voc = make_voc(root, {"test": len(files)}, height=side, width=side)
    networks = []
    for name, file in zip((voc / "ImageSets/Main/test.txt").read_text().split(), files, strict=True):
        x, y, w, h = np.loadtxt(file, usecols=range(1, 5), ndmin=2).T
        boxes = "".join(
            f"<object><name>disc</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for x1, y1, x2, y2 in zip(x + 1, y + 1, x + w + 1, y + h + 1, strict=True)  # VOC counts from 1
        )
        (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
        score, x, y, w, h = np.loadtxt(PADILLA / "dets" / file.name, usecols=range(1, 6), ndmin=2).T
        corners = np.stack([x, y, x + w, y + h], axis=1) / side
        networks.append(FixedNetwork(corners, [1] * len(score), score.tolist(), preset=replace(OFFICIAL, nms_iou=1.0)))
    return Detector(ScriptedNetwork(networks))


@pytest.mark.parametrize(
    ("metric", "method", "name"), [("voc", "every_point", "area"), ("voc07", "11point", "11-point")]
)
def test_published_values_at_the_command_line(tmp_path, monkeypatch, capsys, metric, method, name):
    detector = write_padilla(tmp_path)
    monkeypatch.setattr("refinedet.evaluation.evaluate.load", lambda path, device: detector)
    assert cli.main(["evaluate", "any", "--data", str(tmp_path), "--metric", metric, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = json.loads((PADILLA / "expected.json").read_text())[method]["0.5"]
    assert document["rows"][0]["ap"] == pytest.approx(expected, abs=1e-9, rel=0)
    assert (document["rows"][0]["ground_truth"], document["rows"][0]["detections"]) == (15, 24)
    assert document["measure"] == f"AP@0.5 ({name})"


def test_detections_are_kept_as_arrays(tmp_path):
    """Of a large data set the detections are what fills the memory: 52 bytes each, and 24 in the curves."""
    count, images = 160, 40
    dataset = open_dataset(make_voc(tmp_path, {"test": images}), "test")
    low = np.random.default_rng(0).random((count, 2)) / 2
    boxes = np.concatenate([low, low + 0.3], axis=1)
    network = FixedNetwork(boxes, [1, 2] * (count // 2), [0.5] * count, preset=replace(OFFICIAL, nms_iou=1.0))
    evaluate(Detector(network), dataset, progress=False)  # loads what is loaded once
    network.inputs.clear()
    tracemalloc.start()
    result = evaluate(Detector(network), dataset, progress=False)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(result.found.scores) == count * images
    assert kept < 150 * count * images
