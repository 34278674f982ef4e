"""Files of OpenVINO: what they compute, what they say of themselves, and what is told of files that are not whole."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import refinedet
from refinedet.boxes import to_corners
from refinedet.errors import CheckpointError, InputError
from refinedet.exporting import check, openvino_ir
from refinedet.exporting.export import _prepare, export
from refinedet.exporting.network import PixelNetwork
from refinedet.formats import Choices
from refinedet.inference.detector import Detector
from refinedet.ops import Detected
from refinedet.runtimes.base import RuntimeNetwork
from refinedet.runtimes.openvino import DETECTIONS, WEIGHTS_KEY, digest_of, import_openvino

SIZE = 64
CLASSES = ("<red> & 'white'", 'a "name"', "Zellen, größer\nals")  # all that XML and JSON escape
openvino = import_openvino("the test")


def make(**changes: Any) -> Detector:
    """A small network, the same every time."""
    torch.manual_seed(0)
    preset = replace(refinedet.presets.OFFICIAL, **changes)
    return Detector(refinedet.build("squeezenet", size=SIZE, classes=CLASSES, preset=preset, tcb_channels=32))


def write(detector: Detector, path: Path, **choices: Any) -> None:
    """As `export`, without the comparison with PyTorch, which takes longer than the file."""
    openvino_ir.write(_prepare(detector, Choices("openvino", **choices), (), detector.preset, "cpu"), path)


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 255


def expected(detector: Detector, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return tuple(PixelNetwork(detector.trained_network.eval(), detector.preprocessing)(pixels))


def outputs(network: RuntimeNetwork, pixels: torch.Tensor) -> list[torch.Tensor]:
    return [output for output in network(pixels) if output is not None]


def assert_close(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], of_rms: float = 1e-4) -> None:
    assert len(ours) == len(theirs)
    for output, other in zip(ours, theirs, strict=True):
        rms = other.square().mean().sqrt().item()
        torch.testing.assert_close(output, other, rtol=0, atol=of_rms * rms)


def constants(path: Path) -> dict[str, list[np.ndarray]]:
    """Values of the file's constants by the name of their type."""
    values: dict[str, list[np.ndarray]] = {}
    for node in openvino.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "Constant":
            values.setdefault(node.get_element_type().get_type_name(), []).append(node.data)
    return values


@pytest.fixture(scope="module", autouse=True)
def without_times() -> Iterator[None]:
    """Exports measure no longer than they must."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make()


@pytest.fixture(scope="module")
def float32(folder: Path, detector: Detector) -> Path:
    path = folder / "float32.xml"
    export(detector, path, "openvino")
    return path


@pytest.fixture(scope="module")
def float16(folder: Path, detector: Detector) -> Path:
    path = folder / "float16.xml"
    write(detector, path, dtype="float16", batch=None)
    return path


@pytest.fixture(scope="module")
def calibration(folder: Path) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(5)]
    for path, picture in zip(paths, pictures(5), strict=True):
        cv2.imwrite(str(path), picture.permute(1, 2, 0).numpy().astype(np.uint8))
    return paths


def test_float32(float32: Path, detector: Detector) -> None:
    pixels = pictures(3)
    network = refinedet.load(float32).network
    found = outputs(network, pixels)
    assert_close(found, expected(detector, pixels))
    again = [output.clone() for output in found]
    outputs(network, 255 - pixels)
    assert all(map(torch.equal, found, again))  # they are the caller's own


def test_float32_is_stored_whole(float32: Path) -> None:
    """save_model would make half of it, the anchors and the smallest addend of L2Norm (2026.4.1)."""
    assert "f16" not in constants(float32)


@pytest.mark.parametrize("file", ["float32", "float16"])
@pytest.mark.parametrize("colour", ["black", "white", "mean", "red"])
def test_pictures_of_one_colour(request: pytest.FixtureRequest, detector: Detector, file: str, colour: str) -> None:
    """The mean makes zeros of every map: only L2Norm's addend keeps 0 / 0 from being NaN."""
    values = {"black": (0, 0, 0), "white": (255, 255, 255), "mean": detector.preprocessing.mean, "red": (0, 0, 255)}
    pixels = torch.tensor(values[colour], dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE).contiguous()
    found = outputs(refinedet.load(request.getfixturevalue(file)).network, pixels)
    assert all(output.isfinite().all() for output in found)
    of_rms = 1e-4 if file == "float32" else 0.02
    for output, other in zip(found, expected(detector, pixels), strict=True):
        torch.testing.assert_close(output, other, rtol=0, atol=of_rms * max(1.0, float(other.square().mean().sqrt())))


def test_float16(float16: Path, float32: Path, detector: Detector) -> None:
    """Half the size; anchors and variances are those of float32 bit for bit, and so are the boxes but for rounding."""
    sizes = [path.with_suffix(".bin").stat().st_size for path in (float16, float32)]
    assert sizes[0] < 0.55 * sizes[1]
    variances = torch.tensor(detector.preset.variances).expand(len(detector.network.anchors), 4)
    priors = torch.stack([to_corners(detector.network.anchors), variances]).reshape(1, 2, -1).numpy()
    for path in (float16, float32):
        assert any(np.array_equal(priors, values) for values in constants(path)["f32"])
    pixels = pictures()
    assert_close(outputs(refinedet.load(float16).network, pixels), expected(detector, pixels), of_rms=0.02)


def own_and_ours(path: Path, pixels: torch.Tensor, **thresholds: Any) -> tuple[Detected, Detected]:
    """The file's detections, and those of `ops.detect` for its outputs."""
    detector = refinedet.load(path)
    own = detector.network.detections(pixels)
    assert own is not None
    return own, detector.select(detector.network(pixels))


def rows(found: Detected) -> list[set[tuple[int, int]]]:
    return [
        set(zip(labels[:count].tolist(), indices[:count].tolist(), strict=True))
        for labels, indices, count in zip(found.labels, found.indices, found.counts.tolist(), strict=True)
    ]


def assert_nearly_the_same(own: Detected, ours: Detected) -> None:
    """The softmax of OpenVINO rounds otherwise, and an untrained network has many scores that nearly agree: of all rows
    a few may be others. Those that both have are the same box."""
    assert own.counts.tolist() == ours.counts.tolist()
    torch.testing.assert_close(own.scores, ours.scores, rtol=1e-5, atol=1e-6)
    for image, (first, second) in enumerate(zip(rows(own), rows(ours), strict=True)):
        assert len(first & second) >= 0.95 * len(first)
        for label, index in list(first & second)[:50]:
            boxes = [
                found.boxes[image][(found.labels[image] == label) & (found.indices[image] == index)]
                for found in (own, ours)
            ]
            torch.testing.assert_close(*boxes, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("file", ["float32", "float16"])
def test_detections(request: pytest.FixtureRequest, file: str) -> None:
    pixels = pictures(1 if file == "float32" else 3)
    own, ours = own_and_ours(request.getfixturevalue(file), pixels)
    assert own.counts.min() > 0
    assert_nearly_the_same(own, ours)


@pytest.mark.parametrize(("changes", "batch"), [({"cascade": False, "nms_iou": None}, 1), ({"tcb": False}, 2)])
def test_switches_of_the_ablation(tmp_path: Path, changes: dict[str, Any], batch: int) -> None:
    """Of a file for two images three are seen: the last one is filled up."""
    detector = make(top_k=100, keep_top_k=40, **changes)
    path = tmp_path / "model.xml"
    write(detector, path, batch=batch)
    pixels = pictures(2 * batch - 1)
    assert_close(outputs(refinedet.load(path).network, pixels), expected(detector, pixels))
    assert_nearly_the_same(*own_and_ours(path, pixels))


def export_int8(detector: Detector, path: Path, images: list[Path]) -> None:
    choices = Choices("openvino", dtype="int8", batch=2, raw=True)
    export(detector, path, choices, images=images, calibration=images)


def test_int8(tmp_path: Path, detector: Detector, float32: Path, calibration: list[Path]) -> None:
    """Two images at a time of five."""
    path = tmp_path / "model.xml"
    export_int8(detector, path, calibration)
    assert path.with_suffix(".bin").stat().st_size < 0.4 * float32.with_suffix(".bin").stat().st_size
    assert "i8" in constants(path)
    pixels = pictures(3)
    network = refinedet.load(path).network
    assert_close(outputs(network, pixels), expected(detector, pixels), of_rms=1.0)
    assert network.detections(pixels[:2]) is None


@pytest.mark.long
def test_int8_is_the_same_every_time(tmp_path: Path, detector: Detector, calibration: list[Path]) -> None:
    files = [tmp_path / name / "model.xml" for name in ("first", "second")]
    for path in files:
        export_int8(detector, path, calibration)
    first, second = (path.with_suffix(".bin").read_bytes() for path in files)
    assert first == second


def test_metadata(float32: Path) -> None:
    model = openvino.Core().read_model(float32)
    text = json.loads(model.get_rt_info("refinedet").value)
    assert text["classes"] == list(CLASSES)
    assert text["size"] == [SIZE, SIZE]
    names = [output.any_name for output in model.outputs]
    assert names == ["arm_loc", "arm_conf", "odm_loc", "odm_conf", DETECTIONS]
    assert list(model.inputs[0].shape) == [1, 3, SIZE, SIZE]
    loaded = refinedet.load(float32)
    assert loaded.classes == CLASSES
    assert loaded.network.runtime.startswith("OpenVINO 20")


def copy(source: Path, folder: Path) -> Path:
    for suffix in (".xml", ".bin"):
        shutil.copy(source.with_suffix(suffix), folder)
    return folder / source.name


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        refinedet.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_weights_of_another_export(tmp_path: Path, float32: Path) -> None:
    """Long enough for OpenVINO, which would compute with them."""
    path = copy(float32, tmp_path)
    content = bytearray(path.with_suffix(".bin").read_bytes())
    content[len(content) // 2] ^= 1
    path.with_suffix(".bin").write_bytes(content)
    assert "float32.bin is damaged or of another export than float32.xml: copy both files again" in refusal(path)


def test_without_weights(tmp_path: Path, float32: Path) -> None:
    path = copy(float32, tmp_path)
    path.with_suffix(".bin").unlink()
    assert "float32.bin is absent; copy both files" in refusal(path)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_weights_cut_short(tmp_path: Path, float32: Path, share: float) -> None:
    path = copy(float32, tmp_path)
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights[: int(share * len(weights))])
    assert "copy or export both again" in refusal(path)


def changed(source: Path, folder: Path, old: str, new: str) -> Path:
    path = copy(source, folder)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_newer_version(tmp_path: Path, float32: Path) -> None:
    assert "update openvino" in refusal(changed(float32, tmp_path, 'version="11"', 'version="99"'))


def test_an_operation_of_a_newer_version(tmp_path: Path, float32: Path) -> None:
    path = changed(float32, tmp_path, 'type="DetectionOutput" version="opset8"', 'type="New" version="opset99"')
    assert "update openvino" in refusal(path)


def test_no_network(tmp_path: Path, float32: Path) -> None:
    path = copy(float32, tmp_path)
    path.write_text("<annotation><filename>1.jpg</filename></annotation>")
    assert "no network that OpenVINO" in refusal(path)
    text = float32.read_text()
    path.write_text(text[: len(text) // 2])
    assert "no network that OpenVINO" in refusal(path)


def test_another_network(tmp_path: Path) -> None:
    opset = openvino.opset8
    pixels = opset.parameter([1, 3, SIZE, SIZE], np.float32)
    path = tmp_path / "other.xml"
    openvino.save_model(openvino.Model([opset.relu(pixels)], [pixels]), path)
    assert "no metadata of refinedet" in refusal(path)


def test_outputs_taken_away(tmp_path: Path, float32: Path) -> None:
    path = copy(float32, tmp_path)
    core = openvino.Core()
    model = core.read_model(path)
    less = openvino.Model(model.get_results()[1:], model.get_parameters())
    less.set_rt_info(model.get_rt_info("refinedet").value, "refinedet")
    path = tmp_path / "less.xml"
    openvino.save_model(less, path)
    less.set_rt_info(digest_of(path.with_suffix(".bin")), WEIGHTS_KEY)
    openvino.save_model(less, path)
    assert "no output arm_loc" in refusal(path)


def test_a_file_that_is_written_over(tmp_path: Path, float32: Path) -> None:
    """What is open stays as it was."""
    path = copy(float32, tmp_path)
    network = refinedet.load(path).network
    before = outputs(network, pictures())
    with path.with_suffix(".bin").open("r+b") as file:
        file.truncate(0)
    assert all(map(torch.equal, outputs(network, pictures()), before))
    assert network.detections(pictures(1)) is not None


def test_too_old_a_runtime(float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "__version__", "2024.6.0-17404-4c0f47d2335-releases/2024/6")
    with pytest.raises(InputError, match=r"float32\.xml needs openvino 2025\.0 or newer, and 2024\.6\.0 is installed"):
        refinedet.load(float32)


def test_int8_without_its_package(
    tmp_path: Path, detector: Detector, calibration: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"nncf.*pip install 'refinedet\[int8\]'"):
        export(detector, tmp_path / "model.xml", Choices("openvino", dtype="int8"), calibration=calibration)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_reported_to_anyone() -> None:
    """OpenVINO and NNCF would send an event to an analytics service when they are imported (2026.4.1, 3.4.0)."""
    code = """
import sys
from refinedet.runtimes.openvino import import_openvino, without_telemetry
import_openvino("the test")
with without_telemetry():
    import nncf
assert not any(name.startswith("openvino_telemetry") for name in sys.modules), "telemetry was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
