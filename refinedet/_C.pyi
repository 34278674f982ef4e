"""Types of the compiled module; csrc/python says what the functions do.

A build without CUDA kernels lacks ``kernel_resources``, ``driver_version`` and ``launchers``.
"""

from collections.abc import Sequence
from typing import Protocol, TypedDict, type_check_only

from typing_extensions import NotRequired

class BuildInfo(TypedDict):
    """`nvcc` and the two after it are there where `cuda` is True."""

    version: str
    compiler: str
    flags: str
    torch_built_with: str
    torch_target: str
    cuda: bool
    nvcc: NotRequired[str]
    nvcc_flags: NotRequired[str]
    architectures: NotRequired[str]

def build_info() -> BuildInfo: ...
def library_version() -> str: ...
def kernel_resources() -> str: ...
def driver_version() -> int: ...

@type_check_only
class _Launcher(Protocol):
    """`<op>` gives None, `<op>_workspace_bytes` a number."""

    def __call__(self, **fields: int | float | str | Sequence[float] | Sequence[tuple[int, ...]]) -> int | None: ...

@type_check_only
class _Launchers:
    """The submodule `launchers`: for each operator `<op>` and `<op>_workspace_bytes`.

    Arguments go by keyword. They are the fields of the structs in csrc/ops/<op>/<op>.h, which a launcher's docstring
    lists: addresses of device memory as integers (0 = none), sizes, options, and the address of a stream.
    """

    def __getattr__(self, name: str) -> _Launcher: ...

launchers: _Launchers
