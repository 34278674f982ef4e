"""Reading images: every kind a camera, a scanner or an accident produces."""

import contextlib
import errno
import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from refinedet.data.images import decode_image, image_size, list_images, read_image
from refinedet.errors import DataError, InputError


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
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # root would read any file
    with pytest.raises(DataError, match=r"locked\.png: cannot be read \(Permission denied\); check its permissions"):
        read_image(tmp_path / "locked.png")


def test_list_images_passes_over_hidden_files(tmp_path):
    for name in ("._a.png", ".hidden.jpg", "a.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]


def test_list_images_is_sorted_and_knows_suffixes_in_capitals(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "c.tiff"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.tiff"]


def encoded(format: str, image: np.ndarray | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth()[..., ::-1].copy() if image is None else image).save(buffer, format, **options)
    return buffer.getvalue()


FORMATS = ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000"]
# Big endian or little, and where each format declares width and height (of a TIFF, the values of its entries).
DECLARED = {
    "PNG": (">II", lambda data: 16),
    "JPEG": (">HH", lambda data: data.index(b"\xff\xc0") + 5),
    "BMP": ("<ii", lambda data: 18),
    "GIF": ("<HH", lambda data: 6),
    "WEBP": ("<HH", lambda data: 26),
}


def declare(format: str, width: int, height: int) -> bytes:
    """A picture whose header claims another size than its pixels have."""
    data = bytearray(encoded(format))
    if format == "TIFF":
        start = int.from_bytes(data[4:8], "little") + 2
        for offset in range(start, len(data) - 12, 12):
            tag, _, count, _ = struct.unpack_from("<HHII", data, offset)
            if tag in (256, 257) and count == 1:
                struct.pack_into("<HHII", data, offset, tag, 4, 1, width if tag == 256 else height)
    elif format == "PPM":
        data[:] = re.sub(rb"64 48", b"%d %d" % (width, height), bytes(data), count=1)
    elif format == "JPEG2000":
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
    else:
        form, place = DECLARED[format]
        sides = (height, width) if format == "JPEG" else (width, height)
        struct.pack_into(form, data, place(data), *sides)
    if format == "PNG":
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("apply_exif", [False, True])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch, format, apply_exif):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.delenv("REFINEDET_MAX_PIXELS", raising=False)
    side = 16383  # the most that WebP has room for
    path = tmp_path / "bomb.dat"
    path.write_bytes(declare(format, side, side))
    for read in (lambda path: read_image(path, apply_exif=apply_exif), image_size):
        with pytest.raises(
            DataError, match=rf"bomb\.dat: {side}x{side} pixels are more than 178956970; .*REFINEDET_MAX_PIXELS"
        ):
            read(path)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_of_pixels_can_be_set(tmp_path, monkeypatch, format):
    path = tmp_path / "image.dat"
    path.write_bytes(encoded(format))
    monkeypatch.setenv("REFINEDET_MAX_PIXELS", str(48 * 64))
    assert read_image(path).shape[:2] == image_size(path) == (48, 64)
    monkeypatch.setenv("REFINEDET_MAX_PIXELS", str(48 * 64 - 1))
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"64x48 pixels are more than 3071"):
            read(path)


def test_the_limit_may_exceed_those_of_pillow(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(declare("PNG", 20000, 20000))
    monkeypatch.setenv("REFINEDET_MAX_PIXELS", str(20000 * 20000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (20000, 20000)


@pytest.mark.parametrize("value", ["", "many", "0", "-5", "1.5", "9" * 5000])
def test_a_limit_that_is_no_number_is_one_sentence(tmp_path, monkeypatch, value):
    path = tmp_path / "image.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setenv("REFINEDET_MAX_PIXELS", value)
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=rf"REFINEDET_MAX_PIXELS is '{value[:5]}.*; give a whole number of pixels"):
            read(path)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(0, 48), (64, 0)])
def test_no_pixels_are_refused(tmp_path, format, size):
    path = tmp_path / "none.dat"
    path.write_bytes(declare(format, *size))
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=rf"none\.dat: declares {size[0]}x{size[1]} pixels, not an image"):
            read(path)


@pytest.mark.parametrize("format", FORMATS)
def test_another_size_than_the_declared_one_is_never_given(tmp_path, format):
    path = tmp_path / "other.dat"
    path.write_bytes(declare(format, 40, 30))
    with contextlib.suppress(DataError):
        assert read_image(path).shape[:2] == image_size(path) == (30, 40)


@pytest.mark.parametrize(("apply_exif", "found"), [(False, (64, 48)), (False, (48, 63)), (True, (48, 63))])
def test_pixels_of_another_size_than_declared_are_refused(tmp_path, monkeypatch, apply_exif, found):
    path = tmp_path / "other.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((*found, 3), np.uint8))
    with pytest.raises(DataError, match=rf"other\.png: declares 64x48 pixels and holds {found[1]}x{found[0]}; save"):
        read_image(path, apply_exif=apply_exif)


SIZES = [(1, 1), (1, 700), (700, 1), (17, 23)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", [*FORMATS, "TIFF big", "JPEG progressive", "JPEG with a profile", "WEBP lossless"])
def test_header_and_pixels_agree(tmp_path, format, size):
    options = {
        "TIFF big": {"big_tiff": True},
        "JPEG progressive": {"progressive": True},
        "JPEG with a profile": {"icc_profile": bytes(200_000)},
        "WEBP lossless": {"lossless": True, "icc_profile": bytes(10)},
    }.get(format, {})
    path = tmp_path / "image.dat"
    path.write_bytes(encoded(format.split()[0], noise(*size), **options))
    assert image_size(path) == read_image(path).shape[:2] == size


@pytest.mark.parametrize("suffix", [".jp2", ".pam", ".sr"])
def test_formats_that_opencv_adds(tmp_path, suffix):
    path = tmp_path / "image.dat"
    path.write_bytes(cv2.imencode(suffix, smooth())[1].tobytes())
    assert image_size(path) == read_image(path).shape[:2] == (48, 64)


def test_bmp_from_the_top_and_of_os2(tmp_path):
    image = noise(5, 4)
    upwards = cv2.imencode(".bmp", image)[1].tobytes()
    rows = np.frombuffer(upwards[54:], np.uint8).reshape(5, 12)[::-1].tobytes()
    downwards = upwards[:22] + struct.pack("<i", -5) + upwards[26:54] + rows
    os2 = struct.pack("<2sIIIIHHHH", b"BM", 26 + 60, 0, 26, 12, 4, 5, 1, 24) + upwards[54:]
    for data in (upwards, downwards, os2):
        (tmp_path / "image.bmp").write_bytes(data)
        assert image_size(tmp_path / "image.bmp") == (5, 4)
        np.testing.assert_array_equal(read_image(tmp_path / "image.bmp"), image)


TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95}),
    ],
)
def test_orientation_is_applied_where_asked_for_and_only_there(tmp_path, orientation, format, options):
    path = tmp_path / "turned.dat"
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.write_bytes(encoded(format, exif=exif, **options))
    stored = read_image(path)
    assert image_size(path) == (48, 64)
    np.testing.assert_allclose(stored, smooth(), atol=12 if format == "JPEG" else 0)
    np.testing.assert_array_equal(read_image(path, apply_exif=True), TURNS[orientation](stored))


def tiff(pixels: np.ndarray, order: str, orientation: int, kind: int = 3, tile: int | None = None) -> bytes:
    """An uncompressed TIFF of pixels [H,W,C], of 8 or 16 bits, in one strip or in square tiles."""
    height, width, channels = pixels.shape
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    blocks = [pixels]
    if tile:
        blocks = [pixels[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
    data = b"".join(block.tobytes() for block in blocks)
    offsets = [8 + index * blocks[0].nbytes for index in range(len(blocks))]
    entries = [(256, 3, [width]), (257, 3, [height]), (258, 3, [8 * pixels.itemsize] * channels), (259, 3, [1])]
    entries += [(262, 3, [2]), (274, kind, [orientation]), (277, 3, [channels])]
    sizes = [block.nbytes for block in blocks]
    entries += (
        [(322, 3, [tile]), (323, 3, [tile]), (324, 4, offsets), (325, 4, sizes)]
        if tile
        else [(273, 4, offsets), (278, 3, [height]), (279, 4, sizes)]
    )
    table, rest = struct.pack(order + "H", len(entries)), b""
    free = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, type_, values in sorted(entries):
        value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[type_] * len(values), *values)
        if len(value) > 4:
            value, rest = struct.pack(order + "I", free + len(rest)), rest + value
        table += struct.pack(order + "HHI", tag, type_, len(values)) + value.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(data))
    return head + data + table + bytes(4) + rest


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_of_a_tiff_by_hand(tmp_path, order, orientation, kind):
    path = tmp_path / "turned.tif"
    pixels = noise(20, 32)
    path.write_bytes(tiff(pixels[..., ::-1], order, orientation, kind))
    assert image_size(path) == (20, 32)
    np.testing.assert_array_equal(read_image(path), pixels)
    np.testing.assert_array_equal(read_image(path, apply_exif=True), TURNS[orientation](pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_of_a_tiff_in_tiles(tmp_path, orientation, dtype):
    """OpenCV 5.0 turns each tile of 8-bit RGBA by itself, and some of them twice."""
    path = tmp_path / "tiles.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 4)).astype(dtype)
    path.write_bytes(tiff(pixels * (257 if dtype == np.uint16 else 1), "<", orientation, tile=16))
    expected = pixels[..., 2::-1].astype(np.uint8)
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(path, apply_exif=True), TURNS[orientation](expected))


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_the_first_page_or_frame_is_taken(tmp_path, format):
    path = tmp_path / "several.dat"
    pages = [Image.new("RGB", (20, 10), color) for color in ((200, 100, 40), (0, 0, 255))]
    pages[0].save(path, format, save_all=True, append_images=pages[1:])
    image = read_image(path)
    assert image.shape[:2] == image_size(path) == (10, 20)
    np.testing.assert_allclose(image, np.broadcast_to((40, 100, 200), (10, 20, 3)), atol=4)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_the_content_counts_and_not_the_suffix(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded("WEBP"))
    assert read_image(path).shape[:2] == image_size(path) == (48, 64)


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_header_is_one_sentence(tmp_path, format):
    data = encoded(format)
    for length in range(1, 120):
        (tmp_path / "cut.dat").write_bytes(data[:length])
        for read in (read_image, image_size):
            try:
                read(tmp_path / "cut.dat")
            except DataError as error:
                assert "cut.dat: " in str(error)  # noqa: PT017


def test_sides_beyond_those_of_opencv_are_named(tmp_path):
    path = tmp_path / "long.pgm"
    path.write_bytes(b"P5 1048577 1 255\n" + bytes(1048577))
    assert image_size(path) == (1, 1048577)
    with pytest.raises(DataError, match=r"long\.pgm: .*1048577.*OPENCV_IO_MAX_IMAGE_WIDTH"):
        read_image(path)


def test_files_beyond_int32_are_refused_unread(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.write(encoded("PNG"))
        file.truncate(2**31)  # sparse: takes no space
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"huge\.png: 2147483648 bytes, and OpenCV decodes up to 2147483647"):
            read(path)


def test_decoders_are_silent_where_the_level_says_so(tmp_path, capfd, monkeypatch):
    """libpng and libjpeg write to descriptor 2 themselves."""
    png, jpeg = (encoded(format, noise(64, 64)) for format in ("PNG", "JPEG"))
    (tmp_path / "a.png").write_bytes(png[:1000] + bytes(10) + png[1010:])
    (tmp_path / "b.jpg").write_bytes(jpeg[: len(jpeg) // 2] + b"\xff\xd9")
    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    for name in ("a.png", "b.jpg"):
        for level, printed in (("", True), ("SILENT", False)):
            monkeypatch.setenv("OPENCV_LOG_LEVEL", level)
            with contextlib.suppress(DataError):
                read_image(tmp_path / name)
            os.write(2, b"ours\n")
            error = capfd.readouterr().err
            assert ("JPEG data" in error or "libpng" in error) == printed
            assert "ours" in error


def test_content_of_a_file_is_decoded_as_the_file(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "upload"), read_image(path))
    with pytest.raises(DataError, match=r"upload: not an image .*\(4 bytes"):
        decode_image(b"text", "upload")


def test_a_chunk_that_claims_more_than_the_file_is_refused_before_decoding(tmp_path, monkeypatch):
    """OpenCV 5.0 takes memory for the claim first, and fills it."""
    path = tmp_path / "claim.png"
    data = encoded("PNG")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for chunk in (b"IDAT", b"IEND"):
        place = data.index(chunk) - 4
        path.write_bytes(data[:place] + (10 * len(data)).to_bytes(4, "big") + data[place + 4 :])
        with pytest.raises(DataError, match=r"claim\.png: not an image that OpenCV can decode"):
            read_image(path)


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6", "P7"])
@pytest.mark.parametrize("white", [1, 100, 254, 255, 256, 4095, 65535])
def test_the_white_of_a_portable_map_is_white(tmp_path, kind, white):
    """OpenCV leaves the samples of most of them as they are: a picture of 12 bits would be nearly black."""
    white += kind == "P7" and white == 1  # of bits in a PAM OpenCV 5.0 makes black
    values = [0, white // 3, white, white // 2]
    channels = 1 if kind in ("P2", "P5") else 3
    samples = [value for value in values for _ in range(channels)]
    head = f"{kind}\n# two by two\n2 2\n{white}\n"
    if kind == "P7":
        head = f"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 3\nMAXVAL {white}\nTUPLTYPE RGB\nENDHDR\n"
    data = " ".join(map(str, samples)).encode() + b"\n"
    if kind not in ("P2", "P3"):
        data = b"".join(sample.to_bytes(1 if white < 256 else 2, "big") for sample in samples)
    path = tmp_path / "map.pnm"
    path.write_bytes(head.encode() + data)
    expected = np.array(values).reshape(2, 2, 1) * 255 / white
    np.testing.assert_allclose(read_image(path), expected.repeat(3, 2), atol=1 if kind in ("P2", "P3") else 0.5)
