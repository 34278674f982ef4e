"""Ways to damage the parts that image and video files are made of: chunks, segments, directory entries, boxes."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator

from fuzz.mutations import damage_bytes

NUMBERS = (0, 1, 2, 3, 4, 8, 16, 32, 255, 256, 999, 4096, 32767, 32768, 65500, 65535, 65536, 1 << 20, (1 << 20) + 1,
           (1 << 24) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)  # fmt: skip
NESTED_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"jp2h", b"iprp", b"ipco")
Units = Iterator[tuple[int, int]]  # start and end of each


def damage_units(chance: random.Random, data: bytes) -> bytes:
    """One to four damages: a part dropped, doubled, moved or with another number in it; now and then bytes anywhere.
    Checksums of a PNG are made right again, or nothing behind them would be reached."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = damage_bytes(chance, data) if chance.random() < 0.3 else _damage_unit(chance, data)
    return _with_checksums(data) if data.startswith(b"\x89PNG") and chance.random() < 0.8 else data


def _damage_unit(chance: random.Random, data: bytes) -> bytes:
    units = [(start, end) for start, end in _units(data) if start < end <= len(data)]
    if not units:
        return damage_bytes(chance, data)
    start, end = chance.choice(units)
    unit = data[start:end]
    action = chance.randrange(8)
    if action == 0:
        return data[:start] + data[end:]
    if action == 1:
        return data[:end] + unit * chance.choice((1, 1, 20)) + data[end:]
    if action == 2:
        other, other_end = chance.choice(units)
        return data[:start] + data[other:other_end] + data[end:]
    form = chance.choice("BHHIII")
    number = struct.pack(chance.choice("<>") + form, chance.choice(NUMBERS) & (1 << 8 * struct.calcsize(form)) - 1)
    place = start + chance.randrange(min(len(unit), 48))
    return data[:place] + number + data[place + len(number) :]


def _units(data: bytes) -> Units:
    for magic, read in _FORMATS.items():
        if data.startswith(magic):
            try:
                yield from read(data)
            except struct.error:  # the file ends before
                return
            return
    if data[4:8] in (b"ftyp", b"jP  "):
        yield from _boxes(data, 0, len(data))
    else:
        yield from ((start, start + 16) for start in range(0, min(len(data), 256), 8))


def _png(data: bytes) -> Units:
    start = 8
    while start < len(data):
        end = start + 12 + struct.unpack_from(">I", data, start)[0]
        yield start, end
        start = end


def _with_checksums(data: bytes) -> bytes:
    content = bytearray(data)
    for start, end in _units(data):
        if end <= len(data):
            content[end - 4 : end] = zlib.crc32(content[start + 4 : end - 4]).to_bytes(4, "big")
    return bytes(content)


def _jpeg(data: bytes) -> Units:
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1] != 0xDA:
        end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        yield start, end
        start = end
    yield start, len(data)


def _tiff(data: bytes) -> Units:
    """The entries of the first directory."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
    size, start = (20, first + 8) if big else (12, first + 2)
    for index in range(min(count, 100)):
        yield start + index * size, start + (index + 1) * size


def _riff(data: bytes, start: int = 12, stop: int | None = None) -> Units:
    stop = len(data) if stop is None else min(stop, len(data))
    while start + 8 <= stop:
        end = start + 8 + struct.unpack_from("<I", data, start + 4)[0]
        yield start, end
        if data[start : start + 4] == b"LIST":
            yield from _riff(data, start + 12, end)
        start = end + end % 2


def _boxes(data: bytes, start: int, stop: int) -> Units:
    while start + 8 <= stop:
        end = start + max(8, struct.unpack_from(">I", data, start)[0])
        yield start, end
        if data[start + 4 : start + 8] in NESTED_BOXES:
            yield from _boxes(data, start + 8, min(end, stop))
        start = end


_FORMATS: dict[bytes, Callable[[bytes], Units]] = {
    b"\x89PNG": _png,
    b"\xff\xd8": _jpeg,
    b"II": _tiff,
    b"MM": _tiff,
    b"RIFF": _riff,
}
