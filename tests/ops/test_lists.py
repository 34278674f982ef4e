"""Whoever adds an operator adds it everywhere: what goes through all of them, goes through those of csrc/ops."""

import pytest
from support.gpu_cases import OPERATORS, inputs
from support.paths import ROOT

from refinedet import ops
from refinedet.profiling import cost

NAMES = sorted(path.name for path in (ROOT / "csrc" / "ops").iterdir())
FILES = (
    *(f"csrc/ops/{{0}}/{{0}}{end}" for end in (".h", ".cpp", "_cpu.cpp", "_cuda.h", "_cuda.cu")),
    "refinedet/ops/{0}.py",
    "refinedet/ops/reference/{0}.py",
    "tests/ops/test_{0}.py",
    "docs/kernels/{0}.md",
)


@pytest.mark.parametrize("name", NAMES)
def test_files(name: str) -> None:
    assert [file for file in FILES if not (ROOT / file.format(name)).is_file()] == []


@pytest.mark.parametrize("name", NAMES)
def test_lists(name: str) -> None:
    assert name in ops.__all__
    assert name in ops.reference.__all__
    assert name in cost.OPERATORS or name in cost.OF_BOXES
    assert name in OPERATORS
    assert len(inputs(name)) >= 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "docs/kernels/cost.md"])
def test_documents(document: str, name: str) -> None:
    assert name in (ROOT / document).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_kernels(name: str) -> None:
    """The mutation table is made in minutes; that it is old shows here at once."""
    kernels = f"{name}_cuda.cu"
    assert f"({kernels})" in (ROOT / "docs" / "kernels" / "mutations.md").read_text()
