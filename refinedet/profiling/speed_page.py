"""The page of `refinedet benchmark --html`: one file, which loads nothing; light or dark as the reader's system is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from refinedet.errors import printable
from refinedet.profiling.speed import NEEDED, BatchSpeed, Times
from refinedet.profiling.speed_report import CONVENTIONS, Report, calls, cells, share, split_with_rest

WIDTH, BAR, HEIGHT = 720, 34, 140  # pixels of a picture, of a bar's height, of a histogram's
MOST_BINS = 40

# By Okabe and Ito, told apart by the colour-blind and seen on white and on black; grey for the rest.
COLOURS = ("#56b4e9", "#0072b2", "#cc79a7", "#d55e00", "#e69f00", "#009e73", "#8a7fd1", "#b8a800", "#888888")

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --ground: #ffffff; --line: #cccccc; --bar: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --ground: #161616; --line: #444444; --bar: #56b4e9 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .75rem; text-align: right;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums } th:first-child, td:first-child,
  table.calls td:nth-child(2), table.calls th:nth-child(2) { text-align: left }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0 } svg text { fill: var(--ink); font-size: 12px }
svg .count { fill: var(--bar) } svg .mark { stroke: var(--ink); stroke-dasharray: 3 3 }
svg .axis { stroke: var(--line) } .swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em }
dt { font-weight: 600; margin-top: .5rem } dd { margin: 0 }
"""


def page(report: Report) -> str:
    """The whole HTML document."""
    title = escape(printable(f"{report.model.name}: how fast"))
    body = [f"<h1>{title}</h1>", *(f"<p>{escape(printable(line))}</p>" for line in report.facts())]
    body += ["<h2>Calls</h2>", _calls(report.tried), "<h2>Where the time goes</h2>", _split(report.tried)]
    body += ["<h2>How the times lie</h2>", *(_histograms(each) for each in report.tried)]
    body += ["<h2>Cold start, memory, the paper</h2>", *(f"<p>{escape(line)}</p>" for line in report.remarks())]
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in CONVENTIONS.items())
    body += ["<h2>What is counted</h2>", f"<dl>{terms}</dl>"]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _calls(batches: Iterable[BatchSpeed]) -> str:
    rows = [[str(each.batch), name, *cells(times)] for each in batches for name, times in calls(each).items()]
    header = ["batch", "what", "images/s", *(f"p{percent} ms" for percent in NEEDED), "calls"]
    return _table(header, rows).replace("<table>", '<table class="calls">')


def _split(batches: Iterable[BatchSpeed]) -> str:
    known = [(each.batch, split_with_rest(each)) for each in batches if each.stages]
    bars = "".join(f"<p>batch {batch}, ms per image</p>{_bar(split, batch)}" for batch, split in known)
    rows = []
    for stage, colour in zip(known[0][1] if known else (), COLOURS, strict=False):
        swatch = f'<span class="swatch" style="background:{colour}"></span>{escape(stage)}'
        rows.append([swatch, *(f"{split[stage]:.2f} ({share(split, stage):.1%})" for _, split in known)])
    rows.append(["everything", *(f"{sum(split.values()):.2f}" for _, split in known)])
    return bars + _table(["ms per image", *(f"batch {batch}" for batch, _ in known)], rows)


def _bar(split: dict[str, float], batch: int) -> str:
    """One bar of all stages. A negative rest has no width."""
    scale = WIDTH / sum(max(value, 0.0) for value in split.values())
    parts, x = [], 0.0
    for (stage, value), colour in zip(split.items(), COLOURS, strict=False):
        width = scale * max(value, 0.0)
        told = f"{escape(stage)}: {value:.2f} ms"
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{BAR}" fill="{colour}"><title>{told}</title></rect>'
        )
        x += width
    return _svg(f"Time of each stage, batch {batch}", BAR, parts)


def _histograms(speed: BatchSpeed) -> str:
    return "".join(
        f"<p>batch {speed.batch}, {name}: {len(times.seconds)} calls, ms of a call</p>{_histogram(name, times)}"
        for name, times in calls(speed).items()
        if times.seconds
    )


def _histogram(name: str, times: Times) -> str:
    """How many calls took how long, with marks at the percentiles."""
    values = [1e3 * seconds for seconds in times.seconds]
    counts, low, high = _bins(values)
    floor, tallest = HEIGHT - 20, max(counts)
    width = WIDTH / len(counts)
    parts = []
    for i, count in enumerate(counts):
        height = (floor - 16) * count / tallest
        ends = (low + (high - low) * j / len(counts) for j in (i, i + 1))
        told = f"{count} calls from {' to '.join(f'{end:.2f}' for end in ends)} ms"
        parts.append(
            f'<rect class="count" x="{i * width + 1:.1f}" y="{floor - height:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{height:.1f}"><title>{told}</title></rect>'
        )
    parts.append(f'<line class="axis" x1="0" y1="{floor}" x2="{WIDTH}" y2="{floor}"/>')
    parts += [f'<text x="0" y="{HEIGHT - 4}">{low:.2f}</text>']
    parts += [f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">{high:.2f}</text>']
    for percent in NEEDED:
        value = times.percentile(percent)
        if value is not None:
            x = WIDTH * (value - low) / (high - low)
            anchor = "end" if x > WIDTH - 40 else "start"
            parts.append(f'<line class="mark" x1="{x:.1f}" y1="12" x2="{x:.1f}" y2="{floor}"/>')
            parts.append(f'<text x="{x:.1f}" y="10" text-anchor="{anchor}">p{percent}</text>')
    return _svg(f"Times of {name}", HEIGHT, parts)


def _bins(values: Sequence[float]) -> tuple[list[int], float, float]:
    """How many values lie in each of some equal ranges, and where the first begins and the last ends."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    counts = [0] * min(MOST_BINS, 2 * math.ceil(math.sqrt(len(values))))
    for value in values:
        counts[min(int((value - low) / (high - low) * len(counts)), len(counts) - 1)] += 1
    return counts, low, high


def _svg(what: str, height: int, parts: Iterable[str]) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    lines = ["".join(f"<th>{escape(text)}</th>" for text in header)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
