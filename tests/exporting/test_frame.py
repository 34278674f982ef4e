"""The frame of exports: what may be asked for, what a file says of itself, and a network that a runtime computes."""

import json
from dataclasses import replace

import pytest
import torch
from support.synthetic import make_voc, scene, tiny_model

import refinedet
from refinedet.data import open_dataset
from refinedet.errors import CheckpointError, DataError, InputError
from refinedet.exporting import check
from refinedet.exporting.network import PixelNetwork
from refinedet.formats import FORMATS, SUFFIXES, Choices
from refinedet.preprocessing import PIXELS, Preprocessing, prepare
from refinedet.profiling.model import open_photographs
from refinedet.runtimes import is_exported, open_network
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.description import FORMAT_VERSION, Description


@pytest.fixture(scope="module")
def network() -> refinedet.RefineDet:
    torch.manual_seed(0)
    return refinedet.build("squeezenet", size=(64, 128), num_classes=4).eval()


def describe(network: refinedet.RefineDet, **choices) -> Description:
    return Description(network.config, Choices("onnx", size=network.config.size, **choices))


class Eager(RuntimeNetwork):
    """PyTorch as the runtime. It counts how many images a call has."""

    runtime = "PyTorch"

    def __init__(self, network: refinedet.RefineDet, **choices) -> None:
        super().__init__(describe(network, **choices))
        self.pixels = PixelNetwork(network, network.config.preprocessing)
        self.batches: list[int] = []

    def compute(self, pixels):
        self.batches.append(len(pixels))
        return self.pixels(pixels)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"format": "onx"}, "format is 'onx'; did you mean 'onnx'? choose one of torch, aoti, onnx, openvino, mnn"),
        ({"format": "onnx", "dtype": "int8"}, "dtype is 'int8'; onnx holds float32, float16"),
        ({"format": "mnn", "batch": None}, "batch is dynamic, and mnn holds one number of images; give a number"),
        ({"format": "onnx", "batch": 0}, "batch is 0; give a whole number from 1, or None for any"),
        ({"format": "onnx", "rows": "all"}, "rows is 'all'; choose one of fixed, variable"),
        ({"format": "torch", "rows": "variable"}, "rows is 'variable', which only onnx with its detections has"),
        ({"format": "onnx", "rows": "variable", "raw": True}, "rows is 'variable', which only onnx with its"),
    ],
)
def test_what_a_format_does_not_hold_is_refused(choices, message):
    with pytest.raises(InputError) as refused:
        Choices(**choices)
    assert str(refused.value).startswith(message)


def test_a_format_without_detections_is_raw():
    assert [name for name in FORMATS if Choices(name).raw] == ["mnn"]
    assert SUFFIXES == (".pt2", ".onnx", ".xml", ".mnn")


def test_description_survives(network):
    description = replace(describe(network, batch=None, rows="variable"), device="cuda")
    assert Description.from_json(description.to_json(), "a.onnx") == description
    told = json.loads(description.to_json())  # by name, for readers that are no refinedet
    assert told["size"] == [64, 128]
    assert told["classes"] == ["class1", "class2", "class3"]


def change(network, **values) -> str:
    return json.dumps(json.loads(describe(network).to_json()) | values)


@pytest.mark.parametrize("lacking", ["config", "batch", "size", "format", "device", "format_version"])
def test_damaged_metadata(network, lacking):
    values = json.loads(describe(network).to_json())
    del values[lacking]
    with pytest.raises(CheckpointError, match=r"^a\.onnx: its metadata are damaged \(.*\); export it again$"):
        Description.from_json(json.dumps(values), "a.onnx")


@pytest.mark.parametrize("values", [{"size": 3}, {"format": 4}, {"batch": "x"}, {"config": "{}"}, {"device": None}])
def test_wrong_metadata(network, values):
    with pytest.raises(CheckpointError, match=r"^a\.onnx: its metadata are damaged"):
        Description.from_json(change(network, **values), "a.onnx")


def test_metadata_that_are_absent_or_of_a_newer_package(network):
    for text in (None, ""):
        with pytest.raises(CheckpointError, match=r"^a\.onnx has no metadata of refinedet: .* export it again with"):
            Description.from_json(text, "a.onnx")
    newer = change(network, format_version=FORMAT_VERSION + 1)
    with pytest.raises(CheckpointError, match="has format version 2, this refinedet reads up to 1: update the package"):
        Description.from_json(newer, "a.onnx")


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(), Preprocessing(mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 58.4), order="rgb")],
    ids=["caffe", "timm"],
)
def test_pixels_in_what_the_network_expects_inside(network, preprocessing):
    image = scene(0)[0]
    expected = network(prepare(image, (64, 128), preprocessing)[None])
    found = PixelNetwork(network, preprocessing)(prepare(image, (64, 128), PIXELS)[None])
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_single_step_network_has_two_outputs():
    preset = replace(refinedet.OFFICIAL, tcb=False, cascade=False)
    network = refinedet.build("squeezenet", size=64, num_classes=3, preset=preset).eval()
    assert describe(network).outputs == ("odm_loc", "odm_conf")
    raw = Eager(network)(torch.zeros(1, 3, 64, 64))
    assert raw.arm_loc is None
    assert raw.arm_conf is None
    assert raw.odm_conf.shape == (1, len(network.anchors), 3)


def test_detector_finds_what_the_trained_one_finds():
    trained = refinedet.load("bccd")
    exported = refinedet.Detector(Eager(trained.network), preprocessing=PIXELS)
    images = [scene(number)[0] for number in range(3)]
    pairs = zip(exported.detect(images), trained.detect(images), strict=True)
    for ours, theirs in pairs:
        assert ours.names == theirs.names
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-2, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)


def test_batches_are_split_and_filled_up(network):
    images = torch.rand(5, 3, 64, 128) * 255
    whole, by_two = Eager(network, batch=None), Eager(network, batch=2)
    for ours, theirs in zip(by_two(images), whole(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert by_two.batches == [2, 2, 2]
    assert whole.batches == [5]


def test_other_sizes_devices_and_dtypes_are_refused(network):
    detector = refinedet.Detector(Eager(network), preprocessing=PIXELS)
    with pytest.raises(InputError, match=r"images have shape \[1, 3, 64, 64\]; this file takes \[B,3,64,128\]"):
        detector.network(torch.zeros(1, 3, 64, 64))
    with pytest.raises(
        InputError,
        match="scale 1: size is 320x320, and this file was exported for 64x128; export",
    ):
        detector.detect([scene(0)[0]], protocol="voc_multiscale_320")
    with pytest.raises(InputError, match="device is cuda, and this file runs on cpu; give --device cpu, or the"):
        detector.cuda()
    with pytest.raises(InputError, match=r"dtype is torch\.float16, and this file was exported in its own"):
        detector.half()
    assert detector.cpu().float() is detector
    with pytest.raises(InputError, match=r"the model is an exported file \(onnx\), whose layers are not to be seen"):
        _ = detector.trained_network


def test_both_are_measured_on_annotated_images(tmp_path, monkeypatch):
    """A file that computes what PyTorch does has its mAP, which the report keeps and tells."""
    monkeypatch.setattr(check, "SECONDS", 0)
    model = tiny_model()
    detector = refinedet.Detector(model)
    dataset = open_dataset(make_voc(tmp_path / "voc"), "test", classes=detector.classes)
    file = tmp_path / "file" / "model.onnx"
    file.parent.mkdir()
    description = Description(model.config, Choices("onnx", size=model.config.size, raw=True))
    report = check.check(detector, description, Eager(model, raw=True), file, open_photographs(), dataset)
    assert report.mean_ap is not None
    assert report.mean_ap == pytest.approx(report.torch_mean_ap, abs=1e-3)
    assert report.dataset == f"2 images of {dataset.name}"
    assert f"mAP of {report.dataset}: {report.mean_ap:.4f}, PyTorch {report.torch_mean_ap:.4f}, " in report.text()
    assert json.loads(report.to_json())["mean_ap"] == report.mean_ap


def test_the_data_set_is_opened_before_any_work(tmp_path):
    detector = refinedet.Detector(tiny_model())
    with pytest.raises(DataError, match="nowhere"):
        refinedet.export(detector, tmp_path / "a.onnx", "onnx", data=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_file_names(tmp_path):
    assert all(is_exported(f"folder/model{suffix}") for suffix in SUFFIXES)
    assert not is_exported("model.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.onnx does not exist; check the path"):
        open_network(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").mkdir()
    with pytest.raises(CheckpointError, match=r"b\.onnx is a folder; give a file"):
        open_network(tmp_path / "b.onnx")


def test_preset_and_path_are_refused_before_any_work(tmp_path):
    detector = refinedet.load("bccd")
    with pytest.raises(InputError, match=r"out is .*a\.pt, and files of onnx end in \.onnx; give .*a\.onnx"):
        refinedet.export(detector, tmp_path / "a.pt", "onnx")
    with pytest.raises(InputError, match="protocol voc_multiscale_320 looks at an image 16 times and merges by 'vote"):
        refinedet.export(detector, tmp_path / "a.onnx", "onnx", protocol="voc_multiscale_320")
    with pytest.raises(InputError, match="preset coco has top_k None and keep_top_k None, which onnx does not hold"):
        refinedet.export(refinedet.Detector(detector.network, preset=refinedet.COCO), tmp_path / "a.onnx", "onnx")
    soft = replace(refinedet.OFFICIAL, name="soft", soft_nms_iou=0.3)
    with pytest.raises(InputError, match=r"preset soft has soft_nms_iou 0\.3, which openvino does not hold"):
        refinedet.export(refinedet.Detector(detector.network, preset=soft), tmp_path / "a.xml", "openvino")
    single = replace(refinedet.OFFICIAL, name="single", tcb=False, cascade=False)
    with pytest.raises(InputError, match="preset single has tcb False, and the network was built with True"):
        refinedet.export(refinedet.Detector(detector.network, preset=single), tmp_path / "a.onnx", "onnx")
    with pytest.raises(InputError, match="int8 needs calibration images, and only int8 does"):
        refinedet.export(detector, tmp_path / "a.xml", Choices("openvino", dtype="int8"))
    with pytest.raises(InputError, match="device is cuda, and only aoti is compiled for one; leave it out"):
        refinedet.export(detector, tmp_path / "a.onnx", "onnx", device="cuda")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.bin").touch()
    with pytest.raises(InputError, match=r"out is .*a\.xml, and .*a\.bin is another file's; give another name"):
        refinedet.export(detector, tmp_path / "a.xml", "openvino")
