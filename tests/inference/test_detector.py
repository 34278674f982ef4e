"""The detector: kinds of input, batching, and boxes in pixels of the original image."""

import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.paths import ROOT
from support.synthetic import CLASSES, FixedNetwork, scene, tiny_model

import refinedet
from refinedet import ops
from refinedet.boxes import box_iou, to_pixels
from refinedet.errors import DataError, InputError
from refinedet.inference.detector import Detector
from refinedet.preprocessing import Preprocessing, prepare
from refinedet.presets import OFFICIAL

BOXES = [[0.25, 0.2, 0.75, 0.6], [-0.1, -0.2, 1.2, 1.1], [0.0, 0.5, 0.1, 0.7]]
LABELS = [1, 2, 1]
SCORES = [0.6, 0.9, 0.3]
EXAMPLE = ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"


def fixed_detector(**options) -> Detector:
    return Detector(FixedNetwork(BOXES, LABELS, SCORES, **options))


def image(height: int = 50, width: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_are_pixels_of_the_original_image_clipped_and_sorted():
    (found,) = fixed_detector().detect(image(50, 200))
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3], abs=1e-5)
    expected = [[0, 0, 199, 49], [50, 10, 150, 30], [0, 25, 20, 35]]
    torch.testing.assert_close(found.boxes, torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)
    assert found.labels.tolist() == [2, 1, 1]
    assert found.labels.dtype == torch.int64
    assert found.names == ["square", "disc", "disc"]
    assert found.size == (50, 200)
    assert found.path is None


def test_one_image_and_a_list_give_lists():
    assert len(fixed_detector().detect(image())) == 1
    assert len(fixed_detector().detect([image(), image()])) == 2
    assert fixed_detector().detect([]) == []


def test_batches_keep_the_order_of_images_of_different_sizes():
    fixed = fixed_detector()
    sizes = [(40, 60), (64, 128), (10, 300), (200, 7), (33, 33)]
    found = fixed.detect([image(*size) for size in sizes], batch_size=2)
    assert [detections.size for detections in found] == sizes
    assert [tuple(blob.shape) for blob in fixed.network.inputs] == [(2, 3, 64, 128), (2, 3, 64, 128), (1, 3, 64, 128)]
    for detections, (height, width) in zip(found, sizes, strict=True):
        expected = torch.tensor([0.25 * width, 0.2 * height, 0.75 * width, 0.6 * height])
        torch.testing.assert_close(detections.boxes[1], expected, atol=1e-3, rtol=0)


def test_every_kind_of_colour_image_reaches_the_network_the_same(tmp_path):
    bgr = image()
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), bgr)
    rgb = torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)
    kinds = [bgr, path, str(path), rgb, rgb.float() / 255, rgb.double() / 255, np.asarray(Image.open(path))[..., ::-1]]
    fixed = fixed_detector()
    found = fixed.detect(kinds)
    expected = prepare(bgr, (64, 128), fixed.preprocessing)
    for blob in fixed.network.inputs[0]:
        assert torch.equal(blob, expected)
    assert [detections.path for detections in found] == [None, str(path), str(path), None, None, None, None]


def test_every_kind_of_grey_image_reaches_the_network_the_same(tmp_path):
    grey = image()[..., 0]
    path = tmp_path / "grey.png"
    cv2.imwrite(str(path), grey)
    kinds = [grey, grey[..., None], path, torch.from_numpy(grey.copy())[None], np.dstack([grey] * 3)]
    fixed = fixed_detector()
    fixed.detect(kinds)
    for blob in fixed.network.inputs[0][1:]:
        assert torch.equal(blob, fixed.network.inputs[0][0])


def test_channel_order_follows_the_models_preprocessing():
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 0] = 255
    for order, channel in (("bgr", 0), ("rgb", 2)):
        fixed = fixed_detector(preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), order=order))
        fixed.detect(blue)
        assert fixed.network.inputs[0][0].amax((1, 2)).tolist() == [255.0 * (channel == c) for c in range(3)]


def test_views_that_are_not_contiguous():
    whole = image(100, 400)
    fixed = fixed_detector()
    fixed.detect([whole[::2, ::-2], whole[::2, ::-2].copy()])
    assert torch.equal(*fixed.network.inputs[0])


def test_a_photograph_is_turned_upright_by_its_exif_orientation(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.fromarray(image(50, 200)).save(path, exif=exif)
    assert fixed_detector().detect(path)[0].size == (200, 50)


def test_the_content_of_a_file_is_an_image(tmp_path):
    Image.fromarray(image(60, 100)).save(tmp_path / "turned.jpg", exif=_turned())
    content = (tmp_path / "turned.jpg").read_bytes()
    detector = fixed_detector()
    (expected,) = detector.detect(tmp_path / "turned.jpg")
    for form in (content, bytearray(content), memoryview(content), [content]):
        (found,) = detector.detect(form)
        assert (found.size, found.path) == (expected.size, None) == ((100, 60), None)
        assert torch.equal(found.boxes, expected.boxes)
    with pytest.raises(DataError, match="image 1: the image file is empty"):
        detector.detect([content, b""])
    with pytest.raises(DataError, match="image 0: not an image"):
        detector.detect(b"photo.jpg")
    with pytest.raises(InputError, match=r"image 0 is a BytesIO; .*file\.read\(\)"):
        detector.detect(io.BytesIO(content))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_score_threshold_defaults_to_the_preset_and_can_be_given():
    assert len(fixed_detector().detect(image())[0].scores) == 3
    assert len(fixed_detector().detect(image(), score_threshold=0.5)[0].scores) == 2
    assert len(fixed_detector().detect(image(), score_threshold=1.0)[0].scores) == 0
    strict = fixed_detector(preset=replace(OFFICIAL, score_threshold=0.7))
    assert strict.detect(image())[0].names == ["square"]
    assert len(strict.detect(image(), score_threshold=0.0)[0].scores) > 1


def test_limits_of_the_preset_are_used():
    assert len(fixed_detector(preset=replace(OFFICIAL, keep_top_k=2)).detect(image())[0].scores) == 2
    nothing = fixed_detector(preset=replace(OFFICIAL, objectness_threshold=1.0))
    assert len(nothing.detect(image())[0].scores) == 0


def test_without_cascade_boxes_are_decoded_from_the_plain_anchors():
    plain = fixed_detector(preset=replace(OFFICIAL, cascade=False))
    network = plain.network
    network.forward = lambda images, by_level, whole=network.forward: whole(images)._replace(
        arm_loc=torch.full_like(network.loc, 3.0).repeat(len(images), 1, 1)
    )
    torch.testing.assert_close(plain.detect(image())[0].boxes, fixed_detector().detect(image())[0].boxes)


def test_the_network_runs_in_eval_mode_and_is_left_as_it_was():
    fixed = fixed_detector()
    fixed.network.train()
    (found,) = fixed.detect(image())
    assert fixed.network.modes == [False]
    assert fixed.network.training
    assert not found.boxes.requires_grad


def test_modules_are_left_in_the_modes_they_were_in():
    """A frozen backbone stays frozen in a network that is in training."""
    network = tiny_model().train()
    network.backbone.eval()
    network.odm.blocks.eval()
    before = [module.training for module in network.modules()]
    statistics = network.tcb.lateral1[0].norm.running_mean.clone()
    Detector(network).detect(image())
    assert [module.training for module in network.modules()] == before
    assert len(set(before)) == 2
    assert torch.equal(network.tcb.lateral1[0].norm.running_mean, statistics)


def test_modules_are_left_in_their_modes_after_an_error(monkeypatch):
    network = tiny_model().train()
    monkeypatch.setattr(network.tcb, "forward", lambda features: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Detector(network).detect(image())
    assert all(module.training for module in network.modules())


def test_a_detector_says_what_it_is_made_of():
    network = tiny_model((64, 128))
    detector = Detector(network)
    assert (detector.size, detector.classes) == ((64, 128), CLASSES)
    assert (detector.preset, detector.preprocessing) == (network.config.preset, network.config.preprocessing)
    assert (detector.device, detector.dtype) == (torch.device("cpu"), torch.float32)
    assert detector.to("cpu") is detector
    assert detector.to(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_thresholds_and_preprocessing_can_be_other_than_the_networks():
    strict, dark = replace(OFFICIAL, score_threshold=0.7), Preprocessing(mean=(255.0, 255.0, 255.0))
    network = fixed_detector().network
    detector = Detector(network, preset=strict, preprocessing=dark)
    assert len(detector.detect(image())[0].scores) == 1
    assert network.inputs[0].max() <= 0
    detector.preset = replace(strict, score_threshold=0.5)
    assert len(detector.detect(image())[0].scores) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_detects_in_another_precision(dtype):
    """Boxes come from exact anchors; the first of a picture is found again, a few hundredths of its side away."""
    expected = refinedet.load("bccd").detect(EXAMPLE, score_threshold=0.5)[0]
    found = refinedet.load("bccd").to(dtype=dtype).detect(EXAMPLE, score_threshold=0.5)[0]
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    overlaps = box_iou(found.boxes, expected.boxes).amax(dim=0)
    assert (overlaps > 0.9).float().mean() > 0.9
    assert abs(len(found.scores) - len(expected.scores)) <= 2


@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (Detector.half, torch.float16),
        (Detector.bfloat16, torch.bfloat16),
        (Detector.double, torch.float64),
        (Detector.float, torch.float32),
        (Detector.cpu, torch.float32),
        (lambda detector: detector.to(torch.float16), torch.float16),
        (lambda detector: detector.to("cpu", torch.float64), torch.float64),
        (lambda detector: detector.to(device="cpu", dtype=torch.bfloat16), torch.bfloat16),
        (lambda detector: detector.half().float(), torch.float32),
    ],
)
def test_casts_as_a_network_does(cast, dtype):
    detector = Detector(tiny_model(128))
    assert cast(detector) is detector
    assert detector.dtype == dtype
    assert torch.equal(detector.network.anchors, refinedet.generate_anchors((128, 128)))
    expected = detector.network(torch.zeros(1, 3, 128, 128, dtype=dtype)).odm_conf
    assert expected.dtype == dtype
    assert detector.detect(image())[0].boxes.dtype == torch.float32


def test_modes_are_the_networks():
    detector = Detector(tiny_model())
    assert detector.train() is detector
    assert detector.network.training
    assert detector.eval() is detector
    assert not detector.network.training


def test_moves_to_a_gpu(monkeypatch):
    """Whichever is meant; here there may be none."""
    detector, moves = Detector(tiny_model()), []
    monkeypatch.setattr(detector.network, "to", lambda device: moves.append(torch.device(device)))
    assert detector.cuda() is detector
    detector.cuda(1)
    detector.cuda(torch.device("cuda", 2))
    assert moves == [torch.device("cuda"), torch.device("cuda", 1), torch.device("cuda", 2)]


def test_stream_reads_one_batch_ahead_at_most():
    taken = []

    def images():
        for index in range(10):
            taken.append(index)
            yield image()

    stream = fixed_detector().detect_stream(images(), batch_size=3)
    assert taken == []
    next(stream)
    assert taken == [0, 1, 2]
    assert len(list(stream)) == 9


def test_results_are_those_of_the_network_and_the_operator_alone():
    network = tiny_model((64, 128))
    picture = scene(1)[0]
    (found,) = Detector(network).detect(picture)
    with torch.no_grad():
        raw = network(prepare(picture, (64, 128), network.config.preprocessing)[None])
        expected = ops.detect(*raw, network.anchors)
    count = int(expected.counts[0])
    assert len(found.scores) == count > 0
    torch.testing.assert_close(found.scores, expected.scores[0, :count])
    scale = torch.tensor([128.0, 96.0, 128.0, 96.0])
    clipped = torch.minimum((expected.boxes[0, :count] * scale).clamp(min=0), torch.tensor([127.0, 95.0, 127.0, 95.0]))
    torch.testing.assert_close(found.boxes, clipped)
    assert found.names == [CLASSES[label - 1] for label in expected.labels[0, :count].tolist()]


def test_the_levels_are_not_concatenated():
    network, picture = tiny_model((64, 128)), scene(1)[0]

    def concatenations(run):
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        return sum(event.name == "aten::cat" for event in profile.events())

    images = prepare(picture, (64, 128), network.config.preprocessing)[None]
    of_backbone = concatenations(lambda: network.backbone(images))
    assert of_backbone > 0
    assert concatenations(lambda: Detector(network, optimize=False).detect(picture)) == of_backbone
    Detector(network).detect(picture)  # makes the network for inference
    assert concatenations(lambda: Detector(network).detect(picture)) < of_backbone
    assert concatenations(lambda: network(images)) == of_backbone + 4


def test_images_in_a_batch_do_not_influence_each_other():
    detector = Detector(tiny_model())
    pictures = [scene(seed, height=60 + 20 * seed)[0] for seed in range(3)]
    for alone, together in zip(pictures, detector.detect(pictures, batch_size=3), strict=True):
        (single,) = detector.detect(alone)
        torch.testing.assert_close(together.scores, single.scores, atol=1e-5, rtol=1e-4)
        assert together.size == single.size


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-2, 3, width=32)] * 4), max_size=8), st.integers(1, 99), st.integers(1, 99))
def test_pixels_lie_inside_the_image(rows, height, width):
    pixels = to_pixels(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), (height, width))
    assert pixels.shape == (len(rows), 4)
    assert ((pixels >= 0) & (pixels <= torch.tensor([width - 1, height - 1] * 2))).all()


NAN = torch.full((3, 4, 4), float("nan"))
BAD_IMAGES = {
    "float array": (np.zeros((4, 4, 3), np.float32), "float32.*uint8"),
    "16 bit array": (np.zeros((4, 4, 3), np.uint16), "uint16.*uint8"),
    "alpha array": (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\].*drop an alpha channel"),
    "planar array": (np.zeros((3, 4, 4), np.uint8), r"\[3, 4, 4\].*\[H,W,3\]"),
    "batch array": (np.zeros((2, 4, 4, 3), np.uint8), r"\[2, 4, 4, 3\].*list"),
    "vector": (np.zeros(4, np.uint8), r"\[4\].*\[H,W,3\]"),
    "empty array": (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\].*without pixels"),
    "empty tensor": (torch.zeros(3, 4, 0), r"\[3, 4, 0\].*without pixels"),
    "batch tensor": (torch.zeros(2, 3, 4, 4), r"\[2, 3, 4, 4\].*list"),
    "interleaved tensor": (torch.zeros(4, 4, 3), r"\[4, 4, 3\].*\[3,H,W\]"),
    "integer tensor": (torch.zeros(3, 4, 4, dtype=torch.int64), "int64.*uint8"),
    "bool tensor": (torch.zeros(3, 4, 4, dtype=torch.bool), "bool.*uint8"),
    "grey levels as float": (torch.full((3, 4, 4), 200.0), "from 200 to 200.*0..1"),
    "normalised tensor": (torch.full((3, 4, 4), -1.5), "from -1.5.*0..1"),
    "NaN": (NAN, "contains NaN"),
    "None": (None, "NoneType.*give a path"),
    "PIL image": (Image.new("RGB", (4, 4)), "Image.*numpy.asarray"),
    "number": (3, "int"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_named_with_its_index_before_any_work(bad, message):
    fixed = fixed_detector()
    with pytest.raises(InputError, match=f"image 2 .*{message}"):
        fixed.detect([image(), image(), bad], batch_size=1)
    assert fixed.network.inputs == []


def test_a_missing_file_is_named_before_any_work(tmp_path):
    fixed = fixed_detector()
    with pytest.raises(DataError, match=r"image 1.*absent\.jpg.*no such file"):
        fixed.detect([image(), tmp_path / "absent.jpg"], batch_size=1)
    assert fixed.network.inputs == []


@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": -0.1},
        {"score_threshold": float("nan")},
        {"score_threshold": "0.5"},
        {"score_threshold": True},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": "8"},
    ],
)
def test_options_out_of_range_are_named_with_their_value(options):
    name, value = next(iter(options.items()))
    with pytest.raises(InputError, match=f"{name} is {value!r}; give (a value from 0 to 1|at least 1, a whole number)"):
        fixed_detector().detect(image(), **options)


def test_options_may_be_numpys_numbers():
    (found,) = fixed_detector().detect(image(), score_threshold=np.float32(0.5), batch_size=np.int64(8))
    assert len(found.scores) == 2


@pytest.mark.parametrize("images", [None, 7])
def test_what_is_no_image_and_no_list_is_refused(images):
    with pytest.raises(InputError, match="image 0 is a "):
        Detector(FixedNetwork([[0, 0, 1, 1]], [1], [0.9])).detect(images)
