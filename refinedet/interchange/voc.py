"""PASCAL VOC's annotations (VOC2012 development kit, section "Annotation"): an XML file for each image.

Corners are pixels: the first one is 1, and the last one belongs to the box. Ours count from 0, so 1 is added to all
four, as in the files for VOC's server. They keep three decimals, which VOC's own files have in places, too; scores have
no place. Not every reader means the same boxes by the four numbers: supervision (0.31.2) does, globox (2.9.0) takes
them for edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from refinedet.choices import SAVED_SPLIT
from refinedet.files import write_text
from refinedet.interchange.edges import Found
from refinedet.interchange.names import check_name

DECIMALS = 3  # of a pixel, which is what evaluation keeps of annotations


def to_voc_xml(detections: Found, filename: str | None = None) -> str:
    """The annotation of one image as VOC's XML. ``filename``: the image's, by default that of ``detections.path``.

    Raises InputError for a name of the file or of a class that XML cannot hold.
    """
    if filename is None:
        filename = Path(detections.path or "").name
    height, width = detections.size
    root = ElementTree.Element("annotation")
    _add(root, "filename", check_name(filename, "the image's name"))
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, str(value))
    corners = detections.boxes.detach().cpu().numpy().astype(np.float64) + 1.0
    for name, box in zip(detections.names, corners.tolist(), strict=True):
        item = ElementTree.SubElement(root, "object")
        _add(item, "name", check_name(name, "the class"))
        _add(item, "pose", "Unspecified")
        _add(item, "truncated", "0")
        _add(item, "difficult", "0")
        corner = ElementTree.SubElement(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            _add(corner, tag, f"{value:.{DECIMALS}f}".rstrip("0").rstrip("."))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


class VOCFolder:
    """``Annotations/NAME.xml``, ``JPEGImages/``, the list of images ``ImageSets/Main/default.txt``, and the classes in
    ``labelmap.txt``, without which Datumaro (1.13.12), and so CVAT, takes VOC's own twenty alone."""

    images = "JPEGImages"

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._root = root
        self._classes = classes
        self._names: list[str] = []

    def add(self, image: str, detections: Found) -> None:
        """Write the annotation of an image."""
        name = Path(image).stem
        write_text(self._root / "Annotations" / f"{name}.xml", to_voc_xml(detections, image))
        self._names.append(name)

    def close(self) -> None:
        """Write the lists of the images and of the classes: name, colour, parts and actions, of which we know one."""
        write_text(self._root / "ImageSets" / "Main" / f"{SAVED_SPLIT}.txt", "".join(f"{n}\n" for n in self._names))
        write_text(self._root / "labelmap.txt", "".join(f"{name}:::\n" for name in self._classes))
