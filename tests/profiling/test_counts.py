"""What the kernels execute, beside docs/kernels/counts.json: `tools/count_kernels.py` says how it is renewed."""

import json

import count_kernels
import pytest
from kernel_budget import BUDGET, cuda_build
from ptx_on_cpu import harness as ptx_on_cpu
from support.counted_cases import CASES, Case

QUICK = [case for case in CASES if case.quick]


@pytest.fixture(scope="module")
def table() -> dict:
    return json.loads(count_kernels.TABLE.read_text())


@pytest.fixture(scope="module")
def interpreter(table: dict) -> None:
    try:
        version = ptx_on_cpu.toolkit().version
    except cuda_build.ToolkitError as error:
        pytest.skip(f"there is no PTX: {error}")
    if version != table["nvcc"]:
        pytest.skip(f"the table is for nvcc {table['nvcc']}, here is {version}")


def test_files_are_those_of_the_table(table: dict) -> None:
    """And the table is of all cases."""
    for path, text in count_kernels.files(table).items():
        assert path.read_text() == text
    assert {(name, case) for name in table["operators"] for case in table["operators"][name]} == {
        (case.operator, case.name) for case in CASES
    }


def test_every_kernel_is_counted_quickly(table: dict) -> None:
    entries = [table["operators"][case.operator][case.name] for case in QUICK]
    counted = {launch["kernel"] for entry in entries for launch in entry["launches"]}
    assert counted == set(json.loads(BUDGET.read_text())["kernels"])


@pytest.mark.ptx
@pytest.mark.parametrize("operator", ["detect", "match", "mine", "nms", "refine", "vote"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["quick", "every"])
def test_counts_are_those_of_the_table(interpreter: None, operator: str, every: bool) -> None:
    found = count_kernels.compare(case for case in CASES if case.operator == operator and case.quick is not every)
    assert not found, found


LAUNCH = {"kernel": "merge_classes_kernel", "blocks": 2, "warp_instructions": 1000, "atomics": 0}
CASE = Case("detect", "VOC 320, batch 1", lambda: ())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"warp_instructions": 1010}, None),
        ({"warp_instructions": 990}, None),
        ({"warp_instructions": 1011}, "warp_instructions was 1,000, is 1,011 (+1.1%)"),
        ({"warp_instructions": 989}, "warp_instructions was 1,000, is 989 (-1.1%)"),  # else the table would be untrue
        ({"atomics": 1}, "atomics was 0, is 1"),
        ({"spills": 1}, "spills was 0, is 1"),  # a number that the table lacks
    ],
)
def test_a_number_that_moves_is_named(changed: dict[str, int], message: str | None) -> None:
    found = count_kernels.differences(CASE, {"launches": [LAUNCH]}, {"launches": [LAUNCH | changed]})
    assert found == ([] if message is None else [f"merge_classes_kernel, detect, VOC 320, batch 1: {message}"])


def test_other_kernels_are_named() -> None:
    found = count_kernels.differences(CASE, {"launches": [LAUNCH]}, {"launches": []})
    assert found == ["detect, VOC 320, batch 1: the kernels were merge_classes_kernel, are "]


def test_a_line_that_moves_is_named() -> None:
    def entry(line: str, number: int) -> dict:
        lines = [{"file": "cuda/block.h", "line": line, "warp_instructions": number}]
        return {"launches": [LAUNCH], "lines": {"merge_classes_kernel": lines}}

    place = "merge_classes_kernel, detect, VOC 320, batch 1, cuda/block.h, `a = b;`"
    old = entry("a = b;", 100)
    assert count_kernels.differences(CASE, old, entry("a = b;", 101)) == []
    assert count_kernels.differences(CASE, old, entry("a = b;", 200)) == [
        f"{place}: warp_instructions was 100, is 200 (+100.0%)"
    ]
    assert count_kernels.differences(CASE, old, entry("a = c;", 100)) == [f"{place}: no longer among the busiest lines"]


def test_writing_needs_a_reason(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--write"], ["--write", "--reason", ""], ["--write", "--reason", "why", "--case", "detect"]):
        monkeypatch.setattr("sys.argv", ["count_kernels.py", *arguments])
        with pytest.raises(SystemExit):
            count_kernels.main()
        assert "--write counts all cases, and needs --reason" in capsys.readouterr().err


def test_comparing_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    case = QUICK[0]
    entry = json.loads(count_kernels.TABLE.read_text())["operators"][case.operator][case.name]
    moved = {**entry, "launches": [launch | {"barriers": launch["barriers"] + 1000} for launch in entry["launches"]]}
    monkeypatch.setattr(count_kernels, "count_all", lambda cases: {case.operator: {case.name: moved}})
    *lines, last = count_kernels.compare([case]).splitlines()
    assert len(lines) == len(entry["launches"])
    assert last == 'If that is meant: python tools/count_kernels.py --write --reason "..."'
    monkeypatch.setattr(count_kernels, "count_all", lambda cases: {case.operator: {case.name: entry}})
    assert count_kernels.compare([case]) == ""
