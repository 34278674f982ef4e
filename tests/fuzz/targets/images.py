"""Images of every format, read as data sets and as `detect` read them."""

import os
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from PIL import Image

from fuzz.engine import Target
from fuzz.units import damage_units
from refinedet.data.images import image_size, read_image

LIMIT = 1_000_000  # pixels: more than any seed has, and soon decoded
FORMATS = {
    "jpg": ("JPEG", {"quality": 90}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "big.tif": ("TIFF", {"big_tiff": True}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "ppm": ("PPM", {}),
    "gif": ("GIF", {}),
    "jp2": ("JPEG2000", {}),
}


def make_seeds(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = []
    for name, (format, options) in FORMATS.items():
        for turned in (False, True) if format in ("JPEG", "PNG", "TIFF", "WEBP") else (False,):
            paths.append(folder / f"{'turned' if turned else 'upright'}.{name}")
            Image.fromarray(pixels).save(paths[-1], format, **options, **({"exif": exif} if turned else {}))
    pages = [Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())]
    for name in ("several.tif", "several.gif", "several.webp", "several.png"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
        paths.append(folder / name)
    for name, array in {"grey.png": pixels[..., 0], "alpha.png": np.dstack([pixels, pixels[..., 0]])}.items():
        Image.fromarray(array.copy()).save(folder / name)
        paths.append(folder / name)
    Image.fromarray(pixels).quantize(16).save(folder / "palette.png")
    paths.append(folder / "palette.png")
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        cv2.imwrite(str(folder / name), pixels[..., 0].astype(np.uint16) * 257)
        paths.append(folder / name)
    return [path for path in paths if cv2.haveImageReader(str(path))]  # OpenCV 4.11 has none of GIF


def read(file: Path) -> None:
    with patch.dict(os.environ, REFINEDET_MAX_PIXELS=str(LIMIT)):
        size = image_size(file)
        stored, upright = read_image(file), read_image(file, apply_exif=True)
    assert stored.shape[:2] == size
    assert sorted(upright.shape[:2]) == sorted(size)
    assert stored.dtype == upright.dtype == np.uint8
    assert stored.shape[2] == upright.shape[2] == 3


TARGET = Target("images", make_seeds, damage_units, read, memory=lambda size: 2 * size + (64 << 20))
