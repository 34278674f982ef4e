"""Format ``torch``: one program of network and detections, for any number of images, that is safe to look into."""

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.synthetic import scene

import refinedet
from refinedet.errors import CheckpointError, ExtensionError
from refinedet.exporting.export import export
from refinedet.formats import Choices
from refinedet.ops import extension
from refinedet.preprocessing import PIXELS, prepare
from refinedet.runtimes.description import KEY


@pytest.fixture(scope="module")
def detector() -> refinedet.Detector:
    torch.manual_seed(0)
    return refinedet.Detector(refinedet.build("squeezenet", size=(64, 128), num_classes=4).eval())


@pytest.fixture(scope="module")
def file(detector, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    report = export(detector, path, Choices("torch", batch=None))
    assert report.unmatched == 0
    assert report.own_rows_differ == 0
    assert report.box_difference < 0.01
    return path


@pytest.fixture(scope="module")
def exported(file) -> refinedet.Detector:
    return refinedet.load(file)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_images(detector, exported, count):
    images = [scene(seed)[0] for seed in range(count)]
    for ours, theirs in zip(exported.detect(images), detector.detect(images), strict=True):
        assert ours.names == theirs.names
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (104, 117, 123)])
def test_pictures_of_one_colour(detector, exported, colour):
    """The epsilon of L2 normalisation is still there."""
    image = np.full((64, 128, 3), colour, np.uint8)
    found = exported.run(prepare(image, exported.size, exported.preprocessing)[None])
    expected = detector.run(prepare(image, detector.size, detector.preprocessing)[None]).concatenate()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_program_gives_detections_first(file, exported):
    """As torch.export.load gives it to those who have no Detector."""
    pixels = prepare(scene(0)[0], exported.size, PIXELS)[None]
    outputs = torch.export.load(file).module()(pixels)
    found = refinedet.ops.Detected(*outputs[:5])
    own = exported.network.detections(pixels)
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))
    assert [tuple(output.shape) for output in outputs[5:]] == [(1, 510, 4), (1, 510, 2), (1, 510, 4), (1, 510, 4)]


def test_network_alone_in_half_precision_for_two_images(detector, tmp_path):
    path = tmp_path / "model.pt2"
    report = export(detector, path, Choices("torch", batch=2, dtype="bfloat16", raw=True))
    assert report.own_rows_differ is None
    exported = refinedet.load(path)
    assert exported.network.detections(torch.zeros(2, 3, 64, 128)) is None
    assert len(exported.detect([scene(seed)[0] for seed in range(3)])) == 3


def test_two_images_at_a_time_with_detections(detector, tmp_path):
    path = tmp_path / "model.pt2"
    assert export(detector, path, Choices("torch", batch=2)).own_rows_differ == 0
    network = refinedet.load(path).network
    pixels = torch.rand(3, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 255
    whole = network.detections(pixels)
    assert len(whole.counts) == 3
    alone = network.detections(pixels[2:])
    assert torch.equal(whole.labels[2:], alone.labels)
    torch.testing.assert_close(whole.boxes[2:], alone.boxes)


def changed(file: Path, target: Path, content: dict[str, bytes | None]) -> Path:
    """A copy with other content of the members whose names end so; None leaves one out."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            ends = [end for end in content if name.endswith(end)]
            data = content[ends[0]] if ends else source.read(name)
            if data is not None:
                copy.writestr(name, data)
    return target


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('harmed').touch()",)


def test_nothing_but_tensors_is_unpickled(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), tmp_path / "evil.pt", pickle_module=pickle)
    evil = changed(file, tmp_path / "evil.pt2", {"sample_inputs/model.pt": (tmp_path / "evil.pt").read_bytes()})
    with pytest.raises(CheckpointError, match=r"evil\.pt2 cannot be loaded by torch .*; export it again"):
        refinedet.load(evil)
    assert not (tmp_path / "harmed").exists()


def test_files_of_others(file, tmp_path):
    other = changed(file, tmp_path / "other.pt2", {f"/extra/{KEY}": None})
    with pytest.raises(CheckpointError, match=r"other\.pt2 has no metadata of refinedet"):
        refinedet.load(other)
    short = tmp_path / "short.pt2"
    shutil.copy(file, short)
    with short.open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(CheckpointError, match=r"short\.pt2 is damaged, or no \.pt2 file \(.*\); export it again$"):
        refinedet.load(short)
    broken = changed(file, tmp_path / "broken.pt2", {"models/model.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"broken\.pt2 cannot be loaded by torch"):
        refinedet.load(broken)


def test_operators_are_needed(file, monkeypatch):
    monkeypatch.setattr(extension, "_problem", ("it is missing", "build it"))
    with pytest.raises(ExtensionError, match=r"^it is missing: build it$"):
        refinedet.load(file)
