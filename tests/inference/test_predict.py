"""refinedet.inference.predict: kinds of input, batching, and boxes in pixels of the original image."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.synthetic import CLASSES, FixedModel, scene, tiny_model

from refinedet import ops
from refinedet.errors import DataError, InputError
from refinedet.inference.predict import detect, detect_stream, to_pixels
from refinedet.preprocessing import Preprocessing, prepare
from refinedet.presets import OFFICIAL

BOXES = [[0.25, 0.2, 0.75, 0.6], [-0.1, -0.2, 1.2, 1.1], [0.0, 0.5, 0.1, 0.7]]
LABELS = [1, 2, 1]
SCORES = [0.6, 0.9, 0.3]


def model(**options) -> FixedModel:
    return FixedModel(BOXES, LABELS, SCORES, **options)


def image(height: int = 50, width: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_are_pixels_of_the_original_image_clipped_and_sorted():
    (found,) = detect(model(), image(50, 200))
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3], abs=1e-5)
    expected = [[0, 0, 199, 49], [50, 10, 150, 30], [0, 25, 20, 35]]
    torch.testing.assert_close(found.boxes, torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)
    assert found.labels.tolist() == [2, 1, 1]
    assert found.labels.dtype == torch.int64
    assert found.names == ["square", "disc", "disc"]
    assert found.size == (50, 200)
    assert found.path is None


def test_one_image_and_a_list_give_lists():
    assert len(detect(model(), image())) == 1
    assert len(detect(model(), [image(), image()])) == 2
    assert detect(model(), []) == []


def test_batches_keep_the_order_of_images_of_different_sizes():
    fixed = model()
    sizes = [(40, 60), (64, 128), (10, 300), (200, 7), (33, 33)]
    found = detect(fixed, [image(*size) for size in sizes], batch_size=2)
    assert [detections.size for detections in found] == sizes
    assert [tuple(blob.shape) for blob in fixed.inputs] == [(2, 3, 64, 128), (2, 3, 64, 128), (1, 3, 64, 128)]
    for detections, (height, width) in zip(found, sizes, strict=True):
        expected = torch.tensor([0.25 * width, 0.2 * height, 0.75 * width, 0.6 * height])
        torch.testing.assert_close(detections.boxes[1], expected, atol=1e-3, rtol=0)


def test_every_kind_of_colour_image_reaches_the_network_the_same(tmp_path):
    bgr = image()
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), bgr)
    rgb = torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)
    kinds = [bgr, path, str(path), rgb, rgb.float() / 255, rgb.double() / 255, np.asarray(Image.open(path))[..., ::-1]]
    fixed = model()
    found = detect(fixed, kinds)
    expected = prepare(bgr, (64, 128), fixed.config.preprocessing)
    for blob in fixed.inputs[0]:
        assert torch.equal(blob, expected)
    assert [detections.path for detections in found] == [None, str(path), str(path), None, None, None, None]


def test_every_kind_of_grey_image_reaches_the_network_the_same(tmp_path):
    grey = image()[..., 0]
    path = tmp_path / "grey.png"
    cv2.imwrite(str(path), grey)
    kinds = [grey, grey[..., None], path, torch.from_numpy(grey.copy())[None], np.dstack([grey] * 3)]
    fixed = model()
    detect(fixed, kinds)
    for blob in fixed.inputs[0][1:]:
        assert torch.equal(blob, fixed.inputs[0][0])


def test_channel_order_follows_the_models_preprocessing():
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 0] = 255
    for order, channel in (("bgr", 0), ("rgb", 2)):
        fixed = model(preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), order=order))
        detect(fixed, blue)
        assert fixed.inputs[0][0].amax((1, 2)).tolist() == [255.0 * (channel == c) for c in range(3)]


def test_views_that_are_not_contiguous():
    whole = image(100, 400)
    fixed = model()
    detect(fixed, [whole[::2, ::-2], whole[::2, ::-2].copy()])
    assert torch.equal(*fixed.inputs[0])


def test_a_photograph_is_turned_upright_by_its_exif_orientation(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.fromarray(image(50, 200)).save(path, exif=exif)
    assert detect(model(), path)[0].size == (200, 50)


def test_score_threshold_defaults_to_the_preset_and_can_be_given():
    assert len(detect(model(), image())[0].scores) == 3
    assert len(detect(model(), image(), score_threshold=0.5)[0].scores) == 2
    assert len(detect(model(), image(), score_threshold=1.0)[0].scores) == 0
    strict = model(preset=replace(OFFICIAL, score_threshold=0.7))
    assert detect(strict, image())[0].names == ["square"]
    assert len(detect(strict, image(), score_threshold=0.0)[0].scores) > 1


def test_limits_of_the_preset_are_used():
    assert len(detect(model(preset=replace(OFFICIAL, keep_top_k=2)), image())[0].scores) == 2
    nothing = model(preset=replace(OFFICIAL, objectness_threshold=1.0))
    assert len(detect(nothing, image())[0].scores) == 0


def test_without_cascade_boxes_are_decoded_from_the_plain_anchors():
    plain = model(preset=replace(OFFICIAL, cascade=False))
    plain.forward = lambda images, by_level, whole=plain.forward: whole(images)._replace(
        arm_loc=torch.full_like(plain.loc, 3.0).repeat(len(images), 1, 1)
    )
    torch.testing.assert_close(detect(plain, image())[0].boxes, detect(model(), image())[0].boxes)


def test_the_network_runs_in_eval_mode_and_is_left_as_it_was():
    fixed = model().train()
    (found,) = detect(fixed, image())
    assert fixed.modes == [False]
    assert fixed.training
    assert not found.boxes.requires_grad


def test_stream_reads_one_batch_ahead_at_most():
    taken = []

    def images():
        for index in range(10):
            taken.append(index)
            yield image()

    stream = detect_stream(model(), images(), batch_size=3)
    assert taken == []
    next(stream)
    assert taken == [0, 1, 2]
    assert len(list(stream)) == 9


def test_results_are_those_of_the_network_and_the_operator_alone():
    network = tiny_model((64, 128))
    picture = scene(1)[0]
    (found,) = network.detect(picture)
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
    assert concatenations(lambda: network.detect(picture)) == of_backbone + 1  # the images, to a batch
    assert concatenations(lambda: network(images)) == of_backbone + 4


def test_images_in_a_batch_do_not_influence_each_other():
    network = tiny_model()
    pictures = [scene(seed, height=60 + 20 * seed)[0] for seed in range(3)]
    for alone, together in zip(pictures, detect(network, pictures, batch_size=3), strict=True):
        (single,) = detect(network, alone)
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
    fixed = model()
    with pytest.raises(InputError, match=f"image 2 .*{message}"):
        detect(fixed, [image(), image(), bad], batch_size=1)
    assert fixed.inputs == []


def test_a_missing_file_is_named_before_any_work(tmp_path):
    fixed = model()
    with pytest.raises(DataError, match=r"image 1.*absent\.jpg.*no such file"):
        detect(fixed, [image(), tmp_path / "absent.jpg"], batch_size=1)
    assert fixed.inputs == []


@pytest.mark.parametrize("options", [{"score_threshold": -0.1}, {"score_threshold": float("nan")}, {"batch_size": 0}])
def test_options_out_of_range_are_named_with_their_value(options):
    name, value = next(iter(options.items()))
    with pytest.raises(InputError, match=f"{name} is {value}"):
        detect(model(), image(), **options)


@pytest.mark.parametrize("images", [None, 7])
def test_what_is_no_image_and_no_list_is_refused(images):
    with pytest.raises(InputError, match="image 0 is a "):
        detect(FixedModel([[0, 0, 1, 1]], [1], [0.9]), images)
