"""refinedet.ops.extension: what the compiled module says of itself, and one clear sentence when it cannot be used."""

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import refinedet
from refinedet.errors import ExtensionError
from refinedet.ops import extension

PACKAGE = Path(refinedet.__file__).parent
COMPILED = PACKAGE / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"

# Without the finder of an editable installation, which would supply the module that the copy lacks.
IMPORT_AND_USE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
import torch
import refinedet
from refinedet import ops
from refinedet.errors import ExtensionError

try:
    ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except ExtensionError as error:
    print(error)
"""


@pytest.fixture
def broken(tmp_path):
    """A copy of the package without its compiled module, and a function that uses an operator of that copy."""
    shutil.copytree(PACKAGE, tmp_path / "refinedet", ignore=shutil.ignore_patterns("*.so", "*.safetensors"))

    def use_operator() -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, "-c", IMPORT_AND_USE]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return tmp_path / "refinedet", use_operator


def test_build_info():
    info = extension.build_info()
    assert info["version"] == refinedet.__version__
    assert info["torch_target"] == "2.10"
    assert info["cuda"] is extension.has_cuda()
    assert "-ffp-contract=off" in info["flags"].split()
    assert info["compiler"][0].isdigit()
    assert info["torch_built_with"].split(".")[0] == torch.__version__.split(".")[0]


def test_extension_is_usable():
    assert extension.problem() is None
    assert extension.load() is sys.modules["refinedet._C"]
    extension.require()


def test_operators_are_registered():
    import refinedet.ops  # noqa: F401

    assert {"refine", "detect", "match", "mine"} <= set(extension.operators())
    assert all(hasattr(torch.ops.refinedet, name) for name in extension.operators())


def test_importing_the_package_does_not_import_torch():
    command = [sys.executable, "-c", "import sys, refinedet; print('torch' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_compiled_module_names_no_machine_path():
    """Torch is found through `import torch`; a run path would pin the torch of the build environment."""
    dynamic = subprocess.run(["readelf", "-d", COMPILED], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert "libtorch_python.so" not in dynamic


class Gated(torch.nn.Module):
    def forward(self, x):
        extension.require()
        return x + 1


def test_gate_compiles_into_one_graph():
    compiled = torch.compile(Gated(), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]


def test_gate_exports():
    exported = torch.export.export(Gated(), (torch.ones(2),))
    assert exported.module()(torch.ones(2)).tolist() == [2.0, 2.0]


def test_missing(broken):
    package, use_operator = broken
    message = use_operator()
    assert message.startswith(f"the compiled extension of refinedet is missing from {package}: run `pip install")


def test_source_tree_is_told_to_build(broken):
    package, use_operator = broken
    (package.parent / "setup.py").touch()
    (package.parent / "csrc").mkdir()
    assert use_operator().endswith(f"run `python setup.py build_ext --inplace` in {package.parent}")


def test_compiled_for_another_python(broken):
    package, use_operator = broken
    (package / "_C.cpython-38-x86_64-linux-gnu.so").touch()
    message = use_operator()
    assert message.startswith("refinedet was compiled for another Python than cpython-")
    assert "(_C.cpython-38-x86_64-linux-gnu.so): run `pip install" in message


@pytest.mark.parametrize("fraction", [0.5, 0.999])
def test_truncated(broken, fraction):
    package, use_operator = broken
    whole, file = COMPILED.read_bytes(), package / COMPILED.name
    file.write_bytes(whole[: int(len(whole) * fraction)])
    assert use_operator() == (
        f"the compiled extension of refinedet is damaged ({file} is truncated): "
        "run `pip install --force-reinstall --no-deps .` in the source folder of refinedet"
    )


def test_not_a_library(broken):
    package, use_operator = broken
    (package / COMPILED.name).write_text("")
    message = use_operator()
    assert message.startswith("the compiled extension of refinedet cannot be loaded (")
    assert "file too short): run `pip install" in message


def test_undefined_symbol(broken, tmp_path):
    package, use_operator = broken
    source = tmp_path / "absent.cpp"
    source.write_text(
        'extern "C" void torch_absent(); extern "C" void* PyInit__C() { torch_absent(); return nullptr; }'
    )
    subprocess.run(["c++", "-shared", "-fPIC", "-Wl,-z,now", source, "-o", package / COMPILED.name], check=True)
    message = use_operator()
    assert f"does not fit torch {torch.__version__} (no symbol torch_absent): run `pip install" in message


def test_built_for_another_version(broken):
    package, use_operator = broken
    shutil.copy(COMPILED, package)
    init = package / "__init__.py"
    init.write_text(init.read_text().replace(f'"{refinedet.__version__}"', '"99.0"'))
    message = use_operator()
    assert f"is of refinedet {refinedet.__version__}, the Python files are of 99.0: run" in message


@pytest.fixture
def restored():
    """Loads the extension properly again after a test has made it fail."""
    yield
    assert extension.load() is not None


@pytest.mark.usefixtures("restored")
def test_older_torch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "2.9.1+cpu")
        assert extension.load() is None
    assert extension.build_info() is None
    with pytest.raises(ExtensionError, match=r"^torch 2\.9\.1\+cpu is older than 2\.10: run `pip install --upgrade"):
        extension.require()


@pytest.mark.usefixtures("restored")
def test_operator_absent_from_an_old_build():
    @extension.register_fake("not_yet_compiled")
    def fake(x):
        return x

    assert fake(3) == 3
    with pytest.raises(ExtensionError, match=r"older than the Python files \(it has no operator not_yet_compiled\)"):
        extension.require()
