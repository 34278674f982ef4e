"""Loads the compiled module ``refinedet._C`` and with it the operator library beside it, ``librefinedet.so``.

The library registers the operators ``torch.ops.refinedet.*``. It needs no Python: `library_path` is for programs that
load it themselves. Where ``torch.ops.load_library`` has done so before, the module is linked with what is loaded.

Importing this module tries once and never raises: what went wrong is kept, with its fix. An operator's Python face
uses two things::

    from refinedet.ops import extension

    def refine(anchors, offsets):
        extension.require()                        # raises ExtensionError with the cause and the fix
        return torch.ops.refinedet.refine(...)

    @extension.register_fake("refine")             # shapes for torch.compile and torch.export
    def _(anchors, offsets): ...

``require()`` only compares one module-level value with None: it costs nothing beside an operator call, and
``torch.compile(fullgraph=True)`` and ``torch.export`` trace through it.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from refinedet import __version__
from refinedet.errors import ExtensionError

if TYPE_CHECKING:
    from refinedet._C import BuildInfo

OLDEST_TORCH = (2, 10)
JETSONS = ((5, 3), (6, 2), (7, 2), (8, 7))  # CUDA C++ programming guide, "binary compatibility": not on Tegra

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARY = _PACKAGE / "librefinedet.so"
_Function = TypeVar("_Function", bound=Callable[..., Any])

_module: ModuleType | None = None
_problem: tuple[str, str] | None = None  # cause, fix
_operators: list[str] = []
_autograd = torch.library.Library("refinedet", "IMPL")


def _fix(environment: str = "") -> str:
    """The command that builds the extension again, from the source tree when this is one."""
    root = _PACKAGE.parent
    if (root / "setup.py").exists() and (root / "csrc").is_dir():
        return f"run `{environment}python setup.py build_ext --inplace` in {root}"
    return f"run `{environment}pip install --force-reinstall --no-deps .` in the source folder of refinedet"


def _torch_is_too_old() -> bool:
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) < OLDEST_TORCH


def _module_file() -> Path | None:
    spec = importlib.util.find_spec("refinedet._C")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _is_truncated(path: Path) -> bool:
    """Does an ELF file end before its last part, the table of sections? To load it would kill Python."""
    with path.open("rb") as file:
        header = file.read(64)
    if not header.startswith(b"\x7fELF") or len(header) < 64:
        return False
    table = int.from_bytes(header[40:48], "little")
    entry_size, entries = int.from_bytes(header[58:60], "little"), int.from_bytes(header[60:62], "little")
    return path.stat().st_size < table + entry_size * entries


def _problem_with_files() -> str | None:
    """What is wrong with the two files, as far as it shows without loading them."""
    module = _module_file()
    if module is None:
        others = ", ".join(sorted(path.name for path in _PACKAGE.glob("_C.*.so")))
        if others:
            return f"refinedet was compiled for another Python than {sys.implementation.cache_tag} ({others})"
        return f"the compiled extension of refinedet is missing from {_PACKAGE}"
    if not _LIBRARY.exists():
        return f"the operator library of refinedet is missing ({_LIBRARY})"
    for path in (_LIBRARY, module):
        if _is_truncated(path):
            return f"the compiled extension of refinedet is damaged ({path} is truncated)"
    return None


def _explain(error: ImportError) -> str:
    """Why ``refinedet._C`` could not be imported."""
    text = str(error).strip().splitlines()[0]
    symbol = re.search(r"undefined symbol: (\S+)", text)
    if symbol is None:
        return f"the compiled extension of refinedet cannot be loaded ({text})"
    fits = f"torch {torch.__version__}" if _LIBRARY.name in text else f"the operator library {_LIBRARY}"
    return f"the compiled extension of refinedet does not fit {fits} (no symbol {symbol[1]})"


def load() -> ModuleType | None:
    """Imports ``refinedet._C`` and returns it; None when it cannot be used, with the reason kept for `problem`."""
    global _module, _problem
    _module = None
    if _torch_is_too_old():
        _problem = (f"torch {torch.__version__} is older than 2.10", "run `pip install --upgrade 'torch>=2.10'`")
        return None
    cause = _problem_with_files()
    if cause is not None:
        _problem = (cause, _fix())
        return None
    try:
        module = importlib.import_module("refinedet._C")
    except ImportError as error:
        _problem = (_explain(error), _fix())
        return None
    versions = {"compiled extension": module.build_info()["version"], "operator library": module.library_version()}
    for name, version in versions.items():
        if version != __version__:
            _problem = (f"the {name} is of refinedet {version}, the Python files are of {__version__}", _fix())
            return None
    _module, _problem = module, None
    return module


def problem() -> tuple[str, str] | None:
    """Why the operators cannot be used and what to do; None when they can be used."""
    return _problem


def require() -> None:
    """Raises `ExtensionError` when the operators cannot be used."""
    if _problem is not None:
        raise ExtensionError(": ".join(_problem))


def library_path() -> Path:
    """The file of the operator library, ``librefinedet.so``, for programs that load it without this package.

    ``torch.ops.load_library`` in Python and ``dlopen`` in C++ register every operator ``refinedet::*`` for the CPU, and
    for CUDA where the build has the kernels. The library needs libtorch, any from 2.10 on, and no Python.

    Raises:
        ExtensionError: the library or the module beside it is missing, damaged or does not fit this torch.
    """
    require()
    return _LIBRARY


def build_info() -> "BuildInfo | None":
    """How the extension was built; None without it.

    version, compiler, flags, torch_built_with, torch_target and cuda; where that is True also nvcc, nvcc_flags and
    architectures.
    """
    return _module.build_info() if _module is not None else None


def has_cuda() -> bool:
    """Does the extension hold CUDA kernels?"""
    return _cuda_module() is not None


def _cuda_module() -> ModuleType | None:
    return _module if _module is not None and _module.build_info()["cuda"] else None


def cuda_problem(device: torch.device) -> tuple[str, str] | None:
    """Why the operators cannot run on a GPU and what to do; None when they can."""
    info, driver = build_info(), driver_version()
    if info is None or not info["cuda"]:
        fix = f"install the CUDA toolkit, then {_fix('REFINEDET_CUDA=1 ')}"
        return "this build of refinedet has no CUDA kernels", fix
    if driver is not None and int(driver.split(".")[0]) < int(info["nvcc"].split(".")[0]):
        return (
            f"the CUDA kernels were compiled by CUDA {info['nvcc']}, and the NVIDIA driver supports {driver} at most",
            f"update the driver, or compile with an older toolkit: set CUDA_HOME and {_fix()}",
        )
    capability = torch.cuda.get_device_capability(device)
    if not any(_runs_on(capability, code) for code in info["architectures"].split()):
        number = "{}.{}".format(*capability)
        return (
            f"the CUDA kernels were compiled for compute capability {info['architectures']}, and {device} has {number}",
            _fix(f"TORCH_CUDA_ARCH_LIST={number} "),
        )
    return None


def _runs_on(capability: tuple[int, int], code: str) -> bool:
    """Does code compiled for ``code`` run on a GPU of this capability?

    Machine code and "10.0f" run on later GPUs of their generation but for a Jetson, which takes only its own; "9.0a" on
    no other GPU; PTX on all later GPUs.
    """
    ((major, minor, kind, ptx),) = re.findall(r"^(\d+)\.(\d)([af]?)(\+PTX)?$", code)
    built_for = int(major), int(minor)
    if capability <= built_for or kind == "a":
        return capability == built_for
    same_generation = capability[0] == built_for[0] and capability not in JETSONS
    return same_generation or (ptx != "" and kind == "")


def kernel_resources() -> str:
    """What the CUDA kernels need, as JSON: read it with `refinedet.profiling.resources`. Empty list without kernels."""
    module = _cuda_module()
    resources: str = "[]" if module is None else module.kernel_resources()
    return resources


def driver_version() -> str | None:
    """Newest CUDA ("13.0") that the NVIDIA driver here supports; None without a driver or without CUDA kernels."""
    module = _cuda_module()
    version = 0 if module is None else module.driver_version()
    return f"{version // 1000}.{version % 1000 // 10}" if version else None


def operators() -> tuple[str, ...]:
    """Names of the operators whose Python faces have been imported and which the extension provides."""
    return tuple(_operators)


def register_fake(name: str) -> Callable[[_Function], _Function]:
    """``torch.library.register_fake`` for the operator ``refinedet::name``; registers nothing without the extension.

    An overload's name is "operator.overload"; it counts as no operator of its own.

    No operator is differentiable: autograd lets its tensors through, and what it returns never requires a gradient.
    """

    def register(fake: _Function) -> _Function:
        global _problem
        if _problem is not None:
            return fake
        operator, _, overload = name.partition(".")
        if not hasattr(getattr(torch.ops.refinedet, operator, None), overload or "default"):
            _problem = (f"the compiled extension is older than the Python files (it has no operator {name})", _fix())
            return fake
        if not overload:
            _operators.append(operator)
        _autograd.impl(name, torch.library.fallthrough_kernel, "Autograd")
        registered: _Function = torch.library.register_fake(f"refinedet::{name}", fake)
        return registered

    return register


load()
