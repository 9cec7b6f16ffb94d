"""What a header claims is checked before any reader is asked for it."""

import io
import os
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio import (
    decode_image,
    needs_windows,
    probe,
    read_image,
    read_labels,
    read_pixels,
)
from binseg.imageio.windows import open_windows

from ..bombs import (  # noqa: TID252 - tests are no package of their own
    imagej_stack,
    jpeg_in_tiff,
    jpeg_of_scans,
    ome_stack,
)

READERS = (probe, read_image, read_labels, read_pixels, needs_windows)


def _tiff(**settings: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((2, 8, 8), np.uint8), photometric="minisblack", **settings)
    return out.getvalue()


def _ome_pages() -> bytes:
    """Two pages whose metadata claims 10^9 planes."""
    planes = 'SizeX="8" SizeY="8" SizeC="1" SizeT="1" SizeZ="1000000000" Type="uint8"'
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="I:0"><Pixels ID="P:0" DimensionOrder="XYZCT" {planes}><TiffData/></Pixels>'
        "</Image></OME>"
    )
    return _tiff(description=xml, metadata=None)


def _imagej_pages() -> bytes:
    return _tiff(description="ImageJ=1.54\nimages=1000000000\nslices=1000000000\n", metadata=None)


def _jpeg_of_blocks() -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "JPEG")
    jpeg = out.getvalue()
    return jpeg[:2] + b"\xff\xe5\x00\x02" * 1_000_000 + jpeg[2:]


def _odd_compression() -> bytes:
    data = bytearray(_tiff())
    at = data.index(struct.pack("<HHII", 259, 3, 1, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 34926)
    return bytes(data)


def _numpy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((4, 4), np.uint8))
    return out.getvalue().replace(b"(4, 4)", b"(20000, 20000)").replace(b" " * 8 + b"\n", b"\n")


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "ImageJ, one page": (imagej_stack, "claims 1,000,000,000 images"),
    "ImageJ, pages": (_imagej_pages, "claims 1,000,000,000 images"),
    "OME, one page": (ome_stack, "claims 1,000,000,000 planes"),
    "OME, pages": (_ome_pages, "claims 1,000,000,000 planes"),
    "JPEG in TIFF": (jpeg_in_tiff, "claims 65500 x 65500"),
    "scans": (lambda: jpeg_of_scans(num_scans=8000), "8,0.. scans"),
    "blocks": (_jpeg_of_blocks, "blocks before the pixels"),
    "compression": (_odd_compression, "compression 34926"),
    "numpy": (_numpy, "damaged"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_claim_is_one_line_at_once(tmp_path: Path, kind: str) -> None:
    """Each bomb is refused where its pixels are asked for, in little time and memory."""
    make, line = BOMBS[kind]
    path = tmp_path / "image.tif"
    path.write_bytes(make())
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(ImageError, match=line) as caught:
        read_pixels(path, page=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 3
    assert peak < 50_000_000


def test_pieces_are_checked_in_windows_too(tmp_path: Path) -> None:
    """The JPEG inside of a tile is no larger for being read by windows."""
    path = tmp_path / "image.tif"
    path.write_bytes(jpeg_in_tiff())
    with open_windows(path) as windows, pytest.raises(ImageError, match="claims 65500 x 65500"):
        windows.read(0, 0, 0, 16, 16)


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "jpeg", "tile": (16, 16)},
        {"compression": "jpeg", "rowsperstrip": 16},
        {"compression": "jpeg2000", "tile": (16, 16)},
        {"compression": "webp", "tile": (16, 16)},
        {"compression": "webp", "compressionargs": {"level": 80}, "tile": (16, 16)},
        {"compression": "lerc", "tile": (16, 16)},
        {"compression": "zstd"},
        {"compression": "lzma"},
        {"compression": "lzw"},
        {"compression": "packbits"},
    ],
    ids=str,
)
def test_honest_pieces_are_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Every compression with sizes in its pieces is still read, whole and by windows."""
    random = np.random.default_rng(0)
    image_HWC = random.integers(0, 255, (40, 50, 3)).astype(np.uint8)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image_HWC, photometric="rgb", **settings)
    expected = tifffile.imread(path)
    assert np.array_equal(read_image(path), expected)
    with open_windows(path) as windows:
        assert np.array_equal(windows.read(0, 0, 0, 40, 50), expected)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, suffix: str) -> None:
    """Pipes, sockets and devices named like images hold nobody, whoever reads."""
    path = tmp_path / f"image{suffix}"
    listener = socket.socket(socket.AF_UNIX)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        home = Path.cwd()
        os.chdir(tmp_path)  # a socket's name has a hundred letters at most
        listener.bind(path.name)
        os.chdir(home)
    else:
        path.symlink_to("/dev/zero")
    start = time.monotonic()
    for read in READERS:
        with pytest.raises(ImageError, match="pipe, socket or device"):
            read(path)
    assert time.monotonic() - start < 1
    listener.close()


def test_inks_are_turned_into_colours_band_by_band() -> None:
    """A CMYK image higher than one band has the colours that Pillow gives it at once."""
    inks = np.random.default_rng(0).integers(0, 255, (2100, 7, 4)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(inks, mode="CMYK").save(out, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("RGB"))
    assert np.array_equal(decode_image(out.getvalue(), name="p"), expected)
