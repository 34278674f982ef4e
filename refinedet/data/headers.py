"""What an image file declares of itself, read from its first bytes and without decoding.

OpenCV decodes, but tells a size only with the pixels. Pillow reads headers, but more than the size: it warns of what
does not matter here, fails on files that OpenCV takes, has one limit for the whole process, and means by the size of a
TIFF the stored or the turned one, depending on its version.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 1 << 16  # bytes of a file in which all formats but JPEG and TIFF tell their size


class Header(NamedTuple):
    """``height`` and ``width`` of the stored pixels.

    Of a TIFF also its ``orientation`` (1 to 8, as in EXIF), and in ``neutral`` what makes it 1: offsets, and the bytes
    to write there. Of a PGM, PPM or PAM the value of ``white``, where OpenCV leaves the samples as they are.
    """

    height: int
    width: int
    orientation: int = 1
    neutral: tuple[tuple[int, bytes], ...] = ()
    white: int | None = None


def read_header(file: BinaryIO) -> Header | None:
    """The header of an image in any format that OpenCV decodes; None where it is cut short, damaged or unknown."""
    head = file.read(_HEAD)
    try:
        if head.startswith(b"\xff\xd8"):
            return _jpeg(file)
        if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _tiff(file)
        return next((read(head) for magic, read in _FORMATS if re.match(magic, head, re.DOTALL)), None)
    except (struct.error, OverflowError):  # the file ends before; no file has so large an offset
        return None


def claims_too_much(data: bytes) -> bool:
    """Whether a chunk of a PNG is longer than the file: OpenCV takes, and fills, memory for what a chunk claims, up to
    4 GiB, and then finds the file cut short."""
    start = 8
    while data.startswith(_PNG) and len(data) >= start + 8:
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            return True
        if data[start + 4 : start + 8] == b"IEND":
            break
        start = end
    return False


def _jpeg(file: BinaryIO) -> Header | None:
    position = 2
    while True:
        file.seek(position)
        marker = re.search(rb"\xff([\x01-\xfe])", file.read(_HEAD))  # decoders skip what is before a marker
        if marker is None:
            return None
        position += marker.end()
        code = marker[1][0]
        if code == 0x01 or 0xD0 <= code <= 0xD8:  # these have no length
            continue
        file.seek(position)
        length, _, height, width = struct.unpack(">HBHH", file.read(7))
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            return Header(height, width)
        if code in (0xD9, 0xDA):  # the end, or pixels without a frame
            return None
        position += length


def _tiff(file: BinaryIO) -> Header | None:
    """The first directory: TIFF 6.0 section 2, and its form with offsets of 8 bytes."""
    file.seek(0)
    start = file.read(16)
    order = "<" if start.startswith(b"II") else ">"
    if b"+" in start[2:4]:
        (first,) = struct.unpack_from(order + "Q", start, 8)
        counter, entry, upright = "Q", struct.Struct(order + "HHQ8s"), "HHQH6x"
    else:
        (first,) = struct.unpack_from(order + "I", start, 4)
        counter, entry, upright = "H", struct.Struct(order + "HHI4s"), "HHIH2x"
    file.seek(first)
    (count,) = struct.unpack(order + counter, file.read(struct.calcsize(order + counter)))
    table = file.read(entry.size * min(count, 0xFFFF))
    values: dict[int, int] = {}
    neutral: list[tuple[int, bytes]] = []
    for offset in range(0, len(table) - entry.size + 1, entry.size):
        tag, kind, _, value = entry.unpack_from(table, offset)
        if tag in (256, 257, 274) and kind in _INTEGERS:
            values.setdefault(tag, struct.unpack_from(order + _INTEGERS[kind], value)[0])  # the first counts
        if tag == 274:
            place = first + struct.calcsize(order + counter) + offset
            neutral.append((place, struct.pack(order + upright, tag, 3, 1, 1)))
    if 256 not in values or 257 not in values:
        return None
    orientation = values.get(274, 1)
    return Header(values[257], values[256], orientation if 1 <= orientation <= 8 else 1, tuple(neutral))


_INTEGERS = {1: "B", 3: "H", 4: "I"}  # types of a TIFF's values that fit into an entry


def _at(form: str, offset: int) -> Callable[[bytes], Header]:
    """Width and height, in this order, at an offset."""

    def read(head: bytes) -> Header:
        width, height = struct.unpack_from(form, head, offset)
        return Header(abs(height), width)  # below 0: a BMP that is stored from the top

    return read


def _webp_lossy(head: bytes) -> Header:
    width, height = struct.unpack_from("<HH", head, 26)
    return Header(height & 0x3FFF, width & 0x3FFF)


def _webp_lossless(head: bytes) -> Header:
    (bits,) = struct.unpack_from("<I", head, 21)
    return Header((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)


def _webp_extended(head: bytes) -> Header:
    width, height = (int.from_bytes(head[start : start + 3], "little") for start in (24, 27))
    return Header(height + 1, width + 1)


def _search(pattern: bytes) -> Callable[[bytes], Header | None]:
    """Decimal numbers in a text, named ``h``, ``w`` and, where there is a value of white, ``white``."""

    def read(head: bytes) -> Header | None:
        match = re.search(pattern, head, re.DOTALL)
        if match is None:
            return None
        white = match.groupdict().get("white")
        return Header(int(match["h"]), int(match["w"]), white=int(white) if white else None)

    return read


_SPACE = rb"(?:\s|#[^\n]*\n)+"
_PNM = rb"\AP." + _SPACE + rb"(?P<w>\d{1,10})" + _SPACE + rb"(?P<h>\d{1,10})(?=\s)"
_WHITE = _SPACE + rb"(?P<white>\d{1,5})\s"


def _ascii_pnm(head: bytes) -> Header | None:
    header = _search(_PNM + _WHITE)(head)
    if header is None or header.white is None or header.white > 255:
        return header
    return header._replace(white=None)  # these OpenCV scales


def _jpeg_2000(head: bytes) -> Header:
    height, width = struct.unpack_from(">II", head, head.find(b"ihdr") + 4)
    return Header(height, width)


def _jpeg_2000_stream(head: bytes) -> Header:
    right, bottom, left, top = struct.unpack_from(">IIII", head, 8)
    return Header(max(0, bottom - top), max(0, right - left))


def _avif(head: bytes) -> Header | None:
    """The largest of its items: the others are tiles and thumbnails."""
    sizes = [struct.unpack_from(">II", head, match.end() + 4) for match in re.finditer(b"ispe", head)]
    width, height = max(sizes, default=(0, 0))
    return Header(height, width) if sizes else None


_FORMATS: tuple[tuple[bytes, Callable[[bytes], Header | None]], ...] = (
    (_PNG + rb"....IHDR", _at(">II", 16)),
    (rb"GIF8[79]a", _at("<HH", 6)),
    (rb"BM.{12}\x0c\0\0\0", _at("<HH", 18)),
    (rb"BM.{12}[\x28\x34\x38\x40\x6c\x7c]\0\0\0", _at("<ii", 18)),
    (rb"RIFF....WEBPVP8 ", _webp_lossy),
    (rb"RIFF....WEBPVP8L", _webp_lossless),
    (rb"RIFF....WEBPVP8X", _webp_extended),
    (rb"P[14Ff]\s", _search(_PNM)),
    (rb"P[23]\s", _ascii_pnm),
    (rb"P[56]\s", _search(_PNM + _WHITE)),
    (rb"P7\s", _search(rb"WIDTH\s+(?P<w>\d{1,10})\s+HEIGHT\s+(?P<h>\d{1,10})\s.*?MAXVAL\s+(?P<white>\d{1,5})\s")),
    (rb"#\?R", _search(rb"-Y\s+(?P<h>\d{1,10})\s+\+X\s+(?P<w>\d{1,10})\s")),
    (rb"\0\0\0\x0cjP  \r\n\x87\n", _jpeg_2000),
    (rb"\xff\x4f\xff\x51", _jpeg_2000_stream),
    (rb"....ftypavi[fs]", _avif),
    (rb"\x59\xa6\x6a\x95", _at(">II", 4)),  # a Sun raster
)
