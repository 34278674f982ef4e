"""refinedet.ops.extension: what the compiled core says of itself, and one clear sentence when it cannot be used."""

import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

import refinedet
from refinedet import ops
from refinedet.errors import ExtensionError
from refinedet.ops import extension

PACKAGE = Path(refinedet.__file__).parent
COMPILED = PACKAGE / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
LIBRARY = PACKAGE / "librefinedet.so"

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
    """A copy of the package without its shared objects, and a function that uses an operator of that copy."""
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


def _dynamic(file: Path) -> set[tuple[str, str]]:
    """Tags and values: ("NEEDED", "libc10.so")."""
    printed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\((\w+)\) .*\[(.*)\]", printed))


def test_shared_objects_name_no_machine_path():
    """Torch is found through `import torch`; a run path would pin the torch of the build environment."""
    library, module = _dynamic(LIBRARY), _dynamic(COMPILED)
    assert {("NEEDED", "libtorch_cpu.so"), ("SONAME", LIBRARY.name)} <= library
    assert {("NEEDED", LIBRARY.name), ("RUNPATH", "$ORIGIN")} <= {
        (tag.replace("RPATH", "RUNPATH"), value) for tag, value in module
    }
    assert "RUNPATH" not in dict(library)
    assert "RPATH" not in dict(library)


def test_library_has_nothing_of_python():
    symbols = subprocess.run(["nm", "-D", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "refinedet_version" in symbols
    assert not re.findall(r" _?Py\w+", symbols)
    assert not {value for tag, value in _dynamic(LIBRARY) if "python" in value}


def test_library_shows_only_what_is_to_be_called():
    """Beside what is weak, instances of templates of the standard library."""
    command = ["nm", "-D", "--defined-only", LIBRARY]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    visible = set(re.findall(r" T (\w+)", symbols)) - {"refinedet_version"}
    kernels = {"", "_limits", "_workspace_bytes"}
    launchers = {f"{op.name}{end}" for op in (ROOT / "csrc" / "ops").iterdir() for end in kernels}
    expected = {"driver_version", *launchers} if extension.has_cuda() else set()
    assert {re.match(r"_ZN9refinedet4cuda\d+([a-z_]+)", name)[1] for name in visible} == expected


LOAD_FIRST = """
import sys, torch
torch.ops.load_library(sys.argv[1])
print(torch.ops.refinedet.nms.default(torch.zeros(1, 4), torch.zeros(1), None, 0.5).tolist())
from refinedet import ops
torch.ops.load_library(sys.argv[1])
print(ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).tolist())
"""


@pytest.mark.parametrize("copied", [False, True])
def test_library_may_be_loaded_before(copied, tmp_path):
    """The module takes what is loaded, a copy under another name too: operators registered twice end the process."""
    library = shutil.copy(LIBRARY, tmp_path / "renamed.so") if copied else LIBRARY
    command = [sys.executable, "-c", LOAD_FIRST, library]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[0]\n[0]\n"


def test_library_path():
    assert ops.library_path() == LIBRARY


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


def test_missing_library(broken):
    package, use_operator = broken
    shutil.copy(COMPILED, package)
    message = use_operator()
    assert message.startswith(f"the operator library of refinedet is missing ({package / LIBRARY.name}): run `pip")


@pytest.mark.parametrize(("original", "fraction"), [(COMPILED, 0.5), (LIBRARY, 0.5), (LIBRARY, 0.999)])
def test_truncated(broken, original, fraction):
    package, use_operator = broken
    for path in (COMPILED, LIBRARY):
        shutil.copy(path, package)
    whole, file = original.read_bytes(), package / original.name
    file.write_bytes(whole[: int(len(whole) * fraction)])
    assert use_operator() == (
        f"the compiled extension of refinedet is damaged ({file} is truncated): "
        "run `pip install --force-reinstall --no-deps .` in the source folder of refinedet"
    )


@pytest.mark.parametrize("original", [COMPILED, LIBRARY], ids=["module", "library"])
def test_not_a_library(broken, original):
    package, use_operator = broken
    for path in (COMPILED, LIBRARY):
        shutil.copy(path, package)
    (package / original.name).write_text("")
    message = use_operator()
    assert message.startswith("the compiled extension of refinedet cannot be loaded (")
    assert "file too short): run `pip install" in message


def test_undefined_symbol(broken, tmp_path):
    package, use_operator = broken
    shutil.copy(COMPILED, package)
    _compile_library(package, 'extern "C" { void torch_absent(); const char* refinedet_version() { torch_absent(); } }')
    message = use_operator()
    assert f"does not fit torch {torch.__version__} (no symbol torch_absent): run `pip install" in message


def test_library_of_another_build(broken):
    package, use_operator = broken
    shutil.copy(COMPILED, package)
    _compile_library(package, "")
    message = use_operator()  # names the first symbol that is missing: of a build with CUDA, a launcher's
    assert f"does not fit the operator library {package / LIBRARY.name} (no symbol " in message
    assert ": run `pip install" in message


def test_library_of_another_version(broken):
    package, use_operator = broken
    shutil.copy(COMPILED, package)
    copy = package / LIBRARY.name
    version = f"{refinedet.__version__}\0".encode()
    copy.write_bytes(LIBRARY.read_bytes().replace(version, b"9" * (len(version) - 1) + b"\0"))
    message = use_operator()
    assert (
        f"the operator library is of refinedet 99999, the Python files are of {refinedet.__version__}: run" in message
    )


def _compile_library(package: Path, source: str) -> None:
    """In place of the package's, with the same name for the loader."""
    command = ["c++", "-w", "-shared", "-fPIC", "-Wl,-z,now", f"-Wl,-soname,{LIBRARY.name}", "-x", "c++", "-"]
    subprocess.run([*command, "-o", package / LIBRARY.name], input=source, text=True, check=True)


def test_built_for_another_version(broken):
    package, use_operator = broken
    for path in (COMPILED, LIBRARY):
        shutil.copy(path, package)
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
