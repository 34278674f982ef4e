"""The CUDA part of the build: finding nvcc, choosing architectures, what comes out, what the kernels need.

Nothing here needs a GPU or a driver. Where there is no nvcc, what needs one is skipped.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import kernel_budget
import nvrtc
import ptxas
import pytest
import sass
import torch
from kernel_budget import BUDGET, CODE, CODE_TABLE, OLD_ARCHITECTURES, ROOT, TABLE
from torch._subclasses.fake_tensor import FakeTensorMode

from refinedet import ops
from refinedet.errors import ExtensionError
from refinedet.ops import extension
from refinedet.ops.call import call
from refinedet.profiling import resources as kernel_resources
from refinedet.profiling.resources import MULTIPROCESSORS, KernelResources

cuda_build = kernel_budget.cuda_build
OPERATORS = sorted(path.name for path in (ROOT / "csrc" / "ops").iterdir())
REGISTER_TOLERANCE = 2  # what an unrelated change may move


@pytest.fixture(scope="module")
def toolkit() -> cuda_build.Toolkit:
    try:
        return cuda_build.find_toolkit(os.environ, kernel_budget.site_packages())
    except cuda_build.ToolkitError as error:
        pytest.skip(f"the kernels cannot be compiled here: {error}")


@pytest.fixture(scope="module")
def build_info(toolkit: cuda_build.Toolkit) -> dict[str, str | bool]:
    """Of the installed extension, which has CUDA kernels wherever nvcc is, unless told otherwise."""
    info = extension.build_info()
    if os.environ.get("REFINEDET_CUDA") == "0":
        pytest.skip("REFINEDET_CUDA=0 leaves the kernels out")
    assert info["cuda"] is True
    return info


# --- Finding the toolkit: cuda_build.py -------------------------------------------------------------------------------


@pytest.fixture
def fake_toolkit(tmp_path: Path):
    """Makes a folder that looks like a CUDA toolkit, with a script for nvcc; returns the script."""

    def make(
        version: str = "12.4.131", architectures: tuple[str, ...] = ("52", "75", "90"), files: bool = True
    ) -> Path:
        top = tmp_path / "a toolkit"
        (top / "bin").mkdir(parents=True)
        names = "\n".join(f"compute_{name}" for name in architectures)
        nvcc = top / "bin" / "nvcc"
        nvcc.write_text(
            f'#!/bin/sh\ncase "$1" in\n'
            f'--version) echo "Cuda compilation tools, release {version[:4]}, V{version}";;\n'
            f'--list-gpu-arch) echo "{names}";;\n'
            f"--dryrun) echo '#$ TOP={top}/bin/..' >&2;;\nesac\n"
        )
        nvcc.chmod(0o755)
        if files:
            for file in ("include/cuda_runtime_api.h", "lib64/libcudart_static.a"):
                (top / file).parent.mkdir()
                (top / file).touch()
        return nvcc

    return make


def find(environ: dict[str, str], site_packages: Path = Path("/absent")) -> cuda_build.Toolkit:
    return cuda_build.find_toolkit({"PATH": "/usr/bin:/bin"} | environ, site_packages)


def test_toolkit_of_cuda_home(fake_toolkit) -> None:
    nvcc = fake_toolkit()
    top = nvcc.parent.parent
    assert find({"CUDA_HOME": str(top)}) == cuda_build.Toolkit(
        nvcc=str(nvcc),
        version="12.4.131",
        architectures=("5.2", "7.5", "9.0"),
        include=top / "include",
        cudart=top / "lib64" / "libcudart_static.a",
    )


def test_nvcc_on_path_may_be_a_script_elsewhere(fake_toolkit, tmp_path: Path) -> None:
    nvcc = fake_toolkit()
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{nvcc}" "$@"\n')
    script.chmod(0o755)
    found = find({"PATH": f"{script.parent}:/usr/bin:/bin"})
    assert found.nvcc == str(script)
    assert found.include == nvcc.parent.parent / "include"


@pytest.mark.parametrize(("version", "folder"), [("12.4.131", "cuda_runtime"), ("13.0.88", "cu13")])
def test_what_the_toolkit_lacks_comes_from_the_wheels_of_torch(
    fake_toolkit, tmp_path: Path, version: str, folder: str
) -> None:
    nvcc = fake_toolkit(version, files=False)
    wheel = tmp_path / "site-packages" / "nvidia" / folder
    for file in ("include/cuda_runtime_api.h", "lib/libcudart_static.a"):
        (wheel / file).parent.mkdir(parents=True)
        (wheel / file).touch()
    found = find({"CUDA_HOME": str(nvcc.parent.parent)}, tmp_path / "site-packages")
    assert found.include == wheel / "include"
    assert found.cudart == wheel / "lib" / "libcudart_static.a"


def test_incomplete_toolkit(fake_toolkit) -> None:
    nvcc = fake_toolkit(files=False)
    with pytest.raises(cuda_build.ToolkitError, match=r"incomplete: cuda_runtime_api\.h is in none of .*/a toolkit"):
        find({"CUDA_HOME": str(nvcc.parent.parent)})


def test_no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cuda_build.ToolkitError, match=r"no /absent/bin/nvcc: CUDA_HOME must name the folder"):
        find({"CUDA_HOME": "/absent"})
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(cuda_build.ToolkitError, match=r"^nvcc is not on PATH: install the CUDA toolkit, or set"):
        find({})


def test_nvcc_that_does_not_run(fake_toolkit) -> None:
    nvcc = fake_toolkit()
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(cuda_build.ToolkitError, match=r"/a toolkit/bin/nvcc does not work \("):
        find({"CUDA_HOME": str(nvcc.parent.parent)})


@pytest.fixture
def nvcc_13() -> cuda_build.Toolkit:
    known = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0")
    return cuda_build.Toolkit("nvcc", "13.0.88", known, Path(), Path())


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_build, "visible_gpus", list)


@pytest.mark.usefixtures("no_gpus")
def test_default_architectures(nvcc_13) -> None:
    chosen = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]
    assert cuda_build.choose_architectures({}, nvcc_13) == chosen
    older = cuda_build.Toolkit("nvcc", "12.4.131", ("5.2", "7.5", "8.0", "8.6", "9.0"), Path(), Path())
    assert cuda_build.choose_architectures({}, older) == ["7.5", "8.0", "8.6", "9.0+PTX"]


@pytest.mark.parametrize("text", ["8.6 9.0+PTX 9.0a", "8.6;9.0+PTX;9.0a", "8.6; 9.0+PTX; 9.0a"])
def test_requested_architectures(nvcc_13, text: str) -> None:
    chosen = cuda_build.choose_architectures({"TORCH_CUDA_ARCH_LIST": text}, nvcc_13)
    assert chosen == ["8.6", "9.0+PTX", "9.0a"]
    assert cuda_build.gencode_flags(chosen) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ampere", r"contains 'Ampere', expected items like 8\.6 or 9\.0\+PTX"),
        ("8.6+SASS", r"contains '8\.6\+SASS', expected"),
        ("8.6 5.2", r"contains 5\.2, but CUDA 13\.0\.88 compiles for 7\.5 8\.0 8\.6 8\.7 .* only"),
    ],
)
def test_bad_request(nvcc_13, text: str, message: str) -> None:
    with pytest.raises(cuda_build.ArchitectureError, match=f"^TORCH_CUDA_ARCH_LIST {message}"):
        cuda_build.choose_architectures({"TORCH_CUDA_ARCH_LIST": text}, nvcc_13)


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        (["8.6", "9.0"], ["8.6", "9.0"]),
        (["6.1", "8.6"], ["8.6"]),  # nvcc has dropped the first
        (["10.1"], ["10.0+PTX"]),  # nvcc does not know it, and machine code of 10.3 would not run on it
        (["13.0"], ["12.0+PTX"]),
    ],
)
def test_architectures_of_the_gpus(
    nvcc_13, monkeypatch: pytest.MonkeyPatch, gpus: list[str], chosen: list[str]
) -> None:
    monkeypatch.setattr(cuda_build, "visible_gpus", lambda: gpus)
    assert cuda_build.choose_architectures({}, nvcc_13) == chosen


def test_gpu_that_nvcc_has_dropped(nvcc_13, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_build, "visible_gpus", lambda: ["5.2"])
    with pytest.raises(cuda_build.ToolkitError, match=r"compiles for 7\.5 and later, and the GPU here is 5\.2: use an"):
        cuda_build.choose_architectures({}, nvcc_13)


def test_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '10.0\\n8.6\\n8.6\\n'\n")
    program.chmod(0o755)
    assert cuda_build.visible_gpus() == ["8.6", "10.0"]
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert cuda_build.visible_gpus() == []
    program.unlink()
    assert cuda_build.visible_gpus() == []


def test_older_nvcc_compiles_as_cxx17(fake_toolkit) -> None:
    toolkit = find({"CUDA_HOME": str(fake_toolkit("11.8.89").parent.parent)})
    assert "-std=c++17" in toolkit.flags(warnings_are_errors=False)


@pytest.mark.parametrize(
    ("cxx", "command"),
    [
        (None, "nvcc"),
        ("clang++", "nvcc -ccbin=clang++"),
        ("ccache g++", "ccache nvcc -ccbin=g++"),
        ("/opt/bin/sccache g++ -m64", "/opt/bin/sccache nvcc -ccbin=g++ -Xcompiler=-m64"),
    ],
)
def test_cxx_with_nvcc(nvcc_13, cxx: str | None, command: str) -> None:
    assert cuda_build.nvcc_command(nvcc_13, cxx and cxx.split()) == command.split()


@pytest.mark.parametrize(("jobs", "threads"), [(1, 1), (2, 1), (14, 1), (15, 2), (32, 5)])
def test_threads_of_nvcc(jobs: int, threads: int) -> None:
    """Five nvcc with so many threads and one more without: never more processes than jobs."""
    assert cuda_build.nvcc_threads(jobs, sources=5) == threads


# --- setup.py ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """setup.py with one C++ file and one CUDA file."""
    tree = tmp_path / "a small tree"
    op, cuda = tree / "csrc" / "ops" / "double", tree / "csrc" / "cuda"
    for folder in (op, cuda, tree / "refinedet", tree / "tools"):
        folder.mkdir(parents=True)
    for file in ("setup.py", "cuda_build.py", "tools/ptxas.py"):
        shutil.copy(ROOT / file, tree / file)
    (tree / "csrc" / "common.cpp").write_text("int zero() { return 0; }\n")
    (op / "double_cuda.h").write_text("#define FACTOR 2\n")
    (op / "double_cuda.cu").write_text(
        '#include "ops/double/double_cuda.h"\n'
        "__global__ void __launch_bounds__(64) double_kernel(int* x) { x[threadIdx.x] *= FACTOR; }\n"
    )
    (cuda / "table.cpp").write_text(
        '#include "kernel_resources.h"\n'
        'extern "C" __attribute__((visibility("default"))) const char* table() { return kKernelResources; }\n'
    )
    return tree


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, env=os.environ | environment, capture_output=True, text=True)


def compiled(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return {Path(line.rstrip("'")).name for line in done.stdout.splitlines() if "] compile " in line}


def test_build_with_cuda(toolkit, small_tree: Path) -> None:
    environment = {"REFINEDET_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0 9.0+PTX"}
    assert compiled(build(small_tree, **environment)) == {"common.cpp", "double_cuda.cu", "table.cpp"}
    table = ctypes.CDLL(str(small_tree / "refinedet" / "librefinedet.so")).table
    table.restype = ctypes.c_char_p
    rows = [KernelResources(**row) for row in json.loads(table().decode())]
    assert [(row.kernel, row.architecture, row.threads) for row in rows] == [
        ("double_kernel", "8.0", 64),
        ("double_kernel", "9.0", 64),
    ]
    assert compiled(build(small_tree, **environment)) == set()
    (small_tree / "csrc" / "ops" / "double" / "double_cuda.h").write_text("#define FACTOR 3\n")
    assert compiled(build(small_tree, **environment)) == {"double_cuda.cu"}


def test_compiler_errors_are_shown(toolkit, small_tree: Path) -> None:
    kernel = small_tree / "csrc" / "ops" / "double" / "double_cuda.cu"
    kernel.write_text(kernel.read_text() + "__global__ void __launch_bounds__(64) kernel() { int unused; }\n")
    environment = {"REFINEDET_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0"}
    done = build(small_tree, REFINEDET_WERROR="1", **environment)
    assert done.returncode != 0
    assert 'variable "unused" was declared but never referenced' in done.stdout
    done = build(small_tree, REFINEDET_WERROR="0", **environment)
    assert "double_cuda.cu" in compiled(done)
    assert 'variable "unused" was declared but never referenced' in done.stdout


def test_compiler_cache(toolkit, small_tree: Path, tmp_path: Path) -> None:
    """CXX="ccache g++": both compilers run behind ccache, here a script that writes down what it is asked for."""
    ccache = tmp_path / "bin" / "ccache"
    ccache.parent.mkdir()
    ccache.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\nexec "$@"\n')
    ccache.chmod(0o755)
    environment = {"CXX": "ccache g++", "PATH": f"{ccache.parent}:{os.environ['PATH']}"}
    done = build(small_tree, REFINEDET_CUDA="1", TORCH_CUDA_ARCH_LIST="8.0", **environment)
    assert compiled(done) == {"common.cpp", "double_cuda.cu", "table.cpp"}
    calls = (tmp_path / "calls").read_text().splitlines()
    for file in ("common.cpp", "table.cpp"):
        assert any(call.startswith("g++ ") and file in call for call in calls)
    assert any(call.startswith(f"{toolkit.nvcc} -ccbin=g++ ") and call.endswith("double_cuda.cu.o") for call in calls)


def test_build_without_nvcc(small_tree: Path) -> None:
    """By itself the build does without; asked for kernels, it fails."""
    done = build(small_tree, REFINEDET_CUDA="auto", CUDA_HOME="/absent")
    assert compiled(done) == {"common.cpp"}
    assert "refinedet: compiling without CUDA kernels: there is no /absent/bin/nvcc" in done.stderr
    done = build(small_tree, REFINEDET_CUDA="1", CUDA_HOME="/absent")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "refinedet: the CUDA kernels cannot be compiled: there is no /absent"
    )


def test_bad_settings(toolkit, small_tree: Path) -> None:
    done = build(small_tree, REFINEDET_CUDA="yes")
    assert done.stderr.splitlines()[-1] == "refinedet: REFINEDET_CUDA is 'yes', expected auto, 1 or 0"
    done = build(small_tree, REFINEDET_CUDA="auto", TORCH_CUDA_ARCH_LIST="2.0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("refinedet: TORCH_CUDA_ARCH_LIST contains 2.0, but CUDA")


# --- The extension ----------------------------------------------------------------------------------------------------


def test_build_info(toolkit, build_info) -> None:
    assert build_info["nvcc"] == toolkit.version
    assert "-fmad=false" in build_info["nvcc_flags"].split()
    names = {name.removesuffix("+PTX") for name in build_info["architectures"].split()}
    assert {row.architecture for row in kernel_resources.table()} == names


def test_operators_are_registered_for_cuda(build_info) -> None:
    for name in OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"refinedet::{name}", "CUDA")


def test_cuda_runtime_is_our_own(build_info) -> None:
    """Linked in and not visible: the one that torch brings along may be another version."""
    library = ops.library_path()
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in needed
    symbols = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    assert not [line for line in symbols.splitlines() if line.split()[-1].startswith(("cuda", "__cuda"))]


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is a build for the CPU")
def test_torch_has_the_function_that_names_its_stream() -> None:
    """The only symbol that csrc/cuda/device.cpp looks for by name."""
    library = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    assert library.aoti_torch_get_current_cuda_stream


@pytest.mark.skipif(extension.driver_version() is not None, reason="there is an NVIDIA driver here")
def test_launchers_without_a_driver(build_info) -> None:
    launchers = sys.modules["refinedet._C"].launchers
    assert extension.driver_version() is None
    sizes = {"batch": 1, "num_anchors": 6375}
    assert launchers.mine_workspace_bytes(**sizes, num_classes=21) > 0
    with pytest.raises(RuntimeError, match="CUDA driver version is insufficient for CUDA runtime version"):
        launchers.refine(
            type="float32",
            anchors=0,
            shared_anchors=True,
            offsets=0,
            variances=(0.1, 0.1, 0.2, 0.2),
            refined=0,
            stream=0,
            **sizes,
        )


def test_launchers_refuse(build_info) -> None:
    launchers = sys.modules["refinedet._C"].launchers
    sizes = {"batch": 1, "num_anchors": 6375, "num_classes": 21, "keep_top_k": 500}
    assert launchers.detect_workspace_bytes(**sizes, top_k=1000) > 0
    with pytest.raises(ValueError, match=r"^top_k is 5000, on CUDA at most 2048$"):
        launchers.detect_workspace_bytes(**sizes, top_k=5000)


REFINE = {
    "type": "float32",
    "anchors": 0,
    "offsets": 0,
    "batch": 0,
    "num_anchors": 7,
    "shared_anchors": True,
    "variances": (0.1, 0.1, 0.2, 0.2),
    "refined": 0,
    "stream": 0,
}


def test_arguments_of_launchers(build_info) -> None:
    """Named by the fields of the structs; every one is needed, no other is taken, and a wrong type is told."""
    launchers = sys.modules["refinedet._C"].launchers
    launchers.refine(**REFINE)  # no images: nothing is launched
    assert "type, anchors, offsets, batch, num_anchors, shared_anchors, variances, refined" in launchers.refine.__doc__
    assert "levels = [(arm_loc, arm_conf, odm_loc, odm_conf, num_anchors), ...]" in launchers.detect.__doc__
    for name in REFINE:
        with pytest.raises(TypeError, match=rf"^refine\(\) lacks the argument '{name}'$"):
            launchers.refine(**{key: value for key, value in REFINE.items() if key != name})
    with pytest.raises(TypeError, match=r"^refine\(\) has no argument 'workspace'$"):
        launchers.refine(**REFINE, workspace=0)
    with pytest.raises(TypeError, match=r"^refine\(\): batch cannot be 1\.5$"):
        launchers.refine(**REFINE | {"batch": 1.5})
    with pytest.raises(ValueError, match=r"^type is 'float64', expected float32, float16 or bfloat16$"):
        launchers.refine(**REFINE | {"type": "float64"})


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "levels has 0 items, expected 1 to 4"),
        ([(0, 0, 0, 0, 7)] * 5, "levels has 5 items, expected 1 to 4"),
        ([(0, 0, 0, 7)], "an item of levels has 4 values, expected 5"),
    ],
)
def test_levels_of_a_launcher(build_info, levels: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        sys.modules["refinedet._C"].launchers.detect(type="float32", levels=levels)


FAILING_RUNTIME = """
#include <cstddef>
#include <utility>
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return last_error = cudaErrorInvalidValue; }
inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
"""
REPORTS_AN_ERROR = """
#include "cuda/runtime.h"
#include <cstring>

int main() {
  try {
    refinedet::cuda::memset_async(nullptr, 0, 8, nullptr);
  } catch (const std::runtime_error& error) {
    return std::strcmp(error.what(), "memset: invalid argument") == 0 && last_error == cudaSuccess ? 0 : 1;
  }
  return 2;
}
"""


def test_an_error_is_reported_once(tmp_path: Path) -> None:
    """CUDA's runtime remembers an error until it is asked: the launch after it must not be blamed."""
    (tmp_path / "cuda_runtime_api.h").write_text(FAILING_RUNTIME)
    (tmp_path / "program.cpp").write_text(REPORTS_AN_ERROR)
    command = ["c++", "-std=c++20", "-I.", f"-I{ROOT / 'csrc'}", "program.cpp", "-o", "program"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "program"], check=True)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Pretends that the extension was built so, on a machine with a driver and a GPU, of compute capability 6.1."""

    def build(driver: int, capability: tuple[int, int] = (6, 1), **info: str | bool) -> None:
        module = types.SimpleNamespace(build_info=lambda: info, driver_version=lambda: driver)
        monkeypatch.setattr(extension, "_module", module)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return build


def problem() -> str:
    return ": ".join(extension.cuda_problem(torch.device("cuda", 0)))


def test_build_without_kernels_meets_a_gpu(pretend) -> None:
    pretend(13000, cuda=False)
    assert problem().startswith(
        "this build of refinedet has no CUDA kernels: install the CUDA toolkit, then run `REFINEDET_CUDA=1 python "
    )


def test_driver_that_is_too_old(pretend) -> None:
    pretend(12040, cuda=True, nvcc="13.0.88", architectures="7.5 9.0+PTX")
    assert problem().startswith(
        "the CUDA kernels were compiled by CUDA 13.0.88, and the NVIDIA driver supports 12.4 at most: update the driver"
    )


@pytest.mark.parametrize("architectures", ["7.5 9.0+PTX", "6.2", "5.2", "6.0a+PTX 5.2f+PTX"])
def test_kernels_for_other_gpus(pretend, architectures: str) -> None:
    pretend(12090, cuda=True, nvcc="12.9.86", architectures=architectures)
    assert problem().startswith(
        f"the CUDA kernels were compiled for compute capability {architectures}, and cuda:0 has 6.1: "
        "run `TORCH_CUDA_ARCH_LIST=6.1 python setup.py build_ext --inplace` in "
    )


@pytest.mark.parametrize("architectures", ["6.1", "6.0 7.5", "5.2+PTX", "7.5 6.1+PTX", "6.0f", "6.1a+PTX 7.0"])
def test_kernels_that_run_on_the_gpu(pretend, architectures: str) -> None:
    pretend(12040, cuda=True, nvcc="12.9.86", architectures=architectures)
    assert extension.cuda_problem(torch.device("cuda", 0)) is None


def test_jetson_takes_only_its_own_machine_code(pretend) -> None:
    def problem_with(architectures: str) -> tuple[str, str] | None:
        pretend(12040, capability=(8, 7), cuda=True, nvcc="12.9.86", architectures=architectures)
        return extension.cuda_problem(torch.device("cuda", 0))

    assert problem_with("8.7") is None
    assert problem_with("8.0+PTX") is None
    assert "TORCH_CUDA_ARCH_LIST=8.7" in problem_with("7.5 8.0 8.6")[1]


@pytest.mark.parametrize("in_a_list", [False, True])
def test_error_of_an_operator_names_the_problem(pretend, monkeypatch: pytest.MonkeyPatch, in_a_list: bool) -> None:
    """What the dispatcher says about a CUDA tensor in a build for the CPU is replaced by cause and fix."""
    pretend(13000, cuda=False)

    def fail(*_: object) -> None:
        raise NotImplementedError("Could not run 'refinedet::refine' with arguments from the 'CUDA' backend.")

    monkeypatch.setattr(torch.ops.refinedet.refine, "default", fail)
    with FakeTensorMode():
        anchors = torch.empty(5, 4, device="cuda")
    with pytest.raises(
        ExtensionError, match=r"^refinedet\.refine: this build of refinedet has no CUDA kernels: install"
    ):
        call("refine", [anchors] if in_a_list else anchors, (0.1, 0.1, 0.2, 0.2))


# --- What the kernels need --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budget() -> dict:
    return json.loads(BUDGET.read_text())


def check_budget(rows: list[KernelResources], budget: dict) -> None:
    for row in rows:
        allowed = budget["kernels"][row.kernel]
        cell = allowed["architectures"][row.architecture]
        assert row.spills == row.stack == 0, row
        assert row.registers <= cell["registers"] + REGISTER_TOLERANCE, row
        assert row.shared + kernel_resources.DYNAMIC_SHARED.get(row.kernel, 0) <= allowed["shared"], row
        assert row.threads == allowed["threads"], row
        assert row.occupancy() >= cell["occupancy"], row


def test_table_of_resources_is_that_of_the_budget(budget) -> None:
    assert TABLE.read_text() == kernel_budget.to_markdown(budget)


def test_kernels_fit_the_budget(build_info, budget) -> None:
    rows = [row for row in kernel_resources.table() if row.architecture in MULTIPROCESSORS]
    assert {row.kernel for row in rows} == set(budget["kernels"])
    if build_info["nvcc"] != budget["nvcc"]:
        assert all(row.spills == 0 for row in rows)
        pytest.skip(f"the budget is for nvcc {budget['nvcc']}, the kernels were compiled by {build_info['nvcc']}")
    check_budget(rows, budget)


def test_every_default_architecture_is_compiled(toolkit, build_info) -> None:
    """Warnings are errors. What the installed extension has need not be compiled again."""
    if set(cuda_build.default_architectures(toolkit)) <= set(build_info["architectures"].split()):
        return
    rows = kernel_budget.with_nvcc(toolkit).rows
    assert {row.kernel for row in rows} == {row.kernel for row in kernel_resources.table()}


def test_kernels_compile_for_architectures_that_nvcc_has_dropped(budget) -> None:
    compiled = kernel_budget.with_nvrtc()
    assert compiled.warnings == []
    assert {(row.kernel, row.architecture) for row in compiled.rows} == {
        (kernel, architecture) for kernel in budget["kernels"] for architecture in OLD_ARCHITECTURES
    }
    check_budget(compiled.rows, budget)


def test_tables_of_machine_code_are_those_of_the_file() -> None:
    assert CODE_TABLE.read_text() == sass.to_markdown(json.loads(CODE.read_text()))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_machine_code_is_that_of_the_table(build_info, budget, every: bool) -> None:
    """Of the installed extension, so that nothing is compiled for it; of the newest architecture in it, or of all."""
    expected = json.loads(CODE.read_text())
    newest = max({row.architecture for row in kernel_resources.table()} & set(MULTIPROCESSORS), key=float)
    rows = sass.table(Path(sys.modules["refinedet._C"].__file__), "*" if every else newest)
    assert {row.kernel for row in rows} == set(expected["kernels"]) == set(budget["kernels"])
    assert all(row.local_accesses == 0 for row in rows)
    if build_info["nvcc"] != expected["nvcc"]:
        pytest.skip(f"the table is for nvcc {expected['nvcc']}, the kernels were compiled by {build_info['nvcc']}")
    table = {(row.kernel, row.architecture): row for row in sass.from_json(expected)}
    compared = [(row, table[row.kernel, row.architecture]) for row in rows if row.architecture in MULTIPROCESSORS]
    for row, other in compared:
        assert row.instructions == pytest.approx(other.instructions, rel=0.01), (row, other)
        assert replace(row, instructions=other.instructions) == other, "renew: python tools/kernel_budget.py"


@pytest.mark.parametrize("source", kernel_budget.SOURCES, ids=lambda source: source.stem)
def test_arithmetic_is_that_of_the_cpu(source: Path) -> None:
    """Rounded to nearest after every operation, subnormals kept; a driver may contract what does not say ".rn".

    Only the logarithm of match's targets, from the compiler's library, contracts.
    """
    _, ptx = nvrtc.compile_kernels(source, OLD_ARCHITECTURES[0], kernel_budget.CSRC)
    operations = "add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|tanh"
    found = set(re.findall(rf"\b(?:{operations})(?:\.\w+)*\.f(?:32|64)\b", ptx))
    allowed = {f"{name}.rn.{kind}" for name in ("add", "sub", "mul", "div", "rcp") for kind in ("f32", "f64")}
    assert "mul.rn.f32" in found
    assert found - allowed == ({"fma.rn.f32"} if source.stem == "match_cuda" else set())


OCCUPANCY = """
#include <cuda_occupancy.h>
#include <climits>
#include <iostream>

int main() {
  int major, minor, warps, registers, threads;
  size_t shared_kib, reserved, shared;
  while (std::cin >> major >> minor >> warps >> shared_kib >> reserved >> registers >> shared >> threads) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = device.sharedMemPerBlockOptin = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_kib << 10;
    device.reservedSharedMemPerBlock = reserved;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0) != CUDA_OCC_SUCCESS)
      return 1;
    std::cout << result.activeBlocksPerMultiprocessor << "\\n";
  }
}
"""


def test_occupancy_is_that_of_the_calculator_of_nvidia(toolkit, tmp_path: Path) -> None:
    (tmp_path / "occupancy.cpp").write_text(OCCUPANCY)
    command = ["c++", "-isystem", toolkit.include, "occupancy.cpp", "-o", "occupancy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    rows = [
        KernelResources("kernel", name, registers, 0, 0, shared, threads)
        for name in MULTIPROCESSORS
        for registers in (16, 32, 33, 40, 41, 64, 96, 128)
        for shared in (0, 100, 1056, 18464, 33000, 49152)
        for threads in (32, 64, 96, 256, 512)
    ]
    lines = []
    for row in rows:
        limits = MULTIPROCESSORS[row.architecture]
        major, minor = row.architecture.split(".")
        numbers = [limits.warps, limits.shared_kib, limits.shared_reserved, row.registers, row.shared, row.threads]
        lines.append(" ".join(map(str, [major, minor, *numbers])))
    command = [tmp_path / "occupancy"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    assert [row.blocks_per_multiprocessor() for row in rows] == [int(line) for line in done.stdout.split()]


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN9refinedet4cuda41_GLOBAL__N__f26bf5cc_9_refine_cu_39d7d2b211move_kernelINS0_4HalfEEEvPKT_' for 'sm_100a'
ptxas info    : Function properties for _ZN9refinedet4cuda41_GLOBAL__N__f26bf5cc_9_refine_cu_39d7d2b211move_kernelINS0_4HalfEEEvPKT_
    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 24 bytes cumulative stack size, 2656 bytes smem, 424 bytes cmem[0]
ptxas info    : Compile time = 60.802 ms
"""  # noqa: E501
PTX = ".visible .entry _ZN9refinedet4cuda11move_kernelINS0_4HalfEEEvPKT_(\n .param .u64 p\n)\n.maxntid 128, 1, 1\n{"


def test_parse() -> None:
    (row,) = ptxas.parse([PTXAS], [PTX])
    expected = KernelResources("move_kernel<Half>", "10.0", 30, spills=24, stack=24, shared=2656, threads=128)
    assert KernelResources(**row) == expected


SASS = """\
\t.target\tsm_75
.text._Z11move_kernelPKf:
        /*0000*/                   LDG.E.128.SYS R4, [R2] ;
.L_x_1:
        /*0010*/                   R2UR UR4, R4 ;
        /*0020*/                   LDS.U.128 R4, [R8] ;
        /*0030*/                   ISETP.NE.U32.AND P0, PT, RZ, UR4, PT ;
        /*0040*/                   BRA.DIV ~URZ, `(.L_x_3) ;
.L_x_4:
        /*0050*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   ISETP.NE.U32.AND P0, PT, R5, UR4, PT ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
        /*0080*/                   STL [R1], R4 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_4) ;
.L_x_5:
        /*00b0*/                   BRA `(.L_x_5);
        /*00c0*/                   NOP;
//--------------------- SYMBOLS
"""


def test_parse_machine_code() -> None:
    """Two loops, one of them uniform; the jump back from behind the end makes none, nor does the one that fills up."""
    (row,) = sass.parse(SASS)
    assert row == sass.MachineCode(
        "move_kernel",
        "7.5",
        instructions=12,
        wide_global_loads=1,
        wide_shared_loads=1,
        loops=2,
        uniform_loops=1,
        moves_in_loops=1,
        local_accesses=1,
    )


def test_summary() -> None:
    small = KernelResources("small_kernel", "9.0", 16, spills=0, stack=0, shared=0, threads=256)
    large = KernelResources("large_kernel", "9.0", 64, spills=8, stack=8, shared=0, threads=256)
    assert kernel_resources.summary([small, large]) == (
        "2 kernels, at most 64 registers, spills in large_kernel, occupancy 50% to 100%"
    )
    assert "no spills" in kernel_resources.summary([small])
