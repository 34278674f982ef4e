"""Times the CPU operators of this tree beside those of another tree, such as the build of an older commit.

    python tools/compare_builds.py OTHER_TREE [--only TEXT ...] [--threads 1] [--rounds 25]

Each tree is a process of its own, for both register the same operators. Both get the same inputs, have to give the same
results, and then take turns, the one that began last beginning next: a turn is as many calls as take some hundredths of
a second. Printed are the medians of the turns in CPU time of all threads, and how many times this tree is faster: the
quartiles of the ratios of neighbouring turns, for a shared machine is slow for both at once. Each tree has to be
compiled (`python setup.py build_ext --inplace`).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
TURN = 0.02  # seconds, at least
NOT_COMPILED = "has no compiled refinedet/_C: build it there by `python setup.py build_ext --inplace`"
DETECT = ("typical_voc320", "coco81_320", "clusters_voc320", "dense_voc320", "typical_voc512")

Case = dict[str, Any]  # operator, arguments, options


def make_cases() -> dict[str, Case]:
    """The cases by name: what the benchmarks run."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from benchmarks.problems import crowd, golden_outputs, ground_truth, random_boxes
    from refinedet import generate_anchors

    golden = {name: golden_outputs(name) for name in DETECT}
    cases = {f"detect {name}": _case("detect", *_images(golden[name], 1)) for name in DETECT}
    typical = golden["typical_voc320"]
    # The anchors of a map of 2 x 2, as many as of the smallest level there is.
    cases["detect 12 anchors"] = _case("detect", *(x[:1, -12:].clone() for x in typical[:4]), typical[4][-12:])
    levels = [list(output.split((4800, 1200, 300, 75), dim=1)) for output in _images(typical, 1)[:4]]
    cases["detect in levels"] = _case("detect", *[[x.clone() for x in level] for level in levels], typical[4])
    cases["detect 8 images"] = _case("detect", *_images(typical, 8))
    for count in (200, 1000, 6375):
        boxes, scores, labels = crowd(count)
        cases[f"nms {count} crowded"] = _case("nms", boxes, scores, 0.45)
        cases[f"nms {count} anywhere"] = _case("nms", *random_boxes(count), 0.45)
        cases[f"batched_nms {count}"] = _case("batched_nms", boxes, scores, labels, 0.45)
    anchors = generate_anchors((320, 320))
    for batch in (1, 32):
        cases[f"match batch {batch}"] = _case("match", anchors, *ground_truth(batch))
    logits, *others = _mining(32, 6375)
    cases["mine batch 32 logits"] = _case("mine", logits, *others)
    cases["mine batch 32 losses"] = _case("mine", -logits.log_softmax(dim=-1)[..., 0], *others)
    return cases


def _mining(*size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments of mine as in training: 0.5 % of the anchors matched, objectness below the threshold for most."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(size, generator=generator) < 0.005).long()
    ious = torch.rand(size, generator=generator) ** 4
    objectness = torch.rand(size, generator=generator) ** 30
    return torch.randn(*size, 21, generator=generator), labels, ious, objectness


def _case(operator: str, *arguments: Any, **options: Any) -> Case:
    return {"operator": operator, "arguments": list(arguments), "options": options}


def _images(inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The first image of the arguments of detect, so many times."""
    return *(output[:1].repeat(count, 1, 1) for output in inputs[:4]), inputs[4]


# --- The process of a tree --------------------------------------------------------------------------------------------


def serve(tree: Path, file: Path, threads: int) -> None:
    """Answers the lines of stdin, `NAME\tCALLS`: runs so many calls and says their CPU seconds. Without calls it runs
    one and saves what it returns in `file` with the suffix .out."""
    sys.path.insert(0, str(tree))
    from refinedet import ops

    torch.set_num_threads(threads)
    cases = torch.load(file, weights_only=True)
    for line in sys.stdin:
        name, calls = line.rstrip("\n").split("\t")
        case = cases[name]
        function, arguments, options = getattr(ops, case["operator"]), case["arguments"], case["options"]
        with torch.inference_mode():
            if int(calls) == 0:
                found = function(*arguments, **options)
                torch.save([found] if isinstance(found, Tensor) else [*found], file.with_suffix(".out"))
            print(_seconds(function, arguments, options, int(calls)), flush=True)


def _seconds(function: Callable[..., object], arguments: list[Any], options: dict[str, Any], calls: int) -> float:
    begin = time.process_time()
    for _ in range(calls):
        function(*arguments, **options)
    return time.process_time() - begin


class Build:
    """The process of a tree."""

    def __init__(self, tree: Path, folder: Path, cases: dict[str, Case], threads: int) -> None:
        self._tree, self._file = tree, folder / "cases"
        folder.mkdir()
        torch.save(cases, self._file)
        command = [sys.executable, __file__, str(tree), "--serve", str(self._file), "--threads", str(threads)]
        # Not in the folder of the caller: no other refinedet is to be found there.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, bufsize=1
        )

    def __enter__(self) -> "Build":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def results(self, name: str) -> list[Tensor]:
        self.seconds(name, 0)
        found: list[Tensor] = torch.load(self._file.with_suffix(".out"), weights_only=True)
        return found

    def seconds(self, name: str, calls: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\t{calls}\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"compare_builds: the operators of {self._tree} ended at case {name}")
        return float(answer)


# --- The comparison ---------------------------------------------------------------------------------------------------


def compare(ours: Build, other: Build, name: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of a call in each turn of both builds."""
    for mine, theirs in zip(ours.results(name), other.results(name), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    builds = (ours, other)
    calls = [1, 1]
    for i, build in enumerate(builds):
        build.seconds(name, 10)
        while build.seconds(name, calls[i]) < TURN:
            calls[i] *= 2
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            times[i].append(builds[i].seconds(name, calls[i]) / calls[i])
    return times


def quartiles(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    """Of the ratios of neighbouring turns, the other's time over ours."""
    return statistics.quantiles([theirs / mine for mine, theirs in zip(ours, other, strict=True)], n=4)


def line(name: str, ours: list[float], other: list[float]) -> str:
    """The row of a case."""
    times = "".join(f"{statistics.median(side) * 1e6:9.1f} us " for side in (ours, other))
    return f"{name:32} {times}" + "".join(f"{ratio:8.2f}" for ratio in quartiles(ours, other))


def is_compiled(tree: Path) -> bool:
    return any(tree.glob("refinedet/_C*.so"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tree", type=Path, metavar="OTHER_TREE")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases with one of these in their name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25, help="turns of each build, at least 2")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    tree: Path = options.tree.resolve()
    if options.serve is not None:
        return serve(tree, options.serve, options.threads)
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    if not is_compiled(tree):
        parser.error(f"{tree} {NOT_COMPILED}")
    cases = {name: case for name, case in make_cases().items() if any(text in name for text in options.only)}
    if not cases:
        parser.error(f"no case has {' or '.join(options.only)} in its name")
    threads: int = options.threads
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with (
            Build(ROOT, folder / "ours", cases, threads) as ours,
            Build(tree, folder / "other", cases, threads) as other,
        ):
            header = f"CPU time of a call, {threads} threads"
            print(f"{header:32} {'ours':>12} {'other':>12}   ratio: lower, median, upper")
            for name in cases:
                print(line(name, *compare(ours, other, name, options.rounds)), flush=True)
    return None


if __name__ == "__main__":
    main()
