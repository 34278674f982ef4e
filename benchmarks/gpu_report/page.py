"""The report as Markdown. Standard library only."""

from collections.abc import Iterable

from gpu_report.document import Figure, PartReport, Report

DRY = "**A dry run on a processor: it shows that every part starts. No number below is of a GPU.**"


def markdown(report: Report) -> str:
    lines = [f"# GPU report: {report.machine['device']}", ""]
    if report.dry_run:
        lines += [DRY, ""]
    lines += [f"Started {report.started} (UTC), schema `{report.schema}`.", ""]
    lines += table(["", ""], [[name, value] for name, value in report.machine.items()])
    lines += ["## Parts", ""]
    lines += table(["part", "state", "seconds", "limit", "why"], [_part_row(part) for part in report.parts])
    for part in report.parts:
        lines += _part(part)
    return "\n".join(lines)


def _part_row(part: PartReport) -> list[str]:
    seconds = "" if part.seconds is None else f"{part.seconds:.1f}"
    return [part.title, part.state, seconds, str(part.limit), part.reason.partition("\n")[0]]


def _part(part: PartReport) -> list[str]:
    if not (part.figures or part.notes or part.reason):
        return []
    lines = [f"## {part.title}", ""]
    if part.reason:
        lines += ["```", part.reason, "```", ""]
    for note in part.notes:
        lines += [f"- {note}"]
    return [*lines, *([""] if part.notes else []), *figures(part.figures)]


def figures(found: Iterable[Figure]) -> list[str]:
    """Tables of cases by names: one for each set of names that follow one another."""
    cases: dict[str, dict[str, Figure]] = {}
    for figure in found:
        cases.setdefault(figure.case, {})[figure.name] = figure
    groups: dict[tuple[tuple[str, str], ...], list[tuple[str, dict[str, Figure]]]] = {}
    for case, named in cases.items():
        key = tuple((figure.name, figure.unit) for figure in named.values())
        groups.setdefault(key, []).append((case, named))
    lines = []
    for key, rows in groups.items():
        header = ["case", *(f"{name} [{unit}]" if unit not in ("1", "count") else name for name, unit in key)]
        lines += table(header, [[case, *(number(f.value) for f in named.values())] for case, named in rows])
    return lines


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """With an empty line after it. The first column is text, the others are numbers, where there is more than one."""
    rule = ["---", *("---:" if len(header) > 2 else "---" for _ in header[1:])]
    cells = [header, rule, *([_cell(text) for text in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in cells), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def number(value: float) -> str:
    """Four digits that count."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
