import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image, ImageOps

from binseg.errors import ImageError, MissingExtraError, OutputError
from binseg.imageio import (
    IMAGE_SUFFIXES,
    decode_image,
    probe,
    read_image,
    read_labels,
    read_pixels,
    write_image,
    write_mask,
    write_numbers,
)
from binseg.imageio.formats import decoder_of
from binseg.imageio.raster import image_of
from binseg.imageio.windows import open_windows

RNG = np.random.default_rng(0)
RGB = np.kron(RNG.integers(0, 256, (3, 5, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
GREY = RGB[:, :, 0].copy()
LABELS = np.array([[0, 1, 2], [3, 1, 0]], np.uint8)


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    photo = image if isinstance(image, Image.Image) else Image.fromarray(image)
    photo.save(path, **options)  # type: ignore[arg-type]  # Pillow types each option apart
    return path


def tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **options)  # type: ignore[arg-type]  # likewise
    return path


def error_of(path: Path, *, page: int | None = None) -> str:
    """The one line that read_image, read_labels and (where no page is asked for) probe give."""
    with pytest.raises(ImageError) as caught:
        read_image(path, page=page)
    with pytest.raises(ImageError):
        read_labels(path, page=page)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def check_probe(path: Path) -> None:
    info, image_HWC = probe(path), read_image(path)
    assert (info.height, info.width, info.channels) == image_HWC.shape
    assert info.dtype == str(image_HWC.dtype)
    assert image_HWC.flags.writeable
    assert image_HWC.flags.c_contiguous


MODES = {
    ".jpg": "RGB L 1 CMYK",
    ".png": "RGB L 1 RGBA LA P I;16",
    ".webp": "RGB L 1 RGBA LA P CMYK I;16",
    ".bmp": "RGB L 1 RGBA P",
    ".tif": "RGB L 1 RGBA LA P CMYK I;16",
}


@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix in MODES for mode in MODES[suffix].split()]
)
def test_every_format_and_mode_gives_the_pixels_that_pillow_shows(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    """Colours come out as RGB and greys as one channel, whatever the file's own mode."""
    base = Image.fromarray(RGB)
    source = base.convert("L").convert(mode) if mode == "I;16" else base.convert(mode)
    path = saved(tmp_path / f"a{suffix}", source)
    with Image.open(path) as opened:
        opened.load()
        shown = opened.convert("RGBA").convert("RGB") if mode == "P" else opened.convert("RGB")
        grey = opened.mode in ("L", "LA", "1", "I;16")
        expected = np.asarray(opened.convert("L") if grey else shown)
        if opened.mode == "I;16":
            expected = np.asarray(opened)
    image_HWC = read_image(path)
    np.testing.assert_array_equal(image_HWC[:, :, 0] if grey else image_HWC, expected)
    check_probe(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turn_is_applied_to_image_and_labels(
    tmp_path: Path, format_: str, orientation: int
) -> None:
    """An image and a mask that carry the same turn stay on top of each other."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if format_ == "WEBP" else {}
    path = saved(tmp_path / "a", RGB, format=format_, exif=exif, **lossless)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_labels(path), expected)
    assert probe(path).turned == (orientation != 1)
    check_probe(path)


def test_exif_behind_the_pixels_of_a_png_counts_too(tmp_path: Path) -> None:
    """PNG allows the block after the pixels; header and pixels must agree on the size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(tmp_path / "a.png", RGB, exif=exif).read_bytes()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    path = tmp_path / "late.png"
    path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    assert read_image(path).shape == (20, 12, 3)
    check_probe(path)


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00", b"Exif\x00\x00MM", b"nonsense"]
)
def test_damaged_exif_is_no_exif(tmp_path: Path, exif: bytes) -> None:
    """Cameras write broken blocks; the image is fine and nobody is warned."""
    path = saved(tmp_path / "a.jpg", RGB, exif=exif)
    assert read_image(path).shape == RGB.shape
    assert not probe(path).turned


@pytest.mark.parametrize(("format_", "mode"), [("PNG", "P"), ("PNG", "RGBA"), ("GIF", "P")])
def test_content_decides_not_the_suffix(tmp_path: Path, format_: str, mode: str) -> None:
    """The Pet set has PNGs and a GIF named .jpg; they load."""
    source = Image.fromarray(RGB).convert(mode)
    path = saved(tmp_path / "a.jpg", source, format=format_)
    np.testing.assert_array_equal(read_image(path), np.asarray(source.convert("RGB")))
    assert probe(path).format == format_


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_a_white_and_black_palette_is_read_as_it_looks(tmp_path: Path, suffix: str) -> None:
    """White or black may come first in it; other greys and colours are read as they look, too."""
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6] = 1
    path = tmp_path / f"m{suffix}"
    for colours, indices in (([255] * 3 + [0] * 3, 1 - mask), ([0] * 3 + [255] * 3, mask)):
        photo = Image.fromarray(indices, mode="P")
        photo.putpalette(colours)
        photo.save(path)
        assert np.array_equal(read_labels(path), mask * 255)
        assert np.array_equal(read_image(path)[:, :, 0], mask * 255)
    photo = Image.fromarray(mask, mode="P")
    photo.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    photo.save(path)
    assert np.array_equal(read_labels(path), mask * 128)
    photo.putpalette([0, 0, 0, 128, 0, 0])
    photo.save(path)
    assert np.array_equal(read_labels(path)[:, :, 0], mask * 128)
    assert np.array_equal(read_labels(path, read_as="indices"), mask)


def test_palette_with_transparency_keeps_its_colours_and_indices(tmp_path: Path) -> None:
    """Transparency is dropped without a warning; indices are there for who asks."""
    photo = Image.fromarray(LABELS, mode="P")
    photo.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    path = saved(tmp_path / "a.png", photo, transparency=bytes([0, 128, 255, 7]))
    assert read_image(path)[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    np.testing.assert_array_equal(read_labels(path, read_as="indices"), LABELS)
    np.testing.assert_array_equal(read_labels(path), read_image(path))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_the_numbers_in_the_file(tmp_path: Path, bits: int) -> None:
    """A 2-bit trimap has the values 0 to 3, though as an image it goes from black to white."""
    values = (LABELS % 2**bits).astype(np.uint8)
    stretched = saved(tmp_path / "8.png", values * np.uint8(255 // (2**bits - 1)))
    np.testing.assert_array_equal(read_labels(stretched), values * (255 // (2**bits - 1)))
    path = tmp_path / "a.png"
    path.write_bytes(_png_of_bits(values, bits))
    np.testing.assert_array_equal(read_labels(path), values)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], values * (255 // (2**bits - 1)))


def _png_of_bits(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits; Pillow writes those only with a palette."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
        )

    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row).ljust(16, "0")
        rows += b"\x00" + int(text, 2).to_bytes(2, "big")[: -(-len(row) * bits // 8)]
    height, width = values.shape
    header = struct.pack(">LLBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_odd_metadata_of_a_deep_png_is_not_talked_about(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The decoder would print about a broken colour profile; nothing reaches the terminal."""
    pixels = RGB.astype(np.uint16) * 99
    data = imagecodecs.png_encode(pixels)
    profile = b"\x00\x00\x00\x05iCCPx\x00\x00ab" + zlib.crc32(b"iCCPx\x00\x00ab").to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(data[:33] + profile + data[33:])
    np.testing.assert_array_equal(read_image(path), pixels)
    assert capfd.readouterr() == ("", "")
    path.write_bytes(data[:-20] + b"x" + data[-19:])
    assert "damaged" in error_of(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_stay_sixteen(tmp_path: Path, suffix: str) -> None:
    """Grey and colour of 16 bits lose nothing, as images and as labels."""
    for name, values in (
        ("grey", GREY.astype(np.uint16) * 257),
        ("rgb", RGB.astype(np.uint16) * 99),
    ):
        path = tmp_path / (name + suffix)
        if suffix == ".tif":
            tiff(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")
        else:
            path.write_bytes(imagecodecs.png_encode(values))
        np.testing.assert_array_equal(read_image(path).squeeze(), values)
        check_probe(path)
    np.testing.assert_array_equal(
        read_labels(tmp_path / f"grey{suffix}"), GREY.astype(np.uint16) * 257
    )


@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK", "grey-trailing"])
def test_jpeg_pixels_equal_pillows(tmp_path: Path, kind: str) -> None:
    """The quick decoder gives the same numbers as Pillow, to the bit."""
    mode = "L" if kind == "grey-trailing" else kind
    path = saved(tmp_path / "a.jpg", Image.fromarray(RGB).convert(mode))
    if kind == "grey-trailing":
        path.write_bytes(path.read_bytes() + b"camera maker's notes")
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB") if mode == "CMYK" else opened)
    np.testing.assert_array_equal(read_image(path).squeeze(), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int32", "uint32"])
def test_wide_tiffs_become_float32_and_whole_labels(tmp_path: Path, dtype: str) -> None:
    """Image values stay as they are; labels saved as floats are integers again."""
    path = tiff(tmp_path / "a.tif", GREY.astype(dtype))
    np.testing.assert_array_equal(read_image(path)[:, :, 0], GREY.astype(np.float32))
    labels = read_labels(path)
    assert labels.dtype.kind in "iu"
    np.testing.assert_array_equal(labels, GREY)
    check_probe(path)


@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_infinity_is_refused(tmp_path: Path, value: float) -> None:
    """They would spread through the whole network without an error; so would 1e300 as float32."""
    values = np.zeros((4, 4))
    values[1, 2] = value
    assert "NaN or infinite" in error_of(tiff(tmp_path / "a.tif", values))


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    """A probability map given as a mask is refused, not rounded."""
    path = tiff(tmp_path / "a.tif", np.full((2, 2), 0.3, np.float32))
    assert read_image(path).shape == (2, 2, 1)
    with pytest.raises(ImageError, match="fractions"):
        read_labels(path)


def test_channels_first_or_last_are_told_apart(tmp_path: Path) -> None:
    """However a writer laid out five channels, they come out last and in order."""
    five_HW5 = RNG.integers(0, 256, (40, 30, 5), dtype=np.uint8)
    first_5HW = np.moveaxis(five_HW5, 2, 0).copy()
    grey = {"photometric": "minisblack"}
    for name, pixels, options in (
        ("last", five_HW5, {**grey, "planarconfig": "contig"}),
        ("planes", first_5HW, {**grey, "planarconfig": "separate"}),
        ("rows", five_HW5, {}),
        ("imagej", first_5HW, {"imagej": True, "metadata": {"axes": "CYX"}}),
        ("ome", first_5HW, {"ome": True, "metadata": {"axes": "CYX"}, **grey}),
    ):
        path = tiff(tmp_path / f"{name}.{'ome.' * (name == 'ome')}tif", pixels, **options)
        np.testing.assert_array_equal(read_image(path), five_HW5, err_msg=name)
        assert probe(path).num_pages == 1
        check_probe(path)
        with pytest.raises(ImageError, match="5 channels"):
            read_labels(path)


def test_alpha_of_tiffs_is_dropped_and_other_extras_are_kept(tmp_path: Path) -> None:
    """A fourth channel marked as alpha goes; one of unknown meaning, or that varies, stays."""
    four = np.dstack([RGB, GREY])
    clear = np.dstack([RGB, np.where(GREY > 99, 255, 0).astype(np.uint8)])
    clear[0, :5, 3] = 130
    for name, pixels, extra, expected in (
        ("alpha", clear, "unassalpha", RGB),
        ("opaque", np.dstack([RGB, np.full_like(GREY, 255)]), "unassalpha", RGB),
        ("gdal", four, "unassalpha", four),
        ("other", four, "unspecified", four),
    ):
        path = tiff(tmp_path / f"{name}.tif", pixels, photometric="rgb", extrasamples=(extra,))
        np.testing.assert_array_equal(read_image(path), expected, err_msg=name)
        assert probe(path).keeps_alpha == (name == "gdal")
        check_probe(path)
    five = np.dstack([four, GREY.T.reshape(GREY.shape)])
    extras = (*["unspecified"] * 3, "unassalpha")
    grey: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
    bands = tiff(tmp_path / "bands.tif", five, extrasamples=extras, **grey)
    np.testing.assert_array_equal(read_image(bands), five)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_no_data_is_told_and_filled(tmp_path: Path, options: dict[str, object]) -> None:
    """At NaN and the value of GDAL's tag stands the median; what is left is as stored."""
    values = RNG.normal(400, 50, (40, 56, 2)).astype(np.float32)
    hole = np.zeros((40, 56), bool)
    hole[3:9, 10:30] = True
    tag = {"extratags": [(42113, "s", 0, "-9999", True)]}
    for name, number, extra in (("tag", -9999, tag), ("nan", np.nan, {})):
        pixels = values.copy()
        pixels[hole, 0] = number
        path = tmp_path / f"{name}.tif"
        tiff(path, pixels, photometric="minisblack", planarconfig="contig", **extra, **options)
        image, valid = read_pixels(path)
        assert valid is not None
        np.testing.assert_array_equal(valid, ~hole)
        np.testing.assert_array_equal(image[~hole], values[~hole])
        assert np.abs(image[hole] - 400).max() < 20
        with open_windows(path) as windows:
            np.testing.assert_array_equal(windows.read(0, 2, 8, 30, 40), image[2:32, 8:48])
    assert probe(tmp_path / "tag.tif").nodata == -9999
    assert read_pixels(tiff(tmp_path / "whole.tif", values[:, :, 0]))[1] is None


def test_black_is_no_data_only_where_all_colours_are(tmp_path: Path) -> None:
    """Of colours whose tag says 0, pixels with a 0 in one channel are data."""
    pixels = RGB.copy()
    pixels[0, 0], pixels[1, 1] = (0, 0, 0), (0, 9, 9)
    tag = [(42113, "s", 0, "0", True)]
    _, valid = read_pixels(tiff(tmp_path / "a.tif", pixels, photometric="rgb", extratags=tag))
    assert valid is not None
    assert not valid[0, 0]
    assert valid[1, 1]
    wild = [(42113, "s", 0, "-9999", True)]
    path = tiff(tmp_path / "b.tif", pixels, photometric="rgb", extratags=wild)
    assert read_pixels(path)[1] is None, "a value that 8 bits can't hold is nowhere"


@pytest.mark.parametrize("axes", ["ZCYX", "TZCYX", "CZYX"])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_hyperstacks_are_images_of_several_channels(tmp_path: Path, axes: str, kind: str) -> None:
    """A stack of Z images of C channels has Z images, each with its channels, also by windows."""
    if kind == "imagej" and axes == "CZYX":
        pytest.skip("ImageJ writes ZC only")
    sides = {"T": 2, "Z": 3, "C": 2, "Y": 12, "X": 20}
    stack = RNG.integers(0, 256, [sides[one] for one in axes], dtype=np.uint8)
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tiff(path, stack, **{kind: True}, metadata={"axes": axes}, photometric="minisblack")
    images = np.moveaxis(stack, axes.index("C"), -1).reshape(-1, 12, 20, 2)
    assert probe(path).num_pages == len(images)
    with open_windows(path) as windows:
        assert windows.num_pages == len(images)
        for page, expected in enumerate(images):
            np.testing.assert_array_equal(read_image(path, page=page), expected)
            np.testing.assert_array_equal(windows.read(page, 2, 3, 5, 6), expected[2:7, 3:9])


@pytest.mark.parametrize(
    "options", [{}, {"imagej": True, "metadata": {"axes": "ZYX"}}, {"bigtiff": True}]
)
def test_stacks_are_read_page_by_page(tmp_path: Path, options: dict[str, object]) -> None:
    """A stack has pages to name; without a name it is refused, with the number of pages."""
    stack = np.stack([GREY, 255 - GREY, GREY // 2])
    path = tiff(tmp_path / "a.tif", stack, photometric="minisblack", **options)
    assert probe(path).num_pages == 3
    for page in range(3):
        np.testing.assert_array_equal(read_image(path, page=page)[:, :, 0], stack[page])
        np.testing.assert_array_equal(read_labels(path, page=page), stack[page])
    assert "stack of 3 pages" in error_of(path)
    assert "no page 3" in error_of(path, page=3)
    assert "no page -1" in error_of(path, page=-1)


def test_smaller_copies_are_no_pages(tmp_path: Path) -> None:
    """A thumbnail beside the image doesn't make the file a stack."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[::2, ::2].copy(), photometric="rgb", subfiletype=1)
    assert probe(path).num_pages == 1
    np.testing.assert_array_equal(read_image(path), RGB)


def test_transparency_is_no_page(tmp_path: Path) -> None:
    """As geographic files carry it; where all pages are called so, they are what there is."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[:, :, 0] > 9, photometric="mask", subfiletype=4)
    assert probe(path).num_pages == 1
    np.testing.assert_array_equal(read_image(path), RGB)
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(RGB[:, :, 0], photometric="minisblack", subfiletype=2)
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.aspage().tags[254].overwrite(4)
    assert probe(path).num_pages == 3


def test_page_zero_of_a_plain_image_is_the_image(tmp_path: Path) -> None:
    """Page 0 exists everywhere, and no other page does."""
    path = saved(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(read_image(path, page=0), RGB)
    assert "no page 2" in error_of(path, page=2)


def test_bool_masks_of_tifffile_are_not_inverted(tmp_path: Path) -> None:
    """It marks them white-is-zero but means True as 1; files of others mean the mark."""
    mask = GREY > 100
    ours = tiff(tmp_path / "a.tif", mask)
    np.testing.assert_array_equal(read_labels(ours), mask)
    theirs = tiff(tmp_path / "b.tif", mask, photometric="miniswhite", software="scanner")
    with Image.open(theirs) as opened:
        np.testing.assert_array_equal(read_labels(theirs), np.asarray(opened))
        np.testing.assert_array_equal(read_image(theirs)[:, :, 0], np.asarray(opened) * 255)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(tmp_path: Path, format_: str) -> None:
    """Which frame would be meant is anybody's guess."""
    path = tmp_path / "a.png"
    frames = [Image.fromarray(255 - RGB)]
    saved(path, RGB, format=format_, save_all=True, append_images=frames)
    assert "animation of 2 frames" in error_of(path)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, format_: str, share: float) -> None:
    """Half an image is an error, not an image with a grey lower half."""
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(tmp_path / "whole", noise, format=format_).read_bytes()
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(len(data) * share)])
    assert "get it anew" in error_of(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"not an image at all\n", "text, not an image"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "damaged"),
        (b"P6\n9 9\n255\n", "damaged"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "damaged"),
        (b"\x93NUMPY\x01\x00", "damaged"),
        (bytes(range(128, 200)), "not an image that binseg knows"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
        (b"II*\x00", "damaged"),
        (b"BM", "damaged"),
        (b"GIF89a", "damaged"),
        (b"RIFF\x00\x00\x00\x00WEBP", "damaged"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, says: str) -> None:
    """Empty, text, foreign and headers without a body: one line each, whatever the suffix."""
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert says in error_of(path)
    with pytest.raises(ImageError):
        probe(path)
    with pytest.raises(ImageError, match="upload"):
        decode_image(data, name="upload")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    """Both are said for what they are."""
    assert "no such file" in error_of(tmp_path / "a.png")
    assert "folder" in error_of(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_images_that_would_fill_the_memory_are_refused(tmp_path: Path, kind: str) -> None:
    """A few bytes may claim any size; the header alone decides, and the limit is said."""
    path = saved(tmp_path / "a", GREY, format=kind)
    data = bytearray(path.read_bytes())
    if kind == "TIFF":
        tiff(path, GREY)
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in (256, 257):
                file.pages.first.tags[tag].overwrite(60_000, dtype="I")
    elif kind == "PNG":
        data[16:24] = (60_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
    else:
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = (60_000).to_bytes(2, "big") * 2
        path.write_bytes(data)
    text = error_of(path)
    assert "3,600 megapixels" in text
    assert "up to 400" in text


@pytest.mark.parametrize("shape", [(1, 1), (60_000, 2), (2, 60_000)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_odd_shapes_go_there_and_back(tmp_path: Path, shape: tuple[int, int], suffix: str) -> None:
    """One pixel, and images as thin as a thread."""
    mask = np.arange(shape[0] * shape[1]).reshape(shape) % 3 == 0
    write_mask(tmp_path / f"a{suffix}", mask)
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}"), mask * np.uint8(255))
    assert read_image(tmp_path / f"a{suffix}").shape == (*shape, 1)


def test_cmyk_and_odd_colours_of_tiffs_equal_pillows(tmp_path: Path) -> None:
    """Inks and luma-chroma become the RGB that Pillow makes of them."""
    # Pillow before 13 can't read the luma-chroma TIFF that it writes.
    modes = ("CMYK", "YCbCr") if int(PIL.__version__.split(".")[0]) >= 13 else ("CMYK",)
    for mode in modes:
        path = saved(tmp_path / f"{mode}.tif", Image.fromarray(RGB).convert(mode))
        with Image.open(path) as opened:
            np.testing.assert_array_equal(read_image(path), np.asarray(opened.convert("RGB")))
    assert "save it as RGB" in error_of(tiff(tmp_path / "lab.tif", RGB, photometric="cielab"))


def test_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    """White of a 12-bit camera is white, not a sixteenth of it; labels stay as they are."""
    values = np.array([[0, 4095], [2048, 1]], np.uint16)
    packed = b"".join(((int(left) << 12) + int(right)).to_bytes(3, "big") for left, right in values)
    path = tmp_path / "a.tif"
    tiff(path, np.frombuffer(packed, np.uint8).reshape(2, 3))
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages.first.tags
        tags[256].overwrite(2)
        tags[258].overwrite(12)
    np.testing.assert_array_equal(read_labels(path), values)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], np.rint(values * (65535 / 4095)))


def test_from_pil_takes_every_mode_and_leaves_the_turn() -> None:
    """An image in hand keeps its size; its colours are what a file's would be."""
    for mode, shape in (("RGB", 3), ("P", 3), ("RGBA", 3), ("CMYK", 3), ("L", 1), ("1", 1)):
        assert image_of(Image.fromarray(RGB).convert(mode), name="it").shape == (12, 20, shape)
    turned = Image.fromarray(RGB)
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(image_of(turned, name="it"), RGB)


def test_decode_image_reads_what_read_image_reads(tmp_path: Path) -> None:
    """The service's uploads and the files of the command line give the same pixels."""
    by_pillow = IMAGE_SUFFIXES & Image.registered_extensions().keys() - {".heic", ".heif"}
    assert len(by_pillow) > 12
    for suffix in sorted(by_pillow):
        path = saved(tmp_path / f"a{suffix}", RGB)
        np.testing.assert_array_equal(decode_image(path.read_bytes(), name="x"), read_image(path))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Masks as 0 and 255, colours exactly, alpha kept in the file, probabilities to the bit."""
    mask = GREY > 100
    rgba = np.dstack([RGB, mask * np.uint8(255)])
    probability = RNG.random((12, 20)).astype(np.float32)
    for suffix in (".png", ".tif", ".TIFF"):
        write_mask(tmp_path / f"mask{suffix}", mask)
        assert set(np.unique(read_labels(tmp_path / f"mask{suffix}"))) == {0, 255}
        write_image(tmp_path / f"rgb{suffix}", RGB)
        np.testing.assert_array_equal(read_image(tmp_path / f"rgb{suffix}"), RGB)
        write_image(tmp_path / f"rgba{suffix}", rgba)
        with Image.open(tmp_path / f"rgba{suffix}") as opened:
            np.testing.assert_array_equal(np.asarray(opened), rgba)
    write_numbers(tmp_path / "p.tif", probability)
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif")[:, :, 0], probability)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tif"), probability)
    with Image.open(tmp_path / "p.tif") as opened:
        np.testing.assert_array_equal(np.asarray(opened), probability)


def test_writing_the_same_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """No dates and no versions in the files, so that runs can be compared."""
    for name in ("a.tif", "b.tif"):
        write_numbers(tmp_path / name, np.zeros((3, 4), np.float32))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_unknown_suffixes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A mask as JPEG would be no mask; the error names what is taken."""
    with pytest.raises(OutputError, match=r"\.png, \.tif, \.tiff"):
        write_mask(tmp_path / "a.jpg", GREY > 100)
    with pytest.raises(OutputError, match=r"\.tif, \.tiff"):
        write_numbers(tmp_path / "a.png", np.zeros((2, 2), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_damaged_bytes_give_one_line_or_an_image(tmp_path: Path) -> None:
    """Whatever is changed in a file: an image or an ImageError, no warning, nothing else."""
    rng = np.random.default_rng(1)
    for format_ in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        whole = saved(tmp_path / "whole", RGB, format=format_).read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(0, 256)
            path = tmp_path / "a"
            path.write_bytes(data)
            for read in (read_image, read_labels, probe):
                with contextlib.suppress(ImageError):
                    read(path)


def test_names_with_line_breaks_stay_on_one_line(tmp_path: Path) -> None:
    """An error is one line, even where the file's name isn't."""
    path = tmp_path / "two\nlines.png"
    path.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_images_from_memory_may_be_greyscale_buffers() -> None:
    """A PNG made in memory is decoded without a file."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), name="x")[:, :, 0], GREY)


def test_a_tiff_of_missing_tiles_is_refused(tmp_path: Path) -> None:
    """Few bytes that claim many pixels are refused before the memory is taken."""
    path = tmp_path / "hollow.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(None, shape=(16384, 16384), dtype=np.uint8, tile=(1024, 1024))
    with path.open("r+b") as file, tifffile.TiffFile(path) as tiff:
        counts = tiff.pages.first.tags["TileByteCounts"]
        file.seek(counts.valueoffset)
        file.write(bytes(4 * counts.count))
    with pytest.raises(ImageError, match="268 MB of pixels from 0 bytes"):
        read_image(path)


DAMAGED = sorted((Path(__file__).parent / "damaged").iterdir())


@pytest.mark.parametrize("path", DAMAGED, ids=lambda path: path.name)
def test_what_fuzzing_found_is_refused_in_one_line(path: Path) -> None:
    """Files that once gave a long message, or took too much memory (benchmarks/fuzz.py)."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".jp2", ".avif", ".jfif", ".jpe", ".heic"])
def test_further_formats_are_what_pillow_reads(tmp_path: Path, suffix: str) -> None:
    """Their pixels are Pillow's, whatever the suffix says."""
    photo = Image.fromarray(GREY if suffix == ".pgm" else RGB)
    path = tmp_path / "a.dat"
    format_ = {".jp2": "JPEG2000", ".avif": "AVIF", ".heic": "HEIF"}.get(suffix)
    if format_ == "HEIF":
        pytest.importorskip("pillow_heif").from_pillow(photo).save(path)
        theirs = np.asarray(pytest.importorskip("pillow_heif").open_heif(path).to_pillow())
    else:
        photo.save(tmp_path / f"a{suffix}", format=format_)
        (tmp_path / f"a{suffix}").rename(path)
        theirs = np.asarray(Image.open(path))
    np.testing.assert_array_equal(read_image(path).squeeze(), theirs)
    check_probe(path)
    assert suffix in IMAGE_SUFFIXES


def test_numpys_arrays_are_probed_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts of an array come without its numbers, which may be gigabytes."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 5, 3), np.uint16))
    monkeypatch.setattr("numpy.load", None)
    info = probe(path)
    assert (info.height, info.width, info.channels, info.dtype) == (4, 5, 3, "uint16")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int64", "bool", "float64"])
def test_numpys_arrays_are_images_and_masks(tmp_path: Path, dtype: str) -> None:
    """Saved arrays come back as they were; programs in them don't."""
    path = tmp_path / "a.npy"
    np.save(path, (GREY % 2).astype(dtype))
    np.testing.assert_array_equal(read_labels(path), GREY % 2)
    scale = 255 if dtype == "bool" else 1
    np.testing.assert_array_equal(read_image(path)[:, :, 0], GREY % 2 * scale)
    check_probe(path)
    np.save(path, RGB.astype(dtype))
    assert read_image(path).shape == RGB.shape
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "give height x width" in error_of(path)


def test_heic_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a phone's photos hears what to install."""
    path = tmp_path / "a.heic"
    pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(RGB)).save(path)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with (
        pytest.raises(MissingExtraError, match=r"pillow-heif.*binseg\[heic\]"),
        decoder_of(path, name="a.heic"),  # in this process, whose modules are changed
    ):
        pass


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 20, 30), (9, 80, 90)])
def test_arrays_with_channels_first_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An array of torch's order, or of many images, is no image of three rows."""
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ImageError, match="give height x width x channels"):
        read_image(tmp_path / "a.npy")


def test_netpbms_text_formats_are_read(tmp_path: Path) -> None:
    """P2, numbers as text, is as good as P5."""
    path = tmp_path / "a.pgm"
    path.write_text("P2\n3 2\n255\n0 9 255\n7 8 0\n")
    np.testing.assert_array_equal(read_image(path)[:, :, 0], [[0, 9, 255], [7, 8, 0]])
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    with pytest.raises(ImageError, match="git lfs pull"):
        read_image(path)
