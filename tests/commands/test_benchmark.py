"""``refinedet benchmark``: what it tells, its document, its page."""

import json
import os
import re
import signal
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest
import torch
from support.paths import ROOT
from support.synthetic import scene, tiny_checkpoint

from refinedet.commands import main as cli
from refinedet.profiling import machine, model, speed
from refinedet.profiling.speed import SPLIT, BatchSpeed
from refinedet.profiling.speed_page import page
from refinedet.profiling.speed_report import PAPER, REST, SCHEMA, Model, Report, Spent

MODEL = Model("net", "vgg16", (320, 320), 20, "float32", True, 6375, 34_440_884, 75.5458, 79_000_000)
CPU = machine.describe(torch.device("cpu"))
TITAN = replace(CPU, device="GPU", cuda="13.0", cudnn="91000", driver="580.1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def measured(batch: int, calls: int) -> BatchSpeed:
    """Calls of 0.1 s and a little, each longer than the one before."""
    found = BatchSpeed.of(batch)
    found.first, found.resident, found.surviving, found.found = 0.5, 3 << 30, 127.5, [3] * batch * calls
    for i in range(calls):
        seconds = 0.1 + i / 1e4
        found.everything.seconds.append(seconds)
        found.detector.seconds.append(seconds - 0.02)
        found.network.seconds.append(seconds - 0.04)
        found.stages.append(dict.fromkeys(SPLIT, 0.01))
    return found


def report(*batches: BatchSpeed, where: machine.Machine = CPU, what: Model = MODEL) -> Report:
    return Report(what, where, "2 own, 500x375", 2.0, 0.25, 1 << 30, batches, Spent(45, 41.2, 38.6))


def test_from_the_shell_to_document_and_page(checkpoint, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "photo.png"), scene(0)[0])
    result, html = tmp_path / "deep" / "found.json", tmp_path / "page.html"
    arguments = ["benchmark", str(checkpoint), "--batch", "2,1", "--seconds", "1", "--images", str(tmp_path)]
    assert cli.main([*arguments, "--json", str(result), "--html", str(html)]) == 0
    out = capsys.readouterr().out
    document = json.loads(result.read_text())
    assert document["schema"] == SCHEMA
    assert document["model"]["random"] is False
    assert document["model"]["classes"] == 2
    assert document["images"] == "1 own, 128x96"
    assert document["machine"]["torch"] == torch.__version__
    assert document["spent"]["given_seconds"] == 1
    assert 0 < document["spent"]["measuring_seconds"] < document["spent"]["taken_seconds"]
    assert re.search(r"^time: \d+ s, \d+ s of them measuring; --seconds 1$", out, re.MULTILINE)
    assert [each["batch"] for each in document["batches"]] == [2, 1]
    for batch in document["batches"]:
        assert batch["error"] is None
        for name in ("everything", "detector", "network"):
            assert batch[name]["calls"] == len(batch[name]["calls_ms"]) > 0
            assert batch[name]["images_per_second"] > 0
        assert set(batch["split_ms_per_image"]) == {*SPLIT, REST}
        assert batch["split_ms_per_image"][REST] > 0
    assert "2      everything" in out
    assert str(html) in out
    assert "biases not" in out  # conventions
    assert html.read_text().startswith("<!DOCTYPE html>")


def test_loading_is_of_the_time_that_is_given(checkpoint, monkeypatch):
    given: list[float] = []
    open_detector = model.open_detector

    def slow(*arguments):
        time.sleep(0.5)
        return open_detector(*arguments)

    monkeypatch.setattr(model, "open_detector", slow)
    monkeypatch.setattr(speed, "measure_batches", lambda *arguments, **options: given.append(arguments[3]) or [])
    assert cli.main(["benchmark", str(checkpoint), "--seconds", "100", "--quiet"]) == 0
    assert cli.main(["benchmark", str(checkpoint), "--seconds", "1", "--quiet"]) == 0
    assert 0 < given[0] < 99.5
    assert 0 <= given[1] < 0.5


@pytest.mark.parametrize("size", ["64", "64x128"])
def test_a_network_without_weights(size, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "EXAMPLES", tmp_path / "absent")
    arguments = ["benchmark", "squeezenet", "--size", size, "--classes", "3", "--batch", "1", "--seconds", "1"]
    assert cli.main([*arguments, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    found = document["model"]
    assert (found["random"], found["classes"]) == (True, 3)
    assert found["size"] == {"height_pixels": 64, "width_pixels": int(size.rpartition("x")[2])}
    assert document["images"] == "1, synthetic, 500x375"
    assert "Random heads are biased" in captured.err
    (batch,) = document["batches"]
    assert batch["surviving_anchors_per_image"] <= 0.05 * found["anchors"]
    assert "biases not" not in captured.err  # conventions are notes
    assert "paper: not applicable" in captured.err


def test_a_checkpoint_at_another_size_has_the_anchors_of_that_size(checkpoint):
    detector, random = model.open_detector(str(checkpoint), (128, 192))
    assert not random
    assert detector.size == (128, 192)
    assert torch.equal(detector.network.anchors, detector.network.anchors_for((128, 192)))
    assert len(detector.network.anchors) == 3 * sum(128 * 192 // stride**2 for stride in (8, 16, 32, 64))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["vgg"], "model is 'vgg'; did you mean 'vgg16'?"),
        (["vgg16", "--size", "300"], "both must be multiples of 64, nearest (320, 320)"),
        (["bccd", "--size", "300"], "both must be multiples of 64, nearest (320, 320)"),
        (["bccd", "--size", "a"], "'a' is no size"),
        (["bccd", "--classes", "5"], "bccd has its own classes"),
        (["bccd", "--batch", "1,8,1"], "'1,8,1' has a size twice"),
        (["bccd", "--batch", "1,0"], "'0' is not a whole number"),
        (["--html", "bccd"], "'bccd' does not end in .html"),
        (["bccd", "--images", "absent.jpg"], "absent.jpg: no such file"),
        (["bccd", "--images", str(ROOT / "README.md")], "README.md"),
        (["bccd", "--device", "cuda:99"], "device is 'cuda:99'"),
        (["timm:absent_net"], "timm has no model 'absent_net'"),
    ],
)
def test_bad_input_is_one_line(arguments, told, capsys):
    assert cli.main(["benchmark", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("refinedet: error: ")
    assert told in line


@pytest.mark.usefixtures("hears_signals")
def test_an_interrupt_ends_with_what_is_measured(checkpoint, tmp_path, capsys, monkeypatch):
    measure_call, calls = speed._Run._measure_call, []

    def press_at_third(run):
        calls.append(measure_call(run))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(speed._Run, "_measure_call", press_at_third)
    result = tmp_path / "found.json"
    arguments = ["benchmark", str(checkpoint), "--seconds", "600", "--json", str(result)]
    assert cli.main(arguments) == 130
    (batch,) = json.loads(result.read_text())["batches"]
    assert batch["everything"]["calls"] == 3
    assert batch["network"]["images_per_second"] is None
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "refinedet: interrupted; the numbers are of the calls until then"
    assert "n/a (0 runs)" in captured.out


def test_a_batch_that_fails_is_told_and_the_status_says_so(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 28)
    result = tmp_path / "found.json"
    arguments = ["benchmark", str(checkpoint), "--seconds", "1", "--batch", "1,9999", "--json", str(result)]
    assert cli.main(arguments) == 1
    assert re.search(r"^batch 9999: needs \d+\.\d GiB of memory, and 0\.2 GiB are free", capsys.readouterr().out, re.M)
    small, large = json.loads(result.read_text())["batches"]
    assert small["error"] is None
    assert large["everything"]["calls"] == 0


def test_a_percentile_of_few_calls_is_not_shown():
    rows = [line.split("  ") for line in report(measured(1, 50)).text().splitlines() if " everything " in line]
    cells = [cell.strip() for cell in rows[0] if cell.strip()]
    assert cells == ["1", "everything", "9.76", "102.40", "104.40", "n/a (50 runs)", "50"]


def test_memory_is_above_that_before_the_load():
    found = report(measured(1, 3))
    assert "peak memory: batch 1: host 2048 MiB" in found.text()
    (batch,) = found.document()["batches"]
    assert batch["peak_resident_above_start_bytes"] == 2 << 30


def test_the_paper_stands_beside_its_own_network_only():
    calls = measured(1, 100)
    told = f"paper: {PAPER[320, 320]} ms for the network at batch 1 on a Titan X"
    assert f"{told} (Maxwell), cuDNN 6; not applicable to a CPU" in report(calls).text()
    assert f"{told} (Maxwell), cuDNN 6; here 64.90 ms, 262% of it" in report(calls, where=TITAN).text()
    assert "paper: not applicable" in report(calls, what=replace(MODEL, size=(384, 384))).text()
    assert "paper: not applicable" in report(calls, what=replace(MODEL, backbone="resnet101")).text()
    assert report(calls, where=TITAN).document()["paper"]["applicable"]
    assert not report(calls).document()["paper"]["applicable"]


class Page(HTMLParser):
    """The addresses that a page loads, and whether its elements close."""

    VOID = ("meta", "rect", "line", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing():
    text = page(report(measured(1, 120), measured(8, 5), what=replace(MODEL, name="<b>&\x1b.safetensors")))
    parsed = Page(text)
    assert parsed.loads == []
    assert parsed.open == []
    assert not re.search(r"https?:|url\(|@import|<script", text)
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;\\x1b.safetensors" in text
    assert "prefers-color-scheme: dark" in text
    pictures = [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", text)]
    assert len(pictures) == 2 + 2 * 3  # the split of each batch, and three histograms
    split = [float(each.get("width")) for each in pictures[0].iter("rect")]
    assert sum(split) == pytest.approx(720, abs=1)
    counts = [int(each.text.split()[0]) for each in pictures[2].iter("title")]
    assert sum(counts) == 120
    assert [each.text for each in pictures[2].iter("text")][2:] == ["p50", "p90", "p99"]
    assert [each.text for each in pictures[5].iter("text")][2:] == ["p50"]


def test_a_page_without_a_call():
    failed = BatchSpeed.of(8)
    failed.error = "needs 5.0 GiB of memory, and 4.0 GiB are free; give a smaller batch"
    assert failed.error in page(report(failed))
    assert failed.error in report(failed).text()
    assert json.dumps(report(failed).document(), allow_nan=False)
    equal = measured(1, 1)
    equal.everything.seconds *= 4
    assert "4 calls" in page(report(equal))
