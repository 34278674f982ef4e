"""Compiles CUDA source with NVRTC 12, the last that knows Maxwell and Pascal; kernels only, no host code.

The library comes with the package nvidia-cuda-nvrtc-cu12 and needs neither a driver nor a GPU.
"""

import ctypes
import functools
import importlib.util
import re
from pathlib import Path

OPTIONS = ("-std=c++20", "-fmad=false", "-lineinfo", "--ptxas-options=-v", "-default-device")


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    if spec is None or spec.submodule_search_locations is None:
        raise RuntimeError("NVRTC is missing: run `pip install nvidia-cuda-nvrtc-cu12`")
    (folder,) = spec.submodule_search_locations
    (path,) = (Path(folder) / "lib").glob("libnvrtc.so.12")
    return ctypes.CDLL(str(path))


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_kernels(source: Path, architecture: str, include: Path) -> tuple[str, str]:
    """The compiler's log, with what ptxas says of every kernel, and the PTX.

    Raises RuntimeError with the log when there are errors.
    """
    number = architecture.replace(".", "")
    options = [f"--gpu-architecture=sm_{number}", f"-I{include}", *OPTIONS]
    text = source.read_text()
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), source.name.encode(), 0, None, None)
    for kernel in _plain_kernels(text):
        _call("nvrtcAddNameExpression", program, f"refinedet::cuda::{kernel}".encode())
    strings = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = _library().nvrtcCompileProgram(program, len(options), strings)
    log = _text(program, "ProgramLog")
    if status != 0:
        raise RuntimeError(f"{source.name} does not compile for sm_{number}:\n{log}")
    ptx = _text(program, "PTX")
    _call("nvrtcDestroyProgram", ctypes.byref(program))
    return log, ptx


def _plain_kernels(text: str) -> list[str]:
    """Kernels that are no templates: NVRTC compiles only what is asked for, or instantiated in the source."""
    text = re.sub(r"//.*", "", text)
    found = re.findall(r"(\btemplate\b[^;{}]*)?__global__ void\s+(?:__launch_bounds__\([\w, ]+\)\s*)?(\w+)\(", text)
    return [name for template, name in found if not template]


def _text(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, text)
    return text.value.decode()
