"""``refinedet profile``: what it measures, shows and writes."""

import json
import os
import re
import signal
import time
from html.parser import HTMLParser
from pathlib import Path

import cv2
import pytest
import torch
from support.synthetic import tiny_checkpoint

from refinedet.commands import main as cli
from refinedet.profiling import ceilings, operators, profile
from refinedet.profiling.speed import SPLIT
from refinedet.profiling.trace import Trace

FILES = ["profile.html", "profile.json", "roofline.png", "trace.json"]
OPERATORS = ["detect", "refine", "match", "mine", "nms", "soft_nms", "vote"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few runs as there may be, on little memory."""
    monkeypatch.setattr(profile, "SECONDS", 0.0)
    monkeypatch.setattr(operators.time_operators, "__defaults__", (0.0,))
    monkeypatch.setattr(ceilings.measure_ceilings, "__defaults__", (torch.float32, 0.0))
    monkeypatch.setattr(ceilings, "MOST", 1 << 22)
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64,)})


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr(profile.Profile, "write", lambda *_: None)


class Page(HTMLParser):
    """Names of a page's elements, what it loads, and the headings of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        links = [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        self.loaded += [link for link in links if not link.startswith("#")]


def test_a_model_is_profiled(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile"
    assert cli.main(["profile", checkpoint, "--out", str(out), "--batch", "2", "--json", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == FILES
    document = json.loads((out / "profile.json").read_text())
    assert document == json.loads((tmp_path / "a.json").read_text())
    assert document["schema"] == "refinedet-profile/1"
    assert (document["model"], document["size"], document["batch"]) == (checkpoint, [64, 64], 2)

    assert [stage["name"] for stage in document["stages"]] == list(SPLIT)
    rows = document["layers"]
    assert sum(row["milliseconds"] for row in rows) == pytest.approx(document["network"]["layers_milliseconds"])
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert sum(row["flop"] for row in rows) == pytest.approx(1e9 * document["network"]["gflop"])
    assert [row["name"] for row in document["operators"]] == OPERATORS
    limits = {"compute", *(memory["name"] for memory in document["ceilings"]["memories"])}
    assert {row["bound"] for row in rows + document["operators"]} <= limits
    assert document["kernels"] == []

    assert all(name in shown for name in [*SPLIT, *OPERATORS, "Layers of the network"])
    assert "sum of the layers" in shown
    assert f"... and {len(rows) - 20} more" in shown
    assert shown.endswith(f"Numbers, trace, roofline and a page with all of it: {out}\n")
    assert cv2.imread(str(out / "roofline.png")) is not None
    page = (out / "profile.html").read_text()
    parsed = Page(page)
    assert "svg" in parsed.tags
    assert parsed.loaded == []  # all of it is in the file
    assert parsed.tags.count("title") == 1 + len(rows) + len(OPERATORS)  # the page's, and one of each mark
    assert all(row["name"] in page for row in rows)
    Trace(json.loads((out / "trace.json").read_text())).kernels()


@pytest.mark.usefixtures("no_files")
def test_layers_are_sorted_and_all_shown(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", checkpoint, "--out", str(tmp_path), "--json", str(tmp_path / "a.json"), "-vq", "--sort"]

    def names_and_work() -> tuple[list[str], list[float]]:
        shown = capsys.readouterr()
        assert not shown.err  # --quiet: no progress
        assert "page with all of it" not in shown.out
        table = shown.out[shown.out.index("\nlayer ") : shown.out.index("\nsum of the layers")]
        rows = [re.split("  +", line) for line in table.splitlines()[2:]]
        return [row[0] for row in rows], [float(row[5]) for row in rows]

    assert cli.main([*arguments, "run"]) == 0
    layers = json.loads((tmp_path / "a.json").read_text())["layers"]
    names, work = names_and_work()
    assert names == [layer["name"] for layer in layers]
    assert names[0] == "backbone.features.0"
    assert work != sorted(work, reverse=True)
    assert cli.main([*arguments, "flop"]) == 0
    names, work = names_and_work()
    assert len(names) == len(layers)
    assert work == sorted(work, reverse=True)


@pytest.mark.usefixtures("no_files")
def test_json_alone_and_a_network_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", "squeezenet", "--size", "64x128", "--out", str(tmp_path), "--json"]
    assert cli.main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["random_weights"] is True
    assert document["size"] == [64, 128]
    assert document["layers"][0]["output"] == [1, 64, 32, 64]
    (case,) = {row["case"] for row in document["operators"] if row["name"] == "detect"}
    assert float(case.split()[-2].removesuffix("%")) < 10  # survive, as in a trained network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "model is 'nothing';"),
        (["squeezenet", "--size", "100"], "100"),
        (["squeezenet", "--size", "big"], "'big' is no size"),
        (["squeezenet", "--batch", "0"], "'0' is not a whole number"),
        (["squeezenet", "--sort", "name"], "'name' is unknown; did you mean 'time'? choose from time, flop"),
        (["squeezenet", "--device", "cuda:77"], "device is 'cuda:77'"),
        (["squeezenet", "--out", "FILE"], "file: File exists; choose another folder"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile, "profile", lambda *_: pytest.fail("work began"))
    (tmp_path / "file").touch()
    given = [argument.replace("FILE", str(tmp_path / "file")) for argument in arguments]
    assert cli.main(["profile", "--out", str(tmp_path / "out"), *given]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("refinedet: error: ")
    assert message in line


def test_a_batch_beyond_the_memory_is_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr(profile, "Pipeline", lambda *_: pytest.fail("work began"))
    assert cli.main(["profile", checkpoint, "--out", str(tmp_path), "--batch", "64", "-q"]) == 2
    assert re.search(
        r"error: a batch of 64 needs at least 0\.\d GiB of memory, and 0\.0 GiB are free; give a smaller one\n",
        capsys.readouterr().err,
    )


def test_ctrl_c_ends_it(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(profile, "time_layers", interrupted)
    assert cli.main(["profile", checkpoint, "--out", str(tmp_path / "out"), "-q"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "refinedet: interrupted\n"
    assert not captured.out
    assert list((tmp_path / "out").iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["profile", "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("MODEL", "--device", "--size", "--batch", "--out", "--json", "--quiet"))
