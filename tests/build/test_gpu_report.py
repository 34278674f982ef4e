"""`make gpu-report` without a GPU: its parts, runs that are cut off, the document. `.ci/run` makes a dry run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_report import command, document, machine, measured, page, runner, worker
from gpu_report.document import (
    CUT_OFF,
    FAILED,
    PASSED,
    RUNNING,
    SKIPPED,
    WAITING,
    Figure,
    PartReport,
    Report,
    ReportError,
)
from gpu_report.parts import CALIBRATION, PARTS, Part
from gpu_report.stages import build, counters
from support.paths import ROOT

from refinedet.profiling import cost

NINE_MINUTES = 540
H100 = cost.DEVICES[-1]


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_limits_are_below_nine_minutes() -> None:
    assert sum(part.limit for part in (*PARTS, CALIBRATION)) < NINE_MINUTES


def test_the_limits_in_the_document_are_these() -> None:
    text = (ROOT / "docs" / "profiling.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    parts = (*PARTS, CALIBRATION)
    assert rows == [(part.name, str(part.limit)) for part in parts]
    assert f"together {sum(part.limit for part in parts)} s" in text


def test_order_is_proof_then_speed_then_profiles() -> None:
    assert [part.name for part in PARTS] == [
        *("build", "doctor", "compare", "operator_tests", "gpu_tests"),
        *("operators", "networks", "compiled", "images", "training", "counters", "sanitizer"),
    ]


def test_every_part_has_its_module() -> None:
    stages = {path.stem for path in (ROOT / "benchmarks" / "gpu_report" / "stages").glob("*.py")}
    assert {part.name for part in (*PARTS, CALIBRATION)} == stages - {"__init__", "pytest_runs"}


def test_what_is_missing_is_named() -> None:
    part = Part("x", "X", 1, packages=("torch", "no_such_package"), programs=("no-such-program",))
    assert runner.missing(part, dry_run=True) == "not installed: no_such_package"
    without = replace(part, packages=())
    assert "no-such-program" in (runner.missing(without, dry_run=False) or "")
    assert runner.missing(without, dry_run=True) is None


def test_build_names_the_packages_to_carry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {"setuptools": "68.1.2", "pybind11": "absent", "ninja": "1.13.0"}
    monkeypatch.setattr(machine, "version", versions.get)
    build.run(worker.Job(tmp_path / "records", tmp_path, dry_run=False))
    (record,) = map(json.loads, (tmp_path / "records").read_text().splitlines())
    assert record["state"] == FAILED
    assert "'setuptools>=77' 'pybind11>=3'" in record["reason"]
    assert "ninja" not in record["reason"]


def test_build_is_for_the_gpus_present_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 9.0")
    monkeypatch.setenv("REFINEDET_CUDA", "0")
    on_gpu, dry = build.environment(dry_run=False), build.environment(dry_run=True)
    assert (on_gpu.get("TORCH_CUDA_ARCH_LIST"), on_gpu["REFINEDET_CUDA"]) == (None, "1")
    assert (dry["TORCH_CUDA_ARCH_LIST"], dry["REFINEDET_CUDA"]) == ("7.5 8.0 9.0", "0")


# --- Runs of a part ---------------------------------------------------------------------------------------------------

FIGURE = {"figure": {"case": "a", "name": "time", "value": 1.5, "unit": "us"}}


def script(folder: Path, name: str, *records: dict, then: str = "") -> list[str]:
    """A process that writes records as a part's does, and then runs a line of Python."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path = folder / f"{name}.jsonl"
    return [sys.executable, "-c", f"import os, sys, time\nopen({str(path)!r}, 'a').write({lines!r})\n{then}"]


def run_part(folder: Path, *records: dict, then: str = "", limit: float = 60) -> tuple[PartReport, list[str]]:
    found, states = PartReport("part", "Part", 60), []
    command = script(folder, "part", *records, then=then)
    runner.run(command, found, folder, lambda: states.append(found.state), limit)
    return found, states


def test_a_part_that_passes(tmp_path: Path) -> None:
    found, states = run_part(tmp_path, FIGURE, {"note": "hello"})
    assert (found.state, found.notes, found.figures) == (PASSED, ["hello"], [Figure("a", "time", 1.5, "us")])
    assert found.seconds is not None
    assert states[0] == RUNNING


def test_a_part_that_outlasts_its_limit_keeps_what_it_found_and_leaves_no_process(tmp_path: Path) -> None:
    child = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write("
    found, _ = run_part(tmp_path, FIGURE, then=child + "str(p.pid)); time.sleep(600)", limit=2)
    assert (found.state, len(found.figures)) == (CUT_OFF, 1)
    assert "longer than its 2 s" in found.reason
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":  # nobody collects it in some containers
            return
        time.sleep(0.05)
    pytest.fail("the process that the part has started still runs")


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("sys.exit('out of luck')", "ended with exit status 1\nout of luck"),
        ("os.kill(os.getpid(), 11)", "ended by signal SIGSEGV"),
    ],
)
def test_a_part_that_fails(tmp_path: Path, then: str, reason: str) -> None:
    found, _ = run_part(tmp_path, FIGURE, then=then)
    assert (found.state, found.reason, len(found.figures)) == (FAILED, reason, 1)


def test_a_part_tells_all_its_failures_and_goes_on(tmp_path: Path) -> None:
    failures = [{"state": FAILED, "reason": text} for text in ("first", "second")]
    found, _ = run_part(tmp_path, *failures, FIGURE)
    assert (found.state, found.reason, len(found.figures)) == (FAILED, "first\nsecond", 1)


def test_a_part_that_cannot_be_done_is_skipped(tmp_path: Path) -> None:
    found, _ = run_part(tmp_path, {"state": SKIPPED, "reason": "no permission"})
    assert (found.state, found.reason) == (SKIPPED, "no permission")


def test_half_a_record_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "records"
    lines = document.Lines(path)
    assert list(lines.new()) == []
    path.write_text('{"note": "a"}\n{"no')
    assert list(lines.new()) == [{"note": "a"}]
    with path.open("a") as file:
        file.write('te": "b"}\n')
    assert list(lines.new()) == [{"note": "b"}]


def test_records_of_an_older_run_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").write_text('{"note": "old"}\n')
    assert run_part(tmp_path)[0].notes == []


# --- The worker -------------------------------------------------------------------------------------------------------


def run_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, run) -> tuple[int, list[dict]]:
    stage = type(sys)("gpu_report.stages.x")
    stage.run = run
    monkeypatch.setitem(sys.modules, stage.__name__, stage)
    (folder / "parts").mkdir()
    status = worker.main(["x", str(folder), "--dry-run"])
    path = folder / "parts" / "x.jsonl"
    return status, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_worker_writes_what_is_found_before_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(job: worker.Job) -> None:
        job.figures("a", "us", {"time": job.microseconds(job.graph(lambda: None), job.busy)})
        raise RuntimeError("CUDA error: an illegal memory access")

    status, (figure, failure) = run_worker(monkeypatch, tmp_path, run)
    assert status == 1
    assert figure["figure"]["unit"] == "us"
    assert failure == {"state": FAILED, "reason": "RuntimeError: CUDA error: an illegal memory access"}


def test_worker_skips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(job: worker.Job) -> None:
        raise worker.Skip("no permission")

    assert run_worker(monkeypatch, tmp_path, run) == (0, [{"state": SKIPPED, "reason": "no permission"}])


@pytest.mark.parametrize("dry_run", [True, False])
def test_errors_of_others_are_notes_on_a_gpu_and_errors_in_a_dry_run(tmp_path: Path, dry_run: bool) -> None:
    job = worker.Job(tmp_path / "records", tmp_path, dry_run)
    if dry_run:
        with pytest.raises(RuntimeError, match="broken"), job.tolerated("a peer"):
            raise RuntimeError("broken")
    else:
        with job.tolerated("a peer"):
            raise RuntimeError("broken")
        assert "skipped: a peer: RuntimeError: broken" in (tmp_path / "records").read_text()


def test_tests_are_told_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.long\ndef test_long(): assert False\n"
    )
    line = (
        "from pathlib import Path; from gpu_report.stages import pytest_runs; from gpu_report.worker import Job\n"
        "pytest_runs.machine.has_package = lambda name: False  # one process\n"
        f"job = Job(Path({str(tmp_path / 'records')!r}), Path('.'), False)\n"
        f"pytest_runs.run_tests(job, {str(tmp_path)!r}, 'gpu and not long')"
    )
    environment = runner.environment()
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, env=environment, check=True, capture_output=True)
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    counts = {record["figure"]["name"]: record["figure"]["value"] for record in records if "figure" in record}
    assert counts == {"passed": 1, "failed": 1, "skipped": 0}
    reasons = [record["reason"] for record in records if "reason" in record]
    assert len(reasons) == 2
    assert "test_it.py::test_bad: assert 1 == 2" in reasons[0]


# --- The whole run ----------------------------------------------------------------------------------------------------

TWO = (Part("first", "First", 60), Part("second", "Second", 60))


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[dict], str]]:
    """Two parts of a report; what the process of each does may be changed."""
    does: dict[str, tuple[list[dict], str]] = {"first": ([FIGURE], ""), "second": ([FIGURE], "")}
    monkeypatch.setattr(command, "PARTS", TWO)
    monkeypatch.setattr(
        runner,
        "command",
        lambda part, out, dry_run: script(out / "parts", part.name, *does[part.name][0], then=does[part.name][1]),
    )
    return does


def run_command(out: Path, *arguments: str) -> tuple[int, Report]:
    status = command.main(["--dry-run", "--out", str(out), "--only", "first", "second", *arguments])
    return status, document.load(out / command.REPORT)


def states(report: Report) -> dict[str, str]:
    return {part.name: part.state for part in report.parts}


def test_after_a_failure_the_others_still_run(two_parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_parts["first"] = ([FIGURE], "sys.exit('out of luck')")
    status, report = run_command(tmp_path)
    assert status == 1
    assert states(report) == {"first": FAILED, "second": PASSED}
    assert "out of luck" in report.part("first").reason
    assert "out of luck" in (tmp_path / command.PAGE).read_text()
    assert "ended with exit status 1" in capsys.readouterr().out


def test_a_run_that_succeeds(two_parts, tmp_path: Path) -> None:
    status, report = run_command(tmp_path, "--commit", "abc")
    assert status == 0
    assert states(report) == {"first": PASSED, "second": PASSED}
    assert (report.dry_run, report.machine["commit"], report.machine["torch"]) == (
        True,
        "abc",
        machine.version("torch"),
    )


def test_resume_repeats_what_has_not_passed(two_parts, tmp_path: Path) -> None:
    two_parts["second"] = ([], "sys.exit(1)")
    assert run_command(tmp_path)[0] == 1
    two_parts["first"] = ([], "sys.exit(1)")  # would fail if it ran again
    two_parts["second"] = ([FIGURE], "")
    status, report = run_command(tmp_path, "--resume")
    assert status == 0
    assert [len(part.figures) for part in report.parts] == [1, 1]


def test_resume_refuses_the_report_of_other_kernels(two_parts, tmp_path: Path, capsys) -> None:
    _, report = run_command(tmp_path)
    report.machine["kernels"] = "others"
    report.save(tmp_path / command.REPORT)
    assert command.main(["--dry-run", "--out", str(tmp_path), "--resume"]) == 2
    assert "is of another kernels (others" in capsys.readouterr().err


def test_a_run_that_is_cut_off_leaves_what_it_found(tmp_path: Path) -> None:
    """While it runs as well: what lies on the disk is a whole report at any time."""
    driver = (
        "import sys; sys.path[:0] = ['tests/build']; import test_gpu_report as t\n"
        "from gpu_report import command, runner; command.PARTS = t.TWO\n"
        "runner.command = lambda part, out, dry: t.script(out / 'parts', part.name, t.FIGURE,"
        " then='time.sleep(600)' if part.name == 'second' else '')\n"
        f"sys.exit(command.main(['--dry-run', '--out', {str(tmp_path)!r}, '--only', 'first', 'second']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver], cwd=ROOT, env=runner.environment(), start_new_session=True
    )
    path = tmp_path / command.REPORT
    try:
        for _ in range(1200):
            if path.exists() and document.load(path).part("second").figures:
                break
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGTERM)  # its part ends with it
        assert process.wait(60) == 130
    report = document.load(path)
    assert states(report) == {"first": PASSED, "second": CUT_OFF}
    assert (report.part("second").reason, len(report.part("second").figures)) == ("interrupted", 1)


def test_without_a_gpu_it_says_what_to_do(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(machine, "gpu", lambda: None)
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "--dry-run goes through every part on the CPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_exist(tmp_path: Path, capsys) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path), "--only", "detect"]) == 2
    assert "--only names detect; the parts are build, doctor" in capsys.readouterr().err


def test_the_gpu_is_what_nvidia_smi_says(monkeypatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.159.04, 9.0, 81559 MiB, 1980 MHz'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    facts = machine.describe(commit=None)
    assert (facts["device"], facts["driver"], facts["capability"]) == ("NVIDIA H100 80GB HBM3", "580.159.04", "9.0")


# --- The document -----------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    parts = [
        PartReport("operators", "Operators: times", 35, PASSED, seconds=20.5, notes=["of noise"]),
        PartReport("counters", "Nsight Compute", 75, SKIPPED, "not on PATH: ncu", 0.0),
        PartReport("sanitizer", "compute-sanitizer", 55),
    ]
    parts[0].figures += [Figure(f"refine, batch {n}", "graph, warm", 3.25 * n, "us") for n in (1, 32)]
    parts[0].figures += [Figure("memory", "copy", 3000.0, "GB/s")]
    return Report(False, "2026-11-28T03:00:00+00:00", {"device": "NVIDIA H100", "commit": "abc"}, parts)


def test_document_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert document.load(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert report.value("operators", "refine, batch 32", "graph, warm") == 104
    assert report.value("operators", "refine, batch 2", "graph, warm") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema="refinedet-gpu-report/0"), "has the schema"),
        (lambda content: content.pop("started"), "a Report has the fields"),
        (lambda content: content["parts"][0].update(state="fine"), "the state is 'fine'"),
        (lambda content: content["parts"][0].update(seconds="20"), "seconds of a PartReport is '20'"),
        (lambda content: content["parts"][0]["figures"][0].update(unit="furlong"), "the unit is 'furlong'"),
        (lambda content: content["parts"][0]["figures"][0].update(value=float("nan")), "the value is nan"),
        (lambda content: content["parts"][0]["figures"][0].pop("unit"), "a Figure has the fields"),
        (lambda content: content.update(parts=[1]), "a PartReport has the fields"),
    ],
)
def test_document_that_is_not_of_the_schema(report: Report, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "report.json"
    report.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ReportError, match=message):
        document.load(path)


def test_document_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"schema": ')
    with pytest.raises(ReportError, match="cannot be read"):
        document.load(tmp_path / "report.json")


def test_page(report: Report) -> None:
    text = page.markdown(report)
    assert "# GPU report: NVIDIA H100\n" in text
    assert (
        "| case | graph, warm [us] |\n| --- | --- |\n| refine, batch 1 | 3.25 |\n| refine, batch 32 | 104 |\n" in text
    )
    assert "| memory | 3000 |" in text
    assert f"| Nsight Compute | {SKIPPED} | 0.0 | 75 | not on PATH: ncu |" in text
    assert f"| compute-sanitizer | {WAITING} |" in text
    assert page.DRY not in text
    report.dry_run = True
    assert page.DRY in page.markdown(report)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12.0, "12"), (1234.5, "1,234"), (0.018515, "0.01852"), (15.789, "15.79")]
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert page.number(value) == text


def test_measured_is_made_from_the_results() -> None:
    assert measured.markdown(measured.RESULTS) == measured.PAGE.read_text()


def test_measured(report: Report, tmp_path: Path) -> None:
    assert measured.NOTHING in measured.markdown(tmp_path)
    report.save(tmp_path / "h100-abc.json")
    text = measured.markdown(tmp_path)
    assert measured.NOTHING not in text
    assert "## NVIDIA H100, 2026-11-28" in text
    assert "| refine, batch 32 | 104 |" in text
    assert f"- Nsight Compute: {SKIPPED} (not on PATH: ncu)" in text
    report.dry_run = True
    report.save(tmp_path / "h100-abc.json")
    with pytest.raises(ReportError, match="dry run, in which no GPU took part"):
        measured.markdown(tmp_path)


# --- Nsight Compute ---------------------------------------------------------------------------------------------------

METRICS = [metric for counter in counters.COUNTERS.values() for metric in counter.metrics]


def ncu_table(*launches: tuple[str, dict[str, str]]) -> str:
    """As ``ncu --csv --page raw`` prints it; a metric that is not given is 0."""
    lines = [["ID", "Kernel Name", *METRICS], ["", "", *("unit" for _ in METRICS)]]
    lines += [[str(i), name, *(cells.get(m, "0") for m in METRICS)] for i, (name, cells) in enumerate(launches)]
    return "==PROF== a line before\n" + "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines)


SCORE = ("void score_anchors_kernel<float>(Levels)", {"gpu__time_duration.sum": "3,400", METRICS[3]: "1e+05"})
REFINE = ("refinedet::refine_anchors_kernel(float*)", {"gpu__time_duration.sum": "2500", "lts__t_bytes.sum": "n/a"})


def test_counters_are_read_from_the_table_of_ncu() -> None:
    score, refine = counters.read(ncu_table(SCORE, REFINE))
    assert (score.kernel, refine.kernel) == ("score_anchors_kernel", "refine_anchors_kernel")
    assert (score.values["time"], score.values["warp instructions"]) == (3.4, 1e5)
    assert "L2" in score.values
    assert "L2" not in refine.values


def test_counters_of_loads_and_stores_are_added_up() -> None:
    cells = {counters.SECTORS.format("ld"): "300", counters.SECTORS.format("st"): "200"}
    (launch,) = counters.read(ncu_table(("refine_anchors_kernel", cells)))
    assert launch.values["global sectors"] == 500


def told(folder: Path, operator: str, batch: int, *launches: counters.Launch) -> list[dict]:
    job = worker.Job(folder / "records", folder, dry_run=True)
    counters.tell(job, operator, batch, list(launches), H100)
    return [json.loads(line)["figure"] for line in (folder / "records").read_text().splitlines()]


def test_counters_stand_beside_their_prediction(tmp_path: Path) -> None:
    figures = told(tmp_path, "refine", 1, *counters.read(ncu_table(REFINE)))
    values = {figure["name"]: figure["value"] for figure in figures}
    (kernel,) = cost.refine(cost.NETWORKS[0], 1).kernels
    assert (values["time"], values["time, predicted"]) == (2.5, kernel.microseconds(H100))
    assert values["DRAM, predicted"] == kernel.moved
    assert values["warp instructions, predicted"] == kernel.instructions
    assert (values["local loads and stores"], values["local loads and stores, predicted"]) == (0, 0)
    assert {figure["case"] for figure in figures} == {"refine, VOC 320, batch 1, refine_anchors_kernel"}


def test_launches_of_one_kernel_have_predictions_of_their_own(tmp_path: Path) -> None:
    """nms of 6,375 boxes compares a large band and a small one."""
    launches = [counters.Launch("compare_band_kernel", {}) for _ in range(2)]
    figures = told(tmp_path, "nms", 32, *launches)
    first, second = [figure["value"] for figure in figures if figure["name"] == "warp instructions, predicted"]
    assert first > second > 0


def test_every_kernel_of_the_model_belongs_to_an_operator() -> None:
    owners = counters.operators_of_kernels()
    for batch in counters.BATCHES:
        for operator, (_, expected, _, _) in counters.calls(batch).items():
            for kernel in expected.kernels:
                assert kernel.name == "memset" or owners[kernel.name] == operator


def test_the_device_of_the_dry_run_is_the_cpu(tmp_path: Path) -> None:
    assert worker.Job(tmp_path, tmp_path, dry_run=True).device == torch.device("cpu")
    assert worker.Job(tmp_path, tmp_path, dry_run=False).device == torch.device("cuda", 0)
