"""Annotation files and splits in the layout of VOC: read, loaded and measured."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from support.synthetic import make_voc

from fuzz.engine import Target
from fuzz.mutations import damage_text
from fuzz.use_data import use
from refinedet.data import VOCDataset

TEXTS = (
    "", " ", "0", "1", "-1", "0.5", "1e308", "-1e308", "1e999", "nan", "9" * 400, "9" * 5000, "1e-300", "2147483648",
    "true", "Unspecified", "cat", "$x_$", "../../x", "/x", "..", "x" * 300, "\u88c2\u7eb9", "\u202e", "x\ny",
    "'", "]]>", "&",
)  # fmt: skip
TAGS = ("object", "name", "bndbox", "xmin", "difficult", "size", "width", "filename", "part", "a:b", "\u88c2")
ENCODINGS = (
    "utf-8", "utf8", "utf-8-sig", "utf-16", "UTF-16LE", "utf-32", "gb2312", "gbk", "GB18030", "big5", "Shift_JIS",
    "euc-kr", "EUC-JP", "iso-2022-jp", "windows-1252", "latin-1", "utf-7", "unicode_escape", "hex", "rot13", "klingon",
    "idna",
)  # fmt: skip
LINES = (
    "000000", "000001.jpg", "JPEGImages/000002.jpg", '"000000"', "# 000000", "000000 -1", "000001,1", "../000000",
    "/etc/x", "..", ".", "/", ".hidden", "._000000.xml", "\ufeff000000", "\u202e", "000000\x00", "x" * 300,
    "000000\\000001", " ", "'",
)  # fmt: skip
ENDS = ("\n", "\r\n", "\r", "\n\n", " \n", "\u2028")


def make_seeds(folder: Path) -> list[Path]:
    root = make_voc(folder / "voc", {"train": 3}, height=24, width=32)
    return [*sorted((root / "Annotations").glob("*.xml")), root / "ImageSets" / "Main" / "train.txt"]


def mutate(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.2:
        return damage_text(chance, data)
    return _damage_xml(chance, data) if data.startswith(b"<") else _damage_lines(chance, data)


def _damage_xml(chance: random.Random, data: bytes) -> bytes:
    """Another text, tag or place of some elements, and another encoding, declared or not."""
    tree = ElementTree.fromstring(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        elements = list(tree.iter())
        parent, other = chance.choice([e for e in elements if len(e)]), chance.choice(elements)
        child = chance.choice(list(parent))
        action = chance.randrange(6)
        if action == 0:
            parent.remove(child)
        elif action == 1:
            parent.append(child)
        elif action == 2:
            other.tag = chance.choice(TAGS)
        elif action == 3:
            other.append(ElementTree.Element(chance.choice(TAGS)))
        else:
            child.text = chance.choice(TEXTS)
    text = ElementTree.tostring(tree, encoding="unicode")
    if chance.random() < 0.05:
        depth = chance.choice((10, 1000, 50_000))
        text = "<object>" * depth + text + "</object>" * depth
    if chance.random() < 0.5:
        text = f"<?xml version='1.0' encoding='{chance.choice(ENCODINGS)}'?>" + text
    written = chance.choice(ENCODINGS[:8]) if chance.random() < 0.3 else "utf-8"
    return text.encode(written, errors="replace")


def _damage_lines(chance: random.Random, data: bytes) -> bytes:
    lines = data.decode().split()
    for _ in range(chance.choice((1, 1, 2, 4))):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(LINES))
        if chance.random() < 0.3:
            lines.pop(chance.randrange(len(lines)))
    text = "".join(line + chance.choice(ENDS) for line in lines)
    return text.encode(chance.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))


def read(file: Path) -> None:
    use(VOCDataset(file.parents[2] if file.suffix == ".txt" else file.parents[1], "train"))


TARGET = Target("xml", make_seeds, mutate, read)
