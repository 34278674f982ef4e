"""Testing protocols as they run: the same objects as a plain loop over images, scales and mirror images."""

import copy
import gc
import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.synthetic import CLASSES, FixedNetwork, make_voc, scene, tiny_model

from refinedet import ops
from refinedet.data import open_dataset
from refinedet.errors import InputError
from refinedet.evaluation.evaluate import evaluate, evaluate_checkpoint
from refinedet.inference import detector as detector_module
from refinedet.inference.detector import Detector
from refinedet.models import ModelConfig, allocate
from refinedet.preprocessing import prepare
from refinedet.presets import COCO, OFFICIAL
from refinedet.protocols import PROTOCOLS, Protocol, Scale, Thresholds
from refinedet.records import Detections

LOOSE = Thresholds(0.2, 0.45, 50, 40)
SCALES = (
    Scale((64, 128), flipped=True),
    Scale((64, 128), turned=True, flipped=True, max_side_above=20),
    Scale(128, flipped=True, min_side_below=60, thresholds=Thresholds(0.1, 0.3, 20, 10)),
    Scale(original=False, flipped=True),
)
PICTURES = [scene(1)[0], scene(2, height=150, width=90)[0], scene(3)[0]]


@pytest.fixture(scope="module")
def network():
    return tiny_model(64)


def plain_loop(network, picture: np.ndarray, protocol: Protocol) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, scores and labels of all looks before they are merged, one after the other, as users write it."""
    height, width = picture.shape[:2]
    found = []
    for scale in protocol.scales:
        size = scale.size or network.config.size
        if scale.turned and height >= width:
            size = size[::-1]
        for flipped in scale.flips:
            seen = cv2.flip(picture, 1) if flipped else picture
            with torch.no_grad():
                raw = network(prepare(seen, size, network.config.preprocessing)[None])
            t = scale.thresholds or protocol.thresholds
            rows = ops.detect(
                *raw, network.anchors_for(size),
                score_threshold=t.score_threshold, iou_threshold=t.nms_iou, top_k=t.top_k, keep_top_k=t.keep_top_k,
            )  # fmt: skip
            n = int(rows.counts)
            boxes = rows.boxes[0, :n].numpy() * np.array([width, height] * 2, np.float32)
            boxes = np.clip(boxes, 0, np.array([width - 1, height - 1] * 2, np.float32))
            if flipped:
                boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            sides = boxes[:, 2:] - boxes[:, :2] + 1
            kept = np.ones(n, bool)
            if scale.min_side_below is not None:
                kept &= sides.min(axis=1) < scale.min_side_below
            if scale.max_side_above is not None:
                kept &= sides.max(axis=1) > scale.max_side_above
            found.append((boxes[kept], rows.scores[0, :n].numpy()[kept], rows.labels[0, :n].numpy()[kept]))
    return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))


@pytest.fixture(scope="module")
def looks(network) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What a plain loop finds in each of the pictures."""
    return [plain_loop(network, picture, Protocol("mine", SCALES, LOOSE)) for picture in PICTURES]


def merge_plainly(boxes, scores, labels, protocol: Protocol) -> ops.Detected:
    rows = boxes[None], scores[None], labels[None]
    if protocol.merge == "none":
        order = scores.argsort(descending=True, stable=True)
        return ops.Detected(*(column[:, order] for column in rows), order[None], torch.tensor([len(order)]))
    if protocol.merge == "soft_nms":
        return ops.soft_nms(*rows, iou_threshold=0.3, score_threshold=0.2, official=True)
    return ops.vote(*rows, iou_threshold=0.45, soft=protocol.merge == "soft_vote", score_threshold=0.2, official=True)


def assert_found(found: Detections, expected: ops.Detected) -> None:
    count = int(expected.counts)
    assert len(found.scores) == count > 10
    torch.testing.assert_close(found.scores, expected.scores[0, :count], atol=1e-5, rtol=1e-4)
    assert torch.equal(found.labels, expected.labels[0, :count])
    height, width = found.size
    end = torch.tensor([width - 1, height - 1] * 2)
    torch.testing.assert_close(found.boxes, torch.minimum(expected.boxes[0, :count], end), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("merge", ["none", "soft_nms", "vote", "soft_vote"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_objects_are_those_of_a_plain_loop(network, looks, merge, batch_size):
    protocol = Protocol("mine", SCALES, LOOSE, merge=merge)
    found = Detector(network).detect(PICTURES, protocol=protocol, batch_size=batch_size)
    for rows, detections in zip(looks, found, strict=True):
        assert_found(detections, merge_plainly(*rows, protocol))
        assert detections.names == [CLASSES[label - 1] for label in detections.labels.tolist()]


def assert_equal(found: Detections, expected: Detections) -> None:
    assert len(found.scores) == len(expected.scores) > 0
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.names, found.size) == (expected.names, expected.size)


def test_voc_is_what_a_model_of_the_official_preset_does_alone(network):
    detector = Detector(network)
    for alone, tested in zip(detector.detect(PICTURES), detector.detect(PICTURES, protocol="voc"), strict=True):
        assert_equal(tested, alone)


def test_a_model_of_the_coco_preset_detects_by_coco(network):
    official, coco = Detector(network), Detector(network, preset=COCO)
    for alone, tested in zip(coco.detect(PICTURES), official.detect(PICTURES, protocol="coco"), strict=True):
        assert_equal(tested, alone)
    picture = PICTURES[0]
    with torch.no_grad():
        raw = network(prepare(picture, (64, 64), network.config.preprocessing)[None])
    room = 3 * len(network.anchors)
    rows = ops.detect(*raw, network.anchors, score_threshold=0.016, iou_threshold=2.0, top_k=room, keep_top_k=room)
    sides = torch.tensor([128.0, 96.0, 128.0, 96.0])
    boxes = torch.minimum((rows.boxes * sides).clamp(min=0), sides - 1)
    expected = ops.soft_nms(boxes, rows.scores, rows.labels, iou_threshold=0.3, score_threshold=0.016, official=True)
    assert_found(coco.detect(picture)[0], expected)


@pytest.mark.parametrize("preset", [OFFICIAL, COCO])
def test_evaluate_finds_what_detect_finds(network, tmp_path, preset):
    dataset = open_dataset(make_voc(tmp_path, {"test": 3}), "test", classes=CLASSES)
    detector = Detector(network, preset=preset)
    paths = [dataset[i].path for i in range(len(dataset))]
    for protocol in (None, Protocol("mine", SCALES, LOOSE, merge="soft_vote")):
        result = evaluate(detector, dataset, protocol=protocol, batch_size=2, progress=False)
        for i, found in enumerate(detector.detect(paths, protocol=protocol, batch_size=2)):
            rows = result.found.images == i
            assert np.array_equal(result.found.boxes[rows], found.boxes.double().numpy())
            assert np.array_equal(result.found.scores[rows], found.scores.numpy())
            assert np.array_equal(result.found.labels[rows], found.labels.numpy())
            assert rows.sum() > 0


def test_batches_hold_an_image_with_its_mirror_image_and_no_more_pixels_than_the_images_of_a_batch():
    network = FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.9])
    detector = Detector(network)
    detector.detect(PICTURES, protocol=Protocol("mine", (Scale(flipped=True),)), batch_size=3)
    assert [len(inputs) for inputs in network.inputs] == [2, 2, 2]
    network.inputs.clear()
    detector.detect(PICTURES[:1] * 8, protocol=Protocol("mine", (Scale(flipped=True),)))
    assert [len(inputs) for inputs in network.inputs] == [8, 8]
    assert torch.equal(network.inputs[0][:4].flip(-1), network.inputs[0][4:])


def test_an_image_is_read_and_normalised_once(network, tmp_path, monkeypatch):
    calls = []

    def counted(name):
        original = getattr(detector_module, name)
        monkeypatch.setattr(detector_module, name, lambda *args: calls.append(name) or original(*args))

    counted("as_bgr")
    counted("normalize")
    cv2.imwrite(str(tmp_path / "picture.png"), PICTURES[0])
    Detector(network).detect(tmp_path / "picture.png", protocol=Protocol("mine", SCALES, LOOSE))
    assert sorted(calls) == ["as_bgr", "normalize"]


def test_anchors_are_made_once_for_each_size_and_go_with_the_network(monkeypatch):
    network = copy.deepcopy(tiny_model(64))
    made = []
    original = type(network).anchors_for
    monkeypatch.setattr(type(network), "anchors_for", lambda self, size: made.append(size) or original(self, size))
    for _ in range(2):
        Detector(network).detect(PICTURES, protocol=Protocol("mine", (Scale(), Scale(128), Scale((64, 128)))))
    assert made == [(128, 128), (64, 128)]
    assert network in detector_module._ANCHORS
    known = len(detector_module._ANCHORS)
    del network
    gc.collect()
    assert len(detector_module._ANCHORS) == known - 1


def assert_best_are_left(detector: Detector, protocol: Protocol) -> None:
    (every,) = detector.detect(PICTURES[0], protocol=protocol)
    threshold = float(every.scores[len(every.scores) // 3])
    (some,) = detector.detect(PICTURES[0], protocol=protocol, score_threshold=threshold)
    count = int((every.scores > threshold).sum())
    assert 0 < count < len(every.scores)
    assert torch.equal(some.scores, every.scores[:count])
    assert torch.equal(some.boxes, every.boxes[:count])


@pytest.mark.parametrize("merge", ["none", "soft_nms"])
@pytest.mark.parametrize("name", ["voc", "coco"])
def test_a_higher_score_threshold_leaves_the_best(network, merge, name):
    """Where nothing is voted a threshold is asked early, which finds the same as asking in the end."""
    assert_best_are_left(Detector(network), replace(PROTOCOLS[name], scales=SCALES[:2], merge=merge, merge_iou=None))


@pytest.mark.parametrize("merge", ["vote", "soft_vote"])
def test_a_vote_is_asked_for_its_score_in_the_end(network, merge):
    assert_best_are_left(Detector(network), Protocol("mine", SCALES[:2], LOOSE, merge=merge))


def test_a_lower_score_threshold_is_asked_of_soft_nms_too(network):
    detector = Detector(network, preset=replace(COCO, score_threshold=0.3))
    (few,), (many,) = detector.detect(PICTURES[0]), detector.detect(PICTURES[0], score_threshold=0.016)
    assert_equal(many, Detector(network, preset=COCO).detect(PICTURES[0])[0])
    assert len(few.scores) < len(many.scores)


@pytest.mark.parametrize("merge", ["none", "soft_nms", "vote"])
def test_a_score_threshold_does_not_lower_a_higher_one_of_a_single_scale(merge):
    """A box of score 0.8 is found by both looks, of which the second one asks for more."""
    detector = Detector(FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.8]))
    scales = Scale(), Scale(thresholds=Thresholds(score_threshold=0.9))
    for protocol_scales, count in ((scales, 1), (scales[1:], 0)):
        protocol = Protocol("mine", protocol_scales, merge=merge)
        for threshold in (None, 0.005, 0.5):
            (found,) = detector.detect(PICTURES[0], protocol=protocol, score_threshold=threshold)
            assert len(found.scores) == count


def test_a_score_threshold_lowers_all_that_no_scale_has_of_its_own():
    detector = Detector(FixedNetwork([[0.25, 0.25, 0.75, 0.75]], [1], [0.8]))
    strict = Thresholds(score_threshold=0.9)
    for scale in (Scale(), Scale(thresholds=replace(strict, top_k=7)), Scale(thresholds=Thresholds())):
        protocol = Protocol("mine", (scale,), strict)
        (found,) = detector.detect(PICTURES[0], protocol=protocol, score_threshold=0.5)
        assert len(found.scores) == 1


def test_boxes_of_mirror_images_stay_in_the_image():
    network = FixedNetwork([[-1.0, -1.0, 2.0, 2.0]], [1], [0.9])
    (found,) = Detector(network).detect(PICTURES[0], protocol=Protocol("mine", (Scale(flipped=True),)))
    assert found.boxes.tolist() == [[0.0, 0.0, 127.0, 95.0], [1.0, 0.0, 127.0, 95.0]]


def test_streams_and_single_images_take_a_protocol(network):
    detector, protocol = Detector(network), Protocol("mine", SCALES, LOOSE, merge="vote")
    (alone,) = detector.detect(PICTURES[0], protocol=protocol, batch_size=1)
    assert_equal(next(detector.detect_stream(iter(PICTURES), protocol=protocol, batch_size=1)), alone)


def test_progress_shows_images_and_scales(network, monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stderr)
    Detector(network).detect(PICTURES, protocol=Protocol("mine", SCALES, LOOSE), batch_size=2, progress=True)
    shown = stderr.getvalue()
    assert "3/3" in shown
    for text in ("scale 1 of 4, 64x128", "scale 2 of 4, 128x64", "scale 3 of 4, 128x128", "scale 4 of 4, 64x64"):
        assert text in shown


def test_a_size_that_the_backbone_does_not_take_is_told_before_any_is_run(monkeypatch):
    """Inception's convolutions do not pad: of 64 pixels nothing is left."""
    network = allocate(ModelConfig("timm:inception_v3", (320, 320), CLASSES, tcb_channels=8))
    monkeypatch.setattr(network, "forward", None)
    protocol = Protocol("mine", (Scale(320), Scale(64)), LOOSE)
    with pytest.raises(
        InputError, match="protocol mine, scale 2: backbone 'timm:inception_v3' does not take images of"
    ):
        Detector(network).detect(PICTURES, protocol=protocol)


BAD = ("voc_multi", Protocol, 3)


@pytest.mark.parametrize("protocol", BAD)
def test_a_bad_protocol_is_told_before_any_image_is_read(network, protocol, tmp_path):
    detector = Detector(network)
    unread = tmp_path / "no_image.png"
    unread.write_bytes(b"not an image")
    with pytest.raises(InputError, match="protocol"):
        detector.detect(unread, protocol=protocol)
    with pytest.raises(InputError, match="protocol"):
        detector.detect_stream([unread], protocol=protocol)
    with pytest.raises(InputError, match="protocol"):
        evaluate_checkpoint(tmp_path / "no_checkpoint", tmp_path, protocol=protocol)
