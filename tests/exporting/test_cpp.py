"""Format ``aoti`` and the program that runs it without Python, examples/cpp: built by CMake and run here."""

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

import refinedet
from refinedet import ops
from refinedet.errors import CheckpointError
from refinedet.exporting.export import export
from refinedet.formats import Choices

pytestmark = pytest.mark.long

PACKAGES = "apt-get install --no-install-recommends cmake libopencv-imgcodecs-dev"
HEADER = "opencv4/opencv2/imgcodecs.hpp"
IMAGES = sorted((ROOT / "examples" / "bccd").glob("*.jpg"))


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    lacking = [] if shutil.which("cmake") else ["cmake"]
    lacking += [] if any(Path(root, HEADER).exists() for root in ("/usr/include", "/usr/local/include")) else [HEADER]
    if lacking:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {' and no '.join(lacking)} here: {PACKAGES}")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "bccd.pt2"
    report = export(refinedet.load("bccd"), path, Choices("aoti"))
    assert report.unmatched == 0
    assert report.own_rows_differ == 0
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    torch_folder = Path(torch.__file__).parent
    settings = [f"-DTORCH={torch_folder}", f"-DREFINEDET={ops.library_path()}", "-DCMAKE_CXX_FLAGS=-Werror"]
    subprocess.run(["cmake", "-S", ROOT / "examples" / "cpp", "-B", folder, *settings], check=True)
    subprocess.run(["cmake", "--build", folder], check=True)
    return folder / "detect"


def run(program: Path, *arguments: object, threads: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def assert_same(printed: Sequence[str], found: refinedet.Detections, boxes: float, scores: float) -> None:
    objects = [json.loads(line) for line in printed]
    assert [item["class"] for item in objects] == found.names
    assert found.names
    told = torch.tensor([item["box"] for item in objects]), torch.tensor([item["score"] for item in objects])
    torch.testing.assert_close(told[0], found.boxes, rtol=0, atol=boxes)
    torch.testing.assert_close(told[1], found.scores, rtol=0, atol=scores)


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_same_objects_as_in_python(program, package, image):
    """As of the same package to 1e-4 pixels, and of the checkpoint to 1e-3."""
    for threads in (1, 2):
        done = run(program, package, image, 0.1, threads=threads)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert_same(lines, refinedet.load(package).detect(image, score_threshold=0.1)[0], 1e-4, 1e-5)
        assert_same(lines, refinedet.load("bccd").detect(image, score_threshold=0.1)[0], 1e-3, 1e-5)


def test_no_python_is_loaded(program):
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "librefinedet.so" in needed
    assert "libpython" not in needed
    assert "not found" not in needed


def with_metadata(package: Path, target: Path, **values: object) -> Path:
    """The package without its machine code; in its metadata these values, or none of ours."""
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            if name.endswith("_metadata.json"):
                metadata = json.loads(source.read(name))
                ours = json.loads(metadata.pop("refinedet")) | values
                copy.writestr(name, json.dumps(metadata | ({"refinedet": json.dumps(ours)} if values else {})))
            elif not name.endswith(".so"):
                copy.writestr(name, source.read(name))
    return target


def test_refusals(program, package, tmp_path):
    image = IMAGES[0]
    other = with_metadata(package, tmp_path / "other.pt2")
    older = with_metadata(package, tmp_path / "older.pt2", refinedet="0.0.9")
    several = with_metadata(package, tmp_path / "several.pt2", batch=4)
    incomplete = with_metadata(package, tmp_path / "incomplete.pt2", batch=1)
    absent = tmp_path / "absent.pt2"
    for arguments, message in (
        ((absent, image), f"{absent} cannot be read ("),
        ((image, image), f"{image} cannot be read ("),
        ((other, image), f"{other} has no metadata of refinedet: make one by `refinedet export MODEL --format aoti"),
        ((older, image), f"{older} was exported by refinedet 0.0.9, and librefinedet.so is of {refinedet.__version__}"),
        ((several, image), f"{several} is of several images or holds no detections: make one by"),
        ((incomplete, image), f"{incomplete} cannot be read ("),
        ((package, absent), f"{absent} is absent or no image: give one that OpenCV reads"),
    ):
        done = run(program, *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith(f"detect: error: {message}")
    with pytest.raises(CheckpointError, match=r"older\.pt2 was compiled for the operators of refinedet 0\.0\.9"):
        refinedet.load(older)
    with pytest.raises(CheckpointError, match=r"incomplete\.pt2 cannot be loaded by torch .*; export it again"):
        refinedet.load(incomplete)
    with pytest.raises(CheckpointError, match=r"other\.pt2 has no metadata of refinedet"):
        refinedet.load(other)
