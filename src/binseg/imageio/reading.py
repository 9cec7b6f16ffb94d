"""The public readers: JPEG and PNG are decoded here, all else in children that can be killed."""

import atexit
import os
import threading
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from binseg.errors import ImageError
from binseg.imageio import decoding
from binseg.imageio.cage import Cage, CagedImage
from binseg.imageio.formats import HEAD, decoder_of, format_of, opened
from binseg.imageio.metadata import Georeference, PixelSize, georeference_of, pixel_size_of
from binseg.imageio.windows import Windows, is_for_windows, open_windows
from binseg.imageio.zarr_folders import is_zarr
from binseg.parallel import num_cores

_HERE = ("JPEG", "PNG", None)  # Their claims are checked, their decoders end; None is no image
_SECONDS = 60.0  # Time for a header, and beside what the number of pixels takes: disks may be slow
_cages: dict[int, Cage] = {}
_lock = threading.Lock()


def probe(path: Path) -> decoding.ImageInfo:
    """Read an image's header only; of many pages, the first page's. Raises ImageError."""
    with _decoder(path, any_page=True) as decoder:
        return decoder.info()


def read_image(path: Path, *, page: int | None = None) -> decoding.Pixels:
    """Read an image as it is meant to be seen: turned by its EXIF, palette applied, no alpha.

    Args:
        path: a file of one of `FORMATS`, whatever its suffix says.
        page: which page of a multi-page TIFF, from 0; needed there, and 0 or None elsewhere.

    Returns:
        uint8 or uint16, or float32 for 32-bit files; 1 channel for grey, 3 for colour, as many as
        there are for other TIFFs. 1-bit images are 0 and 255. Float values stay as they are.

    Raises:
        ImageError: one line with the path, what is wrong and what to do.
    """
    with _decoder(path, page=page) as decoder:
        return decoder.image()


def read_palette(path: Path, *, page: int | None = None) -> decoding.Colours | None:
    """Read the colours that an image's indices stand for, or None where it has no palette."""
    with _decoder(path, page=page) as decoder:
        return decoder.palette()


def read_labels(
    path: Path, *, page: int | None = None, read_as: decoding.ReadAs = "colours"
) -> decoding.Labels:
    """Read a mask's integers H x W, or colours, as `read_as` says; ImageError for fractions."""
    with _decoder(path, page=page) as decoder:
        if read_as != "alpha":
            return decoder.labels(indices=read_as == "indices")
        info, (opacity, _) = decoder.info(), decoder.cover()
        return np.full((info.height, info.width), 255, np.uint8) if opacity is None else opacity


def read_pixels(path: Path, *, page: int | None = None) -> tuple[decoding.Pixels, decoding.Valid]:
    """Read an image, and False where it has no data (filled with the channel's median), or None."""
    with _decoder(path, page=page) as decoder:
        return decoder.image(), decoder.valid()


def read_reduced(
    source: Path | bytes, reduction: decoding.Reduction, *, name: str = "", page: int | None = None
) -> tuple[decoding.Pixels, decoding.Valid, tuple[int, int]]:
    """Do as `read_pixels`, averaging a JPEG as `reduction` says of its size, which comes too."""
    with _decoder(source, name=name, page=page) as decoder:
        info = decoder.info()
        size = (info.height, info.width)
        return decoder.reduced(reduction(size)), decoder.valid(), size


def read_cover(source: Path | bytes, *, page: int | None = None) -> decoding.Cover:
    """Read the transparency and the ICC profile of the colours; raises as `read_image`."""
    name = "the image" if isinstance(source, bytes) else ""
    with _decoder(source, name=name, page=page) as decoder:
        return decoder.cover()


def decode_image(data: bytes, *, name: str) -> decoding.Pixels:
    """Read an image from memory, which errors call `name`; see `read_image`."""
    with _decoder(data, name=name) as decoder:
        return decoder.image()


def read_pixel_size(path: Path | bytes) -> PixelSize | None:
    """Read a pixel's size that a TIFF states; of bytes that ask to be turned it is None."""
    if isinstance(path, bytes):
        with _decoder(path, name="the image", any_page=True) as decoder:
            return decoder.pixel_size() if isinstance(decoder, CagedImage) else None
    if (cage := _cage_if_read(path)) is None:
        return pixel_size_of(path)
    return PixelSize(**size) if (size := cage.fact("pixel_size", path)) else None


def read_georeference(path: Path) -> Georeference | None:
    """Read the place of an image on a map; see `metadata.georeference_of`."""
    if (cage := _cage_if_read(path)) is None:
        return georeference_of(path)
    place = cage.fact("georeference", path)
    return Georeference(**{name: _tuples(one) for name, one in place.items()}) if place else None


def needs_windows(path: Path) -> bool:
    """Tell an image for windows by its header: many pages, huge or OME-Zarr. Raises ImageError."""
    if is_zarr(path):
        return True
    cage = _cage_for(path)
    return is_for_windows(path) if cage is None else bool(cage.fact("is_for_windows", path))


def caged_windows(path: Path) -> AbstractContextManager[Windows]:
    """Open an image of any size in a child; raises as `Cage.windows`."""
    is_missing = is_zarr(path) and find_spec("zarr") is None  # said here
    return open_windows(path) if is_missing else _cage().windows(path)


def _decoder(
    source: Path | bytes, *, name: str = "", **asked: Any
) -> AbstractContextManager[decoding.Decoder]:
    name = name or decoding.one_line(source)  # bytes have a name
    cage = _cage_for(source)
    return (decoder_of if cage is None else cage.open)(source, name=name, **asked)


def _cage_for(source: Path | bytes) -> Cage | None:
    """Give the cage for a file that is read there; None for one that is read here."""
    with opened(source) as handle:
        try:
            found = format_of(handle.read(HEAD))
        except OSError:  # reading it says so
            return None
    return None if found in _HERE else _cage()


def _cage_if_read(path: Path) -> Cage | None:
    """Give the cage as `_cage_for`; None also for what is not to be opened."""
    try:
        return _cage_for(path)
    except ImageError:
        return None


def _tuples(value: Any) -> Any:
    """Turn lists of JSON, and those in them, into tuples."""
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _cage() -> Cage:
    """The cage of this process, made when it is first needed; one that forked makes its own."""
    with _lock:
        if os.getpid() not in _cages:
            _cages[os.getpid()] = Cage(num_cores(), seconds=_SECONDS, patience=_SECONDS)
            atexit.register(_cages[os.getpid()].close)
        return _cages[os.getpid()]
