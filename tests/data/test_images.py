"""Reading images: every kind a camera, a scanner or an accident produces."""

import errno
import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from refinedet.data.images import image_size, list_images, read_image
from refinedet.errors import DataError


def noise(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """An image that JPEG keeps almost unchanged, brighter to the right and bluer to the bottom."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((y * 4, x * 3, x * 0 + 40), 2).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_formats_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), noise())
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, noise())
    assert image_size(path) == (24, 40)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_back_nearly(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), smooth())
    assert np.abs(read_image(str(path)).astype(int) - smooth()).max() < 12


def test_path_beyond_ascii(tmp_path):
    path = tmp_path / "größe 影像 🩸.png"
    path.write_bytes(cv2.imencode(".png", noise())[1].tobytes())
    np.testing.assert_array_equal(read_image(path), noise())


def test_greyscale_becomes_three_equal_channels(tmp_path):
    grey = noise()[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_is_scaled_to_the_full_range(tmp_path, suffix, channels):
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), levels if channels == 1 else np.dstack([levels] * 3))
    image = read_image(tmp_path / f"deep{suffix}")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(np.rint(levels * (255 / 65535))[..., None], 3, 2))


def test_alpha_is_dropped_and_not_blended(tmp_path):
    alpha = np.zeros((24, 40), np.uint8)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([noise(), alpha]))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), noise())


def test_palette(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 0, 1, 1, 0, 1, 0])
    image.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0].tolist() == [[30, 20, 10], [50, 100, 200]] * 2


def test_cmyk_jpeg_is_converted(tmp_path):
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    blue, green, red = read_image(tmp_path / "cmyk.jpg")[8, 8].astype(int)  # full cyan ink
    assert (blue > 250, green > 250, red < 5) == (True, True, True)


def test_exif_orientation_is_ignored_unless_asked_for(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(smooth()[..., ::-1].copy()).save(path, exif=exif, quality=95)
    stored = read_image(path)
    assert stored.shape == (48, 64, 3)
    assert image_size(path) == (48, 64)
    np.testing.assert_array_equal(read_image(path, apply_exif=True), np.rot90(stored, -1))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.jpg: no such image file; check the path"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(DataError, match=r"absent\.jpg: no such image file"):
        image_size(tmp_path / "absent.jpg")


def test_folder(tmp_path):
    with pytest.raises(DataError, match="is a folder, not an image; give the images inside it"):
        read_image(tmp_path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"empty\.jpg: the image file is empty \(0 bytes\); replace or remove it"):
            read(path)


def test_text_file(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"notes\.png: not an image that OpenCV can decode \(13 bytes"):
            read(path)


def test_32_bit_float_is_refused(tmp_path):
    path = tmp_path / "float.tiff"
    cv2.imwrite(str(path), np.full((4, 4, 3), 0.5, np.float32))
    with pytest.raises(
        DataError, match=r"float\.tiff: its samples are float32, whose range is unknown; save it with 8 or"
    ):
        read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_cut_file_is_never_half_an_image(tmp_path, suffix, share):
    data = cv2.imencode(suffix, noise(64, 64))[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"cut\{suffix}: .*(cut short|cannot decode)"):
        read_image(path)


def test_a_jpeg_without_its_last_bytes_is_refused(tmp_path):
    data = cv2.imencode(".jpg", smooth())[1].tobytes()
    for missing in (1, 2, 20):
        (tmp_path / "cut.jpg").write_bytes(data[:-missing])
        with pytest.raises(DataError, match=r"cut\.jpg: not an image"):
            read_image(tmp_path / "cut.jpg")


def test_a_progressive_jpeg_cut_between_scans_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG", progressive=True)
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3])
    with pytest.raises(DataError, match=r"cut\.jpg: not an image"):
        read_image(tmp_path / "cut.jpg")


def test_a_damaged_png_is_refused(tmp_path):
    data = bytearray(cv2.imencode(".png", noise(64, 64))[1].tobytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.png: not an image"):
        read_image(tmp_path / "damaged.png")


def test_bytes_after_the_image_do_no_harm(tmp_path):
    data = cv2.imencode(".jpg", smooth())[1].tobytes()
    (tmp_path / "padded.jpg").write_bytes(data + bytes(100))
    assert read_image(tmp_path / "padded.jpg").shape == (48, 64, 3)


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root would read any file
    with pytest.raises(DataError, match=r"locked\.png: cannot be read \(Permission denied\); check its permissions"):
        read_image(tmp_path / "locked.png")


def test_list_images_is_sorted_and_knows_suffixes_in_capitals(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "c.tiff"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.tiff"]
