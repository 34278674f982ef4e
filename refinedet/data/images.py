"""Reading image files: either a whole, decoded picture or one clear error."""

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from refinedet.errors import DataError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"))


def read_image(path: str | os.PathLike[str], *, apply_exif: bool = False) -> np.ndarray:
    """Decode an image file to uint8 [H,W,3] in BGR order.

    Greyscale and palette images become three channels; 16-bit samples are scaled by 255/65535 and rounded; an alpha
    channel is dropped, not blended; CMYK JPEGs are converted. The EXIF orientation is ignored unless ``apply_exif``:
    the annotations of VOC and COCO are made on the stored pixels.

    Raises DataError when the file is missing, a folder, empty, cut short, not an image or of more than 16 bits. What
    cannot be told is a JPEG whose compressed data is damaged but properly ended: the decoder fills in grey.
    """
    data = _read_bytes(path)
    # Decoding from memory matters: from a file, OpenCV fills a truncated JPEG with grey and only warns.
    # It also makes the path's encoding no matter of OpenCV's.
    orientation = 0 if apply_exif else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | orientation)
    except cv2.error as error:
        raise DataError(f"{path}: OpenCV cannot decode this image ({error.err}); replace or remove it") from error
    if image is None:
        raise DataError(
            f"{path}: not an image that OpenCV can decode ({len(data)} bytes; cut short, damaged or of another kind); "
            "replace it or save it again as JPEG or PNG"
        )
    return _to_8_bit(image, path)


def _to_8_bit(image: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        raise DataError(f"{path}: its samples are {image.dtype}, whose range is unknown; save it with 8 or 16 bits")
    # OpenCV's own conversion rounds in some formats and truncates in others.
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of the stored pixels, from the file's header alone where possible. Raises like read_image."""
    try:
        with Image.open(path) as header:
            return header.height, header.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        height, width = read_image(path).shape[:2]
        return height, width


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a folder that have an image's suffix, sorted by name."""
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_bytes(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not an image; give the images inside it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not data:
        raise DataError(f"{path}: the image file is empty (0 bytes); replace or remove it")
    return np.frombuffer(data, np.uint8)
