"""examples/container, as far as it can be told without building an image."""

import ast
import json
import re
import subprocess
import sys

import pytest
from support.commands import TIMEOUT
from support.paths import ROOT

CONTAINER = ROOT / "examples" / "container"
PHOTOGRAPH = ROOT / "examples" / "bccd" / "BloodImage_00031.jpg"
MODULES = {"opencv-python-headless": "cv2"}  # of packages whose module has another name

# Prints the modules that `refinedet detect` imports where those of argv[1] are not installed.
DETECT = """
import importlib.abc, json, sys

absent = json.loads(sys.argv[1])

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from refinedet.commands.main import main
sys.argv = ["refinedet", *sys.argv[2:]]
status = main()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(status)
"""


def declared() -> set[str]:
    """Packages that refinedet depends on always."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "DEPENDENCIES":
            requirements = ast.literal_eval(statement.value)
            return {re.split("[^a-z]", text)[0] for text in requirements if ";" not in text}
    raise AssertionError("setup.py has no DEPENDENCIES")


def installed() -> set[str]:
    """Packages that the images have by name, beside torch."""
    (names,) = re.findall(r'^pip install (.*) "\$@"$', (CONTAINER / "build.sh").read_text(), re.MULTILINE)
    return set(names.split())


def test_detect_needs_what_the_images_have(tmp_path):
    absent = declared() - installed() - {"torch"}
    assert {"matplotlib", "pycocotools", "tensorboard"} <= absent
    command = [sys.executable, "-c", DETECT, json.dumps([*absent, "triton"])]
    options = ["detect", "bccd", str(PHOTOGRAPH), "--out", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / PHOTOGRAPH.name).exists()
    imported = json.loads(done.stdout.splitlines()[-1])
    assert {MODULES.get(name, name) for name in installed()} <= set(imported)  # nothing is there in vain


def test_the_build_gets_what_it_reads():
    lines = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    given = {line[1:] for line in lines if line.startswith("!")}
    manifest = (ROOT / "MANIFEST.in").read_text()
    needed = {path for line in re.findall("^(?:include|graft) (.*)$", manifest, re.MULTILINE) for path in line.split()}
    assert needed | {"setup.py", "pyproject.toml", "MANIFEST.in"} <= given
    named = re.findall(r"/source/([\w./]+)", (CONTAINER / "build.sh").read_text())
    assert set(named) <= given
    assert [path for path in given if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_is_python_and_an_environment(target):
    """No compiler comes into it, and nobody in it is root."""
    stages = re.split(r"^FROM ", (CONTAINER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    contents = {stage.splitlines()[0].partition(" AS ")[2]: stage.splitlines() for stage in stages}
    assert contents[target][0] == f"python AS {target}"
    assert [line for line in contents[target][1:] if line and not line.startswith("#")] == [
        f"COPY --from={target}-builder /opt/refinedet /opt/refinedet",
        "USER refinedet",
        "WORKDIR /data",
        'ENTRYPOINT ["refinedet"]',
    ]
    assert not any("g++" in line for line in contents["python"])
