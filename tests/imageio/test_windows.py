"""Images of any size, window by window: the same pixels as from the whole."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio import needs_windows, read_image
from binseg.imageio.decoding import Cache
from binseg.imageio.windows import open_windows

WINDOWS = ((0, 0, 97, 141), (0, 0, 1, 1), (31, 60, 40, 50), (96, 140, 1, 1), (10, 0, 3, 141))
RGB: dict[str, Any] = {"photometric": "rgb"}
KINDS: dict[str, dict[str, Any]] = {
    "tiles": {**RGB, "tile": (32, 48), "compression": "zlib", "predictor": 2},
    "one strip": RGB,
    "strips": {**RGB, "rowsperstrip": 7},
    "packed strips": {**RGB, "rowsperstrip": 10, "compression": "lzw"},
    "one packed strip": {**RGB, "compression": "zstd", "rowsperstrip": 97},
    "big-endian BigTIFF": {**RGB, "bigtiff": True, "byteorder": ">", "rowsperstrip": 9},
    "plain tiles": {**RGB, "tile": (16, 16)},
    "JPEG tiles": {"photometric": "ycbcr", "tile": (32, 32), "compression": "jpeg"},
    "JPEG strips": {"photometric": "ycbcr", "rowsperstrip": 16, "compression": "jpeg"},
}


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    """Random pixels over the whole range of a type."""
    random = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        return random.random(shape).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def assert_same(path: Path, *, page: int | None = None) -> None:
    """Every window holds what `read_image` gives there."""
    whole_HWC = read_image(path, page=page)
    with open_windows(path) as windows:
        info = windows.info(page or 0)
        assert (info.height, info.width, info.channels) == whole_HWC.shape
        assert info.dtype == whole_HWC.dtype
        for top, left, most_height, most_width in WINDOWS:
            height, width = min(most_height, info.height - top), min(most_width, info.width - left)
            if min(height, width) < 1:
                continue
            part_HWC = windows.read(page or 0, top, left, height, width)
            assert part_HWC.dtype == whole_HWC.dtype
            wanted_HWC = whole_HWC[top : top + height, left : left + width]
            np.testing.assert_array_equal(part_HWC, wanted_HWC)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_tiff_are_parts_of_the_whole(kind: str, tmp_path: Path) -> None:
    """However a TIFF is cut up and packed, a window holds the pixels of the whole."""
    tifffile.imwrite(tmp_path / "a.tif", noise(97, 141, 3), **KINDS[kind])
    assert_same(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16, np.bool_])
@pytest.mark.parametrize("packed", [False, True])
def test_types_of_pixels(dtype: type[np.generic], *, packed: bool, tmp_path: Path) -> None:
    """8, 16 and 32 bits, and single ones, come as `read_image` gives them."""
    pixels = noise(97, 141) > 100 if dtype is np.bool_ else noise(97, 141, dtype=dtype)
    extra: dict[str, Any] = {"compression": "zlib"} if packed else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", rowsperstrip=8, **extra)
    assert_same(tmp_path / "a.tif")


@pytest.mark.parametrize("tiled", [False, True])
def test_planes_apart_come_together(*, tiled: bool, tmp_path: Path) -> None:
    """A file that stores red, then green, then blue gives colours."""
    extra = {"tile": (32, 32), "compression": "zlib"} if tiled else {"rowsperstrip": 11}
    pixels_CHW = noise(3, 97, 141)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels_CHW, photometric="rgb", planarconfig="separate", **extra
    )
    assert_same(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images(orientation: int, tmp_path: Path) -> None:
    """A file that asks to be turned gives windows of the turned image."""
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", noise(97, 141, 3), photometric="rgb", tile=(32, 48), extratags=tag
    )
    assert_same(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["P", "CMYK", "LA", "1", "RGBA"])
def test_odd_colours(mode: str, tmp_path: Path) -> None:
    """Palettes, inks, alpha and single bits mean the same in a window as in the whole."""
    image = Image.fromarray(noise(97, 141, 3)).convert(mode)
    image.save(tmp_path / "a.tif")
    assert_same(tmp_path / "a.tif")


def test_white_is_zero(tmp_path: Path) -> None:
    """Images whose zero is white are turned round, whole or in parts."""
    tifffile.imwrite(tmp_path / "a.tif", noise(97, 141), photometric="miniswhite", rowsperstrip=9)
    assert_same(tmp_path / "a.tif")


def test_pages_of_a_stack(tmp_path: Path) -> None:
    """Each page of a stack is an image of its own size."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for height in (97, 50, 97):
            writer.write(noise(height, 141), photometric="minisblack", metadata=None)
    with open_windows(tmp_path / "a.tif") as windows:
        assert windows.num_pages == 3
        assert [windows.info(page).height for page in range(3)] == [97, 50, 97]
        with pytest.raises(ImageError, match="no page 3"):
            windows.info(3)
    for page in range(3):
        assert_same(tmp_path / "a.tif", page=page)


def test_slides_are_their_full_size(tmp_path: Path) -> None:
    """Of an Aperio slide the first page is the image; thumbnail and levels are copies of it."""
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        for side, note in ((96, "Aperio Image Library"), (32, "thumbnail"), (48, "level 1")):
            writer.write(
                noise(side, side, 3), photometric="rgb", tile=(16, 16), description=note,
                metadata=None,
            )  # fmt: skip
    with open_windows(tmp_path / "a.svs") as windows:
        assert windows.num_pages == 1
        assert windows.info(0).height == 96


def test_channels_on_pages_are_one_image(tmp_path: Path) -> None:
    """An ImageJ file of channels is one image of as many channels."""
    tifffile.imwrite(tmp_path / "a.tif", noise(5, 97, 141), imagej=True, metadata={"axes": "CYX"})
    assert not needs_windows(tmp_path / "a.tif")
    assert_same(tmp_path / "a.tif")


def test_large_imagej_stacks_hide_their_pages(tmp_path: Path) -> None:
    """ImageJ gives a stack beyond 4 GB the tags of one page alone; the others follow its pixels."""
    pixels_NHW = noise(6, 97, 141, dtype=np.uint16)
    first: dict[str, Any] = {"description": "ImageJ=1.53\nimages=6\nslices=6\n", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels_NHW[0], photometric="minisblack", **first)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].dataoffsets[0]
    with (tmp_path / "a.tif").open("r+b") as handle:
        handle.truncate(offset)
        handle.seek(offset)
        handle.write(pixels_NHW.tobytes())
    assert needs_windows(tmp_path / "a.tif")
    with open_windows(tmp_path / "a.tif") as windows:
        assert windows.num_pages == 6
        for page in range(6):
            part_HWC = windows.read(page, 40, 3, 57, 20)
            np.testing.assert_array_equal(part_HWC[:, :, 0], pixels_NHW[page, 40:97, 3:23])


def test_tiles_far_larger_than_the_image_are_refused(tmp_path: Path) -> None:
    """A few pixels whose only tile unpacks to gigabytes."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(16, 16, 1)[:, :, 0], tile=(16, 16), compression="zlib")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        tags = [page.tags[name] for name in ("TileWidth", "TileLength")]
        places = [(tag.valueoffset, tag.dtype.name) for tag in tags]
    for place, kind in places:
        size, code = (2, "<H") if kind == "SHORT" else (4, "<I")
        data = data[:place] + struct.pack(code, 60000) + data[place + size :]
    path.write_bytes(data)
    with pytest.raises(ImageError, match="far larger than the image"):
        read_image(path)


def test_missing_tiles_are_zero(tmp_path: Path) -> None:
    """A sparse file leaves out tiles that hold nothing."""
    tiles = [noise(32, 32), None, None, noise(32, 32)]
    tifffile.imwrite(
        tmp_path / "a.tif", iter(tiles), shape=(64, 64), dtype=np.uint8, tile=(32, 32),
        compression="zlib", photometric="minisblack",
    )  # fmt: skip
    with open_windows(tmp_path / "a.tif") as windows:
        part_HWC = windows.read(0, 0, 0, 64, 64)
    assert part_HWC[:32, :32, 0].any()
    assert not part_HWC[:32, 32:].any()
    np.testing.assert_array_equal(part_HWC[32:, 32:, 0], tiles[3])


def test_damaged_pieces_give_one_line(tmp_path: Path) -> None:
    """A file that is cut off is an error of one line when its missing part is read."""
    tifffile.imwrite(tmp_path / "a.tif", noise(97, 141, 3), photometric="rgb", rowsperstrip=10)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(data[: len(data) // 2])
    with open_windows(tmp_path / "b.tif") as windows:
        assert windows.read(0, 0, 0, 10, 141).shape == (10, 141, 3)
        with pytest.raises(ImageError, match=r"b\.tif: the file is damaged") as error:
            windows.read(0, 80, 0, 10, 141)
    assert "\n" not in str(error.value)


def test_pieces_beyond_memory_are_refused(tmp_path: Path) -> None:
    """A huge image packed as one piece can't be read in parts, and says what to do."""
    writer = tifffile.TiffWriter(tmp_path / "a.tif")
    with writer:
        writer.write(
            iter([b"none"]), shape=(20_000, 20_000), dtype=np.uint8, rowsperstrip=20_000,
            compression="zlib", photometric="minisblack",
        )  # fmt: skip
    assert needs_windows(tmp_path / "a.tif")
    with (
        open_windows(tmp_path / "a.tif") as windows,
        pytest.raises(ImageError, match=r"pieces of 0\.4 GB.*save it in tiles"),
    ):
        windows.read(0, 0, 0, 8, 8)


def test_what_needs_windows(tmp_path: Path) -> None:
    """Stacks and huge images do, by their headers alone; ordinary images don't."""
    tifffile.imwrite(tmp_path / "small.tif", noise(97, 141))
    tifffile.imwrite(tmp_path / "stack.tif", noise(3, 97, 141), photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "huge.tif", bigtiff=True) as writer:
        writer.write(
            (b"" for _ in range(80 * 80)), shape=(40_000, 40_000), dtype=np.uint8,
            tile=(512, 512), compression="zlib", photometric="minisblack",
        )  # fmt: skip
    Image.fromarray(noise(40, 30, 3)).save(tmp_path / "a.png")
    found = {one.name: needs_windows(one) for one in tmp_path.iterdir()}
    assert found == {"small.tif": False, "stack.tif": True, "huge.tif": True, "a.png": False}
    with pytest.raises(ImageError, match="no such file"):
        needs_windows(tmp_path / "none.tif")


def test_other_formats_are_held_whole(tmp_path: Path) -> None:
    """JPEG and PNG have no windows of their own, yet can be asked for parts."""
    Image.fromarray(noise(97, 141, 3)).save(tmp_path / "a.png")
    assert_same(tmp_path / "a.png")


def test_pixel_sizes_are_told(tmp_path: Path) -> None:
    """A resolution in centimetres is a pixel size, and turns with the image."""
    for name, orientation in (("a.tif", 1), ("b.tif", 6)):
        tifffile.imwrite(
            tmp_path / name, noise(20, 30), resolution=(20_000, 40_000),
            resolutionunit="CENTIMETER", extratags=[(274, "H", 1, orientation, True)],
        )  # fmt: skip
    with open_windows(tmp_path / "a.tif") as one, open_windows(tmp_path / "b.tif") as two:
        assert one.pixel_size is not None
        assert (one.pixel_size.height, one.pixel_size.width) == (0.25, 0.5)
        assert two.pixel_size is not None
        assert (two.pixel_size.height, two.pixel_size.width) == (0.5, 0.25)


def test_the_cache_keeps_what_was_used_last() -> None:
    """Pieces beyond the limit go, the longest unused first."""
    cache, made = Cache(num_bytes=250), []

    def piece(number: int) -> np.ndarray:
        def make() -> np.ndarray:
            made.append(number)
            return np.full(100, number, np.uint8)

        return cache.get((number,), make)

    for number in (1, 2, 1, 3, 1, 2):
        assert (piece(number) == number).all()
    assert made == [1, 2, 3, 2]
