"""Every "spec section 7.2" in code, tests and documents points to a section of docs/specification.md that is there."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

from refinedet.classes import COCO_CLASSES, VOC_CLASSES
from refinedet.models import build
from refinedet.weights.caffe_names import caffe_names

SPECIFICATION = ROOT / "docs" / "specification.md"
FOLDERS = ("benchmarks", "csrc", "docs", "refinedet", "tests", "tools")
SUFFIXES = {".cpp", ".cu", ".h", ".md", ".py", ".pyi", ".toml"}

# "spec section 7.2", "spec 9.1, 11.1", "spec sections 1.2, 1.3, 8", "spec sections 2 to 6", "specification, section 7",
# "spec section 0, rows 25 and 25a", "spec 9.2 step 3", "Section 7.2 of the specification".
NUMBER = r"\d+(?:\.\d+)?"
NUMBERS = rf"{NUMBER}(?:(?:, and|,| and| to) {NUMBER})*"
ROW = r"\d+[a-z]?"
REFERENCE = re.compile(
    rf"\bspec(?:ification)?,? (?:sections? )?(?P<after>{NUMBERS})"
    rf"(?:,? rows? (?P<rows>{ROW}(?:(?:,| and) {ROW})*)|,? step (?P<step>\d+))?"
    rf"|\bsections? (?P<before>{NUMBERS}) of the specification",
    re.IGNORECASE,
)


def in_one_line(text: str) -> str:
    """The text without line breaks and the signs with which a comment goes on in the next line."""
    return re.sub(r"\s*\n\s*(?:(?:#|//|\*)\s+)?", " ", text)


def citations(text: str) -> Iterator[str]:
    """What a text cites of the specification: "7.2", "0 row 25a", "9.2 step 3"."""
    for found in REFERENCE.finditer(in_one_line(text)):
        numbers = found["after"] or found["before"]
        yield from re.findall(NUMBER, numbers)
        for first, last in re.findall(r"\b(\d+) to (\d+)\b", numbers):
            yield from (str(number) for number in range(int(first) + 1, int(last)))
        cited_last = re.findall(NUMBER, numbers)[-1]
        yield from (f"{cited_last} row {row}" for row in re.findall(ROW, found["rows"] or ""))
        if found["step"]:
            yield f"{cited_last} step {found['step']}"


def places(specification: str) -> set[str]:
    """What can be cited: the numbers of the headings, the numbered rows of tables and the numbered steps below them."""
    found, section = set(), ""
    for line in specification.splitlines():
        if heading := re.match(rf"##+ ({NUMBER})\.? ", line):
            section = heading[1]
            found.add(section)
        elif row := re.match(rf"\| ({ROW}) \|", line):
            found.add(f"{section} row {row[1]}")
        elif step := re.match(r"(\d+)\. ", line):
            found.add(f"{section} step {step[1]}")
    return found


def files() -> list[Path]:
    inside = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*")]
    readable = [file for file in [*ROOT.glob("*"), *inside] if file.suffix in SUFFIXES and file.is_file()]
    return [file for file in readable if file not in (SPECIFICATION, Path(__file__).resolve())]


def unresolved(text: str) -> list[str]:
    return [place for place in citations(text) if place not in places(SPECIFICATION.read_text())]


def test_every_citation_resolves():
    known = places(SPECIFICATION.read_text())
    cited = [(str(file.relative_to(ROOT)), place) for file in files() for place in citations(file.read_text())]
    assert len(cited) >= 80  # else the pattern has lost them
    assert [(file, place) for file, place in cited if place not in known] == []


def test_no_citation_escapes_the_pattern():
    """Whatever says "spec" or "specification" and then a number nearby is one that the pattern sees."""
    loose = re.compile(r"\bspec(?:ification)?\b[^.;:()\n]{0,20}?\b(?:sections?|rows?) \d|\bspec \d", re.IGNORECASE)
    for file in files():
        text = in_one_line(file.read_text())
        seen = [found.span() for found in REFERENCE.finditer(text)]
        for found in loose.finditer(text):
            assert any(start <= found.start() < end for start, end in seen), f"{file}: {found[0]!r}"


def test_the_specification_cites_itself_rightly():
    text = SPECIFICATION.read_text()
    own = re.findall(rf"(?<!`paper` )§({NUMBER})", text)
    assert len(own) > 10
    assert set(own) <= places(text)


def test_the_files_it_names_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", SPECIFICATION.read_text())
    assert len(links) == 10
    assert [link for link in links if not (SPECIFICATION.parent / link).is_file()] == []
    assert {Path(link).name for link in links} >= {file.name for file in SPECIFICATION.with_suffix("").iterdir()}


def read_table(name: str) -> list[dict[str, str]]:
    with (SPECIFICATION.with_suffix("") / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("backbone", "classes", "tables", "layers"),
    [
        ("vgg16", 21, ("vgg16_voc_320", "vgg16_voc_512"), 50),
        ("vgg16", 81, ("vgg16_coco_320", "vgg16_coco_512"), 50),
        ("resnet101", 81, ("resnet101_coco_320", "resnet101_coco_512"), 481),
    ],
)
def test_networks_have_the_layers_of_its_tables(backbone, classes, tables, layers):
    network = build(backbone, size=320, num_classes=classes)
    state = network.state_dict()
    shapes = {blob: "x".join(map(str, state[name].shape)) or "1" for name, blob in caffe_names(network).items()}
    for table in tables:
        rows = read_table(f"{table}_learned_layers")
        assert len(rows) == layers
        blobs = {row["layer_name"]: row["blob_shapes"].split(";") for row in rows}
        assert shapes == {(layer, i): shape for layer, listed in blobs.items() for i, shape in enumerate(listed)}


def test_classes_are_those_of_its_table():
    rows = read_table("coco_voc_labels")
    assert [row["coco_name"] for row in rows] == ["background", *COCO_CLASSES]
    voc = {int(row["voc21_label"]): row["voc_name"] for row in rows if row["voc21_label"]}
    assert [voc[label] for label in sorted(voc)] == ["background", *VOC_CLASSES]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(spec section 7.2)", ["7.2"]),
        ("matching; spec 6.", ["6"]),
        ("in the paper (spec 9.1, 11.1).", ["9.1", "11.1"]),
        ("(spec sections 1.2, 1.3, 8)", ["1.2", "1.3", "8"]),
        ("spec sections 2 to 5", ["2", "5", "3", "4"]),
        ("spec sections 7 and 9", ["7", "9"]),
        ("spec section 0, row 25a", ["0", "0 row 25a"]),
        ("spec 0, rows 25 and 25a", ["0", "0 row 25", "0 row 25a"]),
        ("spec 9.2 step 3", ["9.2", "9.2 step 3"]),
        ("Section 7.2 of the specification", ["7.2"]),
        ("the specification, section 7.2, says", ["7.2"]),
        ("    # as in spec\n    # section 7.2", ["7.2"]),
        ("// as in spec\n// section 7.2", ["7.2"]),
        ("the specification has 3 numbers; paper section 3.1; spec = 4", []),
    ],
)
def test_spellings(text, expected):
    assert list(citations(text)) == expected


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("spec section 7.2", []),
        ("spec sections 7.2 and 7.9", ["7.9"]),
        ("spec sections 12 to 16", ["16", "15"]),
        ("spec section 0, row 28", ["0 row 28"]),
        ("spec 7.2, row 1", ["7.2 row 1"]),
        ("spec 9.2 step 7", ["9.2 step 7"]),
        ("Section 15 of the specification", ["15"]),
    ],
)
def test_wrong_numbers_are_found(text, missing):
    assert unresolved(text) == missing
