"""`make bench-check`: how it compares, what it says, and that it counts what the product compiles."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import plant_slowdowns
import pytest
from guard import baseline, calls, command, instructions, kernels, processes, times
from guard.baseline import Accepted, Measured
from guard.processes import GuardError
from support.paths import ROOT

TOOLS = {"compiler": "c++ 12.2.0"}
OLD = Accepted({"detect": {"VOC 320": 1000, "12 anchors": 100}, "nms": {"1,000 boxes": 0}}, TOOLS, "the first")


def measured(**changed: float | None) -> Measured:
    """The accepted numbers, but for those of detect that are given; None: it is not measured."""
    numbers = OLD.values["detect"] | {name.replace("_", " "): value for name, value in changed.items()}
    return Measured({**OLD.values, "detect": {k: v for k, v in numbers.items() if v is not None}}, TOOLS)


@pytest.mark.parametrize(
    ("new", "line"),
    [
        (measured(VOC_320=1031), "detect, VOC 320: was 1,000, is 1,031 (+3.1%): FAILED, at most 3% is allowed"),
        (measured(VOC_320=None), "detect, VOC 320: was 1,000, but is no longer measured"),
        (measured(dense=7), "detect, dense: is 7, but the baseline does not have it"),
        (
            replace(OLD, values={**OLD.values, "nms": {"1,000 boxes": 1}}),
            "nms, 1,000 boxes: was 0, is 1: FAILED, at most 3% is allowed",
        ),
    ],
)
def test_growth_fails_and_is_named(new: Measured, line: str) -> None:
    report = baseline.report("operators", OLD, new, 0.03)
    assert report.lines == [line, report.lines[-1]]
    assert report.lines[-1].startswith("operators: ")
    assert report.lines[-1].endswith("1 failed, 0 better by more than 3%")
    assert report.failed
    assert report.comparable
    assert baseline.advice([report]) == ['If a growth is meant: make bench-accept REASON="..."']


@pytest.mark.parametrize("number", [1000, 1030, 970])
def test_what_stays_within_the_limit_passes(number: int) -> None:
    report = baseline.report("operators", OLD, measured(VOC_320=number), 0.03)
    assert report.lines == ["operators: 3 numbers, 0 failed, 0 better by more than 3%"]
    assert (report.failed, report.comparable, report.improved) == (False, True, False)
    assert baseline.advice([report]) == []


def test_what_is_better_is_said_and_passes() -> None:
    report = baseline.report("operators", OLD, measured(VOC_320=900), 0.03)
    assert report.lines[0] == "detect, VOC 320: was 1,000, is 900 (-10.0%): better"
    assert (report.failed, report.comparable, report.improved) == (False, True, True)
    assert baseline.advice([report]) == ['What is better may grow back unseen, until: make bench-accept REASON="..."']


@pytest.mark.parametrize(
    ("old", "line"),
    [
        (None, "operators: NOT COMPARABLE: there is no baseline"),
        (
            replace(OLD, made_with={"compiler": "clang 16"}),
            "operators: NOT COMPARABLE: compiler is c++ 12.2.0, the baseline was made with clang 16",
        ),
    ],
)
def test_other_tools_are_not_compared(old: Accepted | None, line: str) -> None:
    report = baseline.report("operators", old, measured(), 0.03)
    assert report.lines == [line]
    assert (report.failed, report.comparable) == (False, False)
    assert "make bench-accept" in "".join(baseline.advice([report]))


def test_only_what_has_moved_is_renewed() -> None:
    """Else small steps would add up."""
    values = {**OLD.values, "detect": {"VOC 320": 1020, "12 anchors": 150}}
    kept = {**OLD.values, "detect": {"VOC 320": 1000, "12 anchors": 150}}
    assert baseline.renewed(OLD, Measured(values, TOOLS), 0.03, "x") == Accepted(kept, TOOLS, "x")
    assert baseline.renewed(OLD, measured(VOC_320=1020), 0.03, "x") is OLD
    assert baseline.renewed(OLD, Measured(values, {}), 0.03, "x") == Accepted(values, {}, "x")


def run(monkeypatch: pytest.MonkeyPatch, number: int, *arguments: object) -> int:
    """The command, where only operators are measured and detect costs `number`."""
    part = replace(command.OPERATORS, measure=lambda: measured(VOC_320=number))
    monkeypatch.setattr(command, "COUNTED", (part,))
    return command.main([*map(str, arguments), "--only", "operators"])


def test_check_and_accept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "baseline.json"
    assert run(monkeypatch, 1000, "check", "--baseline", file) == 2
    assert run(monkeypatch, 1000, "accept", "--baseline", file, "--reason", "the first") == 0
    assert run(monkeypatch, 1000, "check", "--baseline", file) == 0
    capsys.readouterr()
    assert run(monkeypatch, 1100, "check", "--baseline", file) == 1
    assert "detect, VOC 320: was 1,000, is 1,100 (+10.0%): FAILED" in capsys.readouterr().out
    assert run(monkeypatch, 1100, "accept", "--baseline", file, "--reason", "checks NaN as well") == 0
    assert run(monkeypatch, 1100, "check", "--baseline", file) == 0
    assert json.loads(file.read_text())["operators"]["reason"] == "checks NaN as well"


@pytest.mark.parametrize("reason", ["", "  "])
def test_accepting_needs_a_reason(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["accept", "--reason", reason])
    assert stop.value.code == 2
    assert "the reason is empty" in capsys.readouterr().err


def test_without_valgrind_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert command.main(["check", "--only", "operators", "--baseline", str(tmp_path / "none.json")]) == 2
    error = capsys.readouterr().err
    assert error == f"bench-check: {instructions.INSTALL}\n"


def test_a_time_is_measured_again_before_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes a ratio longer once, a slowdown always."""
    accepted = Accepted({"model.detect": {"of it": 2.0}}, {}, "")
    for ratios, least, needed in [
        ([2.1], 2.1, 1),
        ([2.5, 2.1], 2.1, 2),
        ([2.5, 2.6, 2.4, 2.7, 2.5], 2.4, 5),
        ([1.5], 1.5, 1),
    ]:
        answers = iter([Measured({"model.detect": {"of it": ratio}}, {}) for ratio in [*ratios, 0.0]])
        monkeypatch.setattr(times, "in_process", lambda package, answers=answers: next(answers))
        assert times.measure(accepted, 0.1).values == {"model.detect": {"of it": least}}
        assert len([*answers]) == len(ratios) + 1 - needed


def test_a_processor_without_a_ratio_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accepting adds its ratio to those of the others."""
    file = tmp_path / "baseline.json"

    def run(verb: str, processor: str, ratio: float) -> int:
        answer = Measured({"model.detect": {processor: ratio}}, {"torch": "2.14"})
        monkeypatch.setattr(times, "in_process", lambda package: answer)
        reason = ["--reason", "x"] if verb == "accept" else []
        return command.main([verb, "--only", "times", "--baseline", str(file), *reason])

    assert run("check", "one", 2.0) == 2  # no baseline of any
    assert run("accept", "one", 2.0) == 0
    assert run("check", "one", 2.3) == 1
    capsys.readouterr()
    assert run("check", "other", 9.0) == 0
    assert "times: not compared, for there is no ratio of this processor: other" in capsys.readouterr().out
    assert run("accept", "other", 9.0) == 0
    assert run("check", "other", 9.0) == 0
    assert json.loads(file.read_text())["times"]["values"] == {"model.detect": {"one": 2.0, "other": 9.0}}


def test_the_baseline_has_every_operator_and_kernel() -> None:
    accepted = command.read(baseline.FILE)
    assert accepted.keys() == set(command.PARTS)
    operators = {path.name for path in (ROOT / "csrc" / "ops").iterdir()}
    assert accepted["operators"].values.keys() == operators
    assert all(len(cases) >= 2 for cases in accepted["operators"].values.values())
    assert accepted["calls"].values.keys() == operators | {"batched_nms"}
    budget = json.loads((ROOT / "docs" / "kernels" / "resources.json").read_text())
    assert kernels.accepted().values.keys() == budget["kernels"].keys()


def test_the_product_is_counted_as_it_is_compiled() -> None:
    flags = instructions.product_flags()
    assert {"-O3", "-ffp-contract=off"} <= set(flags)
    assert not any("native" in flag for flag in flags)
    files = {path.name for path in instructions.sources()}
    assert files >= {f"{path.name}_cpu.cpp" for path in (ROOT / "csrc" / "ops").iterdir()}
    assert "parallel.cpp" not in files  # torch's threads


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("c++ (Debian 12.2.0-14+deb12u1) 12.2.0", "GCC (Debian 12.2.0-14+deb12u1) 12.2.0"),
        ("x86_64-linux-gnu-g++-12 (GCC) 12.2.0", "GCC (GCC) 12.2.0"),
        ("Debian clang version 14.0.6", "Debian clang version 14.0.6"),
    ],
)
def test_a_compiler_is_the_same_by_every_name(version: str, name: str) -> None:
    assert instructions.compiler_name(version) == name


def test_every_operator_has_its_plant() -> None:
    for op in plant_slowdowns.OPERATORS:
        source = (ROOT / "csrc" / "ops" / op / f"{op}_cpu.cpp").read_text()
        assert f"{op}_itself(part, of_part, out);" in plant_slowdowns.twice(op, source)
        work = plant_slowdowns.instructions_of_a_warp(op)
        planted = plant_slowdowns.busy(plant_slowdowns.kernel_file(op).read_text(), work)
        assert len(re.findall(r"::slowdown::keep_busy<", planted)) == len(work) > 0


def test_the_table_of_plants_names_everything_and_all_is_caught() -> None:
    page = plant_slowdowns.PAGE.read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows
    assert all(line.endswith("| yes |") for line in rows)
    accepted = command.read(baseline.FILE)
    for part in ("operators", "kernels", "calls", "times"):
        for name in accepted[part].values:
            assert any(line.startswith(f"| `{name}` ") for line in rows), name


def test_make_hands_the_reason_on() -> None:
    """Without one it refuses."""
    make = ["make", "--dry-run", "--always-make", "bench-accept", 'REASON=it\'s "meant"']
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'benchmarks/guard accept --reason "$REASON"' in shown


def test_calls_are_counted() -> None:
    """Operators of torch, those inside others as well; functions of Python and of C; blocks of the heap."""
    import torch

    tensor = torch.zeros(3)
    assert calls.count_dispatches(lambda: None) == 0
    assert calls.count_dispatches(lambda: torch.zeros_like(tensor)) > calls.count_dispatches(tensor.zero_) > 0
    assert calls.count_functions(lambda: len([*map(abs, [1, 2])])) - calls.count_functions(lambda: None) == 1
    blocks = iter(range(0, 10 * calls.CALLS, 3))
    assert calls.count_blocks(lambda: None, lambda: next(blocks)) == 3


def test_a_broken_program_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(instructions, "find_valgrind", lambda: str(program))
    with pytest.raises(GuardError, match="valgrind could not count the operators:\nbroken"):
        instructions.count(program)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sh", "-c", "echo broken >&2; exit 3"], "it failed:\nbroken"),
        (["sleep", "60"], "it failed: no end in 1 s"),
        (["/absent/program"], "it failed: .*No such file"),
    ],
)
def test_a_process_that_fails_is_told(command: list[str], told: str) -> None:
    """Not by a traceback and the exit status of a growth."""
    with pytest.raises(GuardError, match=f"^{told}"):
        processes.run(command, "it failed", seconds=1)
