"""Reading and writing image files: either a whole picture or one clear error."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from refinedet.data.headers import PNG, Header, read_header, still_png
from refinedet.errors import DataError, InputError, show
from refinedet.files import atomic_write, is_hidden
from refinedet.silence import silent_decoders

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"))
MAX_PIXELS = 178_956_970  # the default of REFINEDET_MAX_PIXELS: where Pillow refuses, at twice 89 million
_OPENCV_SIDE = 1 << 20  # sides and pixels that OpenCV decodes, unless OPENCV_IO_MAX_IMAGE_* say otherwise
_OPENCV_PIXELS = 1 << 30
_OPENCV_BYTES = 2**31 - 1


def read_image(path: str | os.PathLike[str], *, apply_exif: bool = False) -> np.ndarray:
    """Decode an image file to uint8 [H,W,3] in BGR order.

    Greyscale and palette images become three channels; 16-bit samples are scaled by 255/65535 and rounded, those of a
    PGM, PPM or PAM by 255 and the value that it gives white; an alpha channel is dropped, not blended; CMYK JPEGs are
    converted; of several pages or frames the first is taken. The orientation, of EXIF or of a TIFF, is ignored unless
    ``apply_exif``: the annotations of VOC and COCO are made on the stored pixels.

    Raises DataError when the file is missing, a folder, empty, cut short, not an image, of more than 16 bits, or of
    more pixels than `max_pixels`; that is seen in its header, before anything is decoded. What cannot be told is a
    JPEG whose compressed data is damaged but properly ended: the decoder fills in grey.
    """
    return decode_image(_read_bytes(path), str(path), apply_exif=apply_exif)


def decode_image(data: bytes, name: str, *, apply_exif: bool = False) -> np.ndarray:
    """As `read_image`, of the content of a file; ``name`` is for the message of an error."""
    header = read_header(io.BytesIO(data))
    if header is None:
        raise _not_an_image(name, len(data))
    _check_size(header, name)
    plain = still_png(data) if data.startswith(PNG) else data
    if plain is None:
        raise _not_an_image(name, len(data))
    for place, content in header.neutral:  # OpenCV would turn a TIFF in any case, and some in disorder
        plain = plain[:place] + content + plain[place + len(content) :]
    image = _decode(plain, header, name, apply_exif and header.orientation == 1)
    expected = [(header.height, header.width), (header.width, header.height)][: 2 if apply_exif else 1]
    if image.shape[:2] not in expected:
        raise DataError(
            f"{name}: declares {header.width}x{header.height} pixels and holds {image.shape[1]}x{image.shape[0]}; "
            "save it again as JPEG or PNG"
        )
    return _to_8_bit(_turn(image, header.orientation) if apply_exif else image, header.white, name)


def _decode(data: bytes, header: Header, name: str, turn: bool) -> np.ndarray:
    # Decoding from memory matters: from a file, OpenCV fills a truncated JPEG with grey and only warns.
    # It also makes the path's encoding no matter of OpenCV's.
    orientation = 0 if turn else cv2.IMREAD_IGNORE_ORIENTATION
    reason = None
    try:
        with silent_decoders():
            image: np.ndarray | None = cv2.imdecode(
                np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | orientation
            )
    except cv2.error as error:
        image, reason = None, error.err
    if image is not None:
        return image
    if max(header[:2]) > _OPENCV_SIDE or header.height * header.width > _OPENCV_PIXELS:
        raise DataError(
            f"{name}: {header.width}x{header.height} pixels, which OpenCV decodes only where OPENCV_IO_MAX_IMAGE_WIDTH,"
            " OPENCV_IO_MAX_IMAGE_HEIGHT and OPENCV_IO_MAX_IMAGE_PIXELS allow it; cut it into parts"
        )
    if reason is not None:
        raise DataError(f"{name}: OpenCV cannot decode this image ({reason}); replace or remove it")
    raise _not_an_image(name, len(data))


def _not_an_image(name: str, size: int) -> DataError:
    if not size:
        return DataError(f"{name}: the image file is empty (0 bytes); replace or remove it")
    return DataError(
        f"{name}: not an image that OpenCV can decode ({size} bytes; cut short, damaged or of another kind); "
        "replace it or save it again as JPEG or PNG"
    )


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels as they are to be seen (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _to_8_bit(image: np.ndarray, white: int | None, name: str) -> np.ndarray:
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name}: its samples are {image.dtype}, whose range is unknown; save it with 8 or 16 bits")
    white = white or np.iinfo(image.dtype).max
    if white == 255:
        return image
    # OpenCV's own conversion rounds in some formats and truncates in others.
    levels: np.ndarray = np.minimum(image, white).astype(np.uint32)
    levels *= 255
    levels += white // 2
    levels //= white
    return levels.astype(np.uint8)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a picture [H,W,3] uint8 in BGR order, atomically, in the format that ``path`` names.

    Raises DataError where the format does not hold its size.
    """
    encoded, data = cv2.imencode(path.suffix, image)
    if not encoded:  # a JPEG has at most 65,500 rows and columns
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(f"{path}: OpenCV cannot write a {size} picture in this format; save the image as PNG")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def max_pixels() -> int:
    """How many pixels an image may have: the environment variable REFINEDET_MAX_PIXELS, by default 178 million.

    Raises InputError when it is no whole number of at least 1.
    """
    text = os.environ.get("REFINEDET_MAX_PIXELS", str(MAX_PIXELS))
    try:
        limit = int(text)
    except ValueError:
        limit = 0
    if limit < 1:
        raise InputError(f"REFINEDET_MAX_PIXELS is {show(text)}; give a whole number of pixels, at least 1")
    return limit


def _check_size(header: Header, name: str) -> None:
    limit, size = max_pixels(), f"{header.width}x{header.height} pixels"
    if header.height < 1 or header.width < 1:
        raise DataError(f"{name}: declares {size}, not an image that OpenCV can decode; replace or remove it")
    if header.height * header.width > limit:
        raise DataError(
            f"{name}: {size} are more than {limit}; make it smaller, or allow more by the environment variable "
            "REFINEDET_MAX_PIXELS"
        )


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of the stored pixels, from the file's header alone. Raises as `read_image`, but for damage behind
    the header."""
    with _open(path) as file:
        header = read_header(file)
        if header is None:
            raise _not_an_image(str(path), os.fstat(file.fileno()).st_size)
    _check_size(header, str(path))
    return header.height, header.width


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image does, whatever its name."""
    try:
        with open(path, "rb") as file:
            return read_header(file) is not None
    except OSError:
        return False


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a folder that have an image's suffix and are not hidden, sorted by name."""
    files = (path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not is_hidden(Path(path.name)))


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file, of a size that OpenCV takes."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _OPENCV_BYTES:
                raise DataError(f"{path}: {size} bytes, and OpenCV decodes up to {_OPENCV_BYTES}; is it an image?")
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not an image; give the images inside it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    with _open(path) as file:
        return file.read()
