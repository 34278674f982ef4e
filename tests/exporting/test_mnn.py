"""Export to MNN, and what MNN makes of the file."""

import hashlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.paths import ROOT

import refinedet
from refinedet.boxes import box_iou
from refinedet.data.images import read_image
from refinedet.errors import CheckpointError, ExportError, InputError
from refinedet.exporting import mnn_net
from refinedet.exporting.export import export
from refinedet.exporting.network import PixelNetwork
from refinedet.formats import Choices
from refinedet.runtimes import open_network

MNN_ERROR = 5e-3  # of the root mean square: its convolutions by large tiles (3.6.1)
SIZE = (64, 128)


def build(backbone: str = "timm:test_resnet", **options) -> refinedet.Detector:
    torch.manual_seed(0)
    return refinedet.Detector(refinedet.build(backbone, size=SIZE, num_classes=4, **options).eval())


def torch_outputs(detector: refinedet.Detector, pixels: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(PixelNetwork(detector.trained_network, detector.preprocessing)(pixels))


def errors(network, pixels: torch.Tensor, expected: list[torch.Tensor]) -> list[float]:
    """Largest differences of the outputs, as shares of their root mean square."""
    found = [output for output in network(pixels) if output is not None]
    return [
        float((ours - theirs).abs().max() / theirs.square().mean().sqrt())
        for ours, theirs in zip(found, expected, strict=True)
    ]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.fixture(scope="module", autouse=True)
def no_time_for_speeds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refinedet.exporting.check.SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def detector() -> refinedet.Detector:
    return build()


@pytest.fixture(scope="module")
def file(detector, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mnn") / "network.mnn"
    export(detector, path, "mnn")
    return path


@pytest.fixture(scope="module")
def network(file):
    return open_network(file)


def test_shipped_model_finds_what_pytorch_finds(tmp_path):
    trained = refinedet.load("bccd")
    photographs = sorted((ROOT / "examples" / "bccd").glob("*.jpg"))
    report = export(trained, tmp_path / "bccd.mnn", "mnn", images=photographs)
    assert report.unmatched == 0
    assert report.output_difference < MNN_ERROR
    assert report.own_rows_differ is None
    exported, images = refinedet.load(tmp_path / "bccd.mnn"), [read_image(path) for path in photographs]
    assert exported.network.runtime.startswith("MNN 3")
    assert exported.classes == trained.classes
    for ours, theirs in zip(exported.detect(images), trained.detect(images), strict=True):
        sure = int((theirs.scores >= 0.1).sum())
        assert sure > 10
        assert ours.labels[:sure].tolist() == theirs.labels[:sure].tolist()
        assert (ours.scores[:sure] - theirs.scores[:sure]).abs().max() <= 1e-3
        assert box_iou(ours.boxes[:sure], theirs.boxes[:sure]).diagonal().min() >= 0.999


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_pictures_of_one_colour(detector, network, value):
    """A normalisation that divides by the norm alone gives NaN where all is 0."""
    pixels = torch.full((1, 3, *SIZE), float(value))
    assert max(errors(network, pixels, torch_outputs(detector, pixels))) < MNN_ERROR


def test_half_weights_two_images_and_a_preset_that_no_file_with_detections_holds(tmp_path, capfd):
    preset = replace(refinedet.COCO, tcb=False, cascade=False)  # soft-NMS, no limits; two outputs
    detector = build("squeezenet", preset=preset)
    export(detector, tmp_path / "network.mnn", Choices("mnn", batch=2, dtype="float16"))
    assert capfd.readouterr().out == ""
    weights = sum(parameter.numel() for parameter in detector.trained_network.parameters())
    assert (tmp_path / "network.mnn").stat().st_size < 2.5 * weights
    exported, pixels = refinedet.load(tmp_path / "network.mnn"), pictures(3)
    assert exported.preset == preset
    assert exported.network(pixels).arm_loc is None
    assert max(errors(exported.network, pixels, torch_outputs(detector, pixels))) < 0.02


# --- Running it -----------------------------------------------------------------------------------------------------


def test_outputs_are_the_callers_own(network, capfd):
    first = network(pictures(1))
    kept = [output.clone() for output in first]
    network(pictures(1, seed=1))
    assert all(map(torch.equal, first, kept))
    assert capfd.readouterr().out == ""


def test_threads_that_run_it_at_the_same_time(network):
    images = [pictures(1, seed) for seed in range(4)]
    expected = [network(pixels) for pixels in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(network, images * 4))
    for ours, theirs in zip(found, expected * 4, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_that_it_computes_with(file, detector, monkeypatch, threads):
    """The same bits with as many; within MNN's error with more or less."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    first, second = open_network(file), open_network(file)
    pixels = pictures(1)
    assert all(map(torch.equal, first(pixels), second(pixels)))
    assert max(errors(first, pixels, torch_outputs(detector, pixels))) < MNN_ERROR


# --- What the file says of itself -----------------------------------------------------------------------------------


def test_description_is_read_by_other_programs(file, detector):
    import MNN

    told = json.loads(MNN.nn.load_module_from_file(str(file), [], []).get_info()["bizCode"])
    assert told["refinedet"]["size"] == list(SIZE)
    assert told["refinedet"]["classes"] == list(detector.classes)


def test_name_that_is_not_utf8(file, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.mnn")
    path.write_bytes(file.read_bytes())
    assert len(open_network(path).anchors) > 0


def changed(file: Path, target: Path, position: int) -> bytes:
    content = bytearray(file.read_bytes())
    content[position] ^= 255
    target.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("position", [0, 100, 50_000, -100], ids=["root", "table", "weights", "end"])
def test_damaged_file(file, tmp_path, position):
    changed(file, tmp_path / "a.mnn", position)
    with pytest.raises(CheckpointError, match=r"a\.mnn is damaged: .*; copy it anew, or export it again$"):
        open_network(tmp_path / "a.mnn")


def test_file_that_is_cut_short(file, tmp_path):
    content = file.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / "a.mnn").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"a\.mnn (is damaged|has no metadata of refinedet): "):
            open_network(tmp_path / "a.mnn")


def test_file_that_mnn_does_not_read(file, tmp_path):
    """As of a newer MNN: whole, by its digest."""
    content = changed(file, tmp_path / "a.mnn", 0)
    digest = re.search(rb'"sha256": "([0-9a-f]{64})', content)
    assert digest is not None
    rest = content[: digest.start(1)] + content[digest.end(1) :]
    (tmp_path / "a.mnn").write_bytes(content.replace(digest[1], hashlib.sha256(rest).hexdigest().encode()))
    with pytest.raises(CheckpointError, match=r"^MNN 3\S+ does not read .*a\.mnn: update MNN, or export it again$"):
        open_network(tmp_path / "a.mnn")


@pytest.mark.parametrize("content", [b"", b"text" * 100, b'{"sha256": "0", "refinedet": {}}'])
def test_file_of_another_program(tmp_path, content):
    (tmp_path / "a.mnn").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.mnn has no metadata of refinedet: "):
        open_network(tmp_path / "a.mnn")


# --- What is not as it should be ------------------------------------------------------------------------------------


def test_mnn_is_not_installed(detector, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "MNN", None)
    with pytest.raises(InputError, match=r"network\.mnn needs the package MNN \(.*\): pip install 'refinedet\[mnn\]'$"):
        open_network(file)
    with pytest.raises(InputError, match=r"^format mnn needs the package MNN \(.*\): pip install 'refinedet\[mnn\]'$"):
        export(detector, tmp_path / "network.mnn", "mnn")
    assert list(tmp_path.iterdir()) == []


def test_mnn_is_too_old(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "MNN", SimpleNamespace(version=lambda: "2.9.6"))
    message = r"network\.mnn needs MNN 3\.0 or newer, this is 2\.9\.6: pip install --upgrade MNN$"
    with pytest.raises(InputError, match=message):
        open_network(file)


def test_converter_that_fails(detector, tmp_path, monkeypatch):
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Unheard", ["a"], ["b"])], "graph", ends[:1], ends[1:])
    monkeypatch.setattr(mnn_net, "network_graph", lambda job: helper.make_model(graph))
    with pytest.raises(
        ExportError, match=r"^network\.mnn not written: MNN's converter says: .*Not Support: ONNX::Unheard"
    ):
        export(detector, tmp_path / "network.mnn", "mnn")
    assert list(tmp_path.iterdir()) == []
