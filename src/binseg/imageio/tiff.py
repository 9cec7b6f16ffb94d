"""TIFF through tifffile: one page at a time, any number of channels, 1 to 64 bits."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Bool, Num, Shaped
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio import decoding, tiff_parts
from binseg.imageio.raster import through_palette

# tifffile reports odd tags to its log; without any handler Python would print those to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_SOFTWARE, _ORIENTATION, _GDAL_NODATA, _ICC = 305, 274, 42113, 34675
_LEAST_ENDS = 0.5  # Share of alpha that is none or full; less is a band of data
_LARGEST_TILE = 64_000_000  # Bytes of a tile that may be larger than its image
_UNQUESTIONED, _MOST_PACKED = 200_000_000, 2000
"""Bytes that any page may have, and bytes for each packed byte above that: deflate packs up to 1032
into one."""
_JPEG = (6, 7)  # Compressions whose colours the decoder already turned into RGB
_KINDS = {0: "MINISWHITE", 1: "MINISBLACK", 2: "RGB", 3: "PALETTE", 5: "SEPARATED", 6: "YCBCR"}


@dataclass(frozen=True)
class TiffImage(decoding.Decoder):
    """One image of a TIFF file whose tags were read."""

    pages: tuple[tifffile.TiffPage, ...]  # One, unless the layout spreads the image over several
    layout: tiff_parts.Layout
    kind: str
    bits: int  # Bits a sample
    num_pages: int
    orientation: int

    @property
    def page(self) -> tifffile.TiffPage:
        """The (first) page, which has the tags."""
        return self.pages[0]

    def stored_shape(self) -> tuple[int, int, int]:
        """Height, width and channels (alpha among them) before any turn."""
        samples, _, height, width, contiguous = self.page.shaped
        if self.layout == "page a channel":
            return height, width, len(self.pages)
        if self.layout == "page a row":
            return len(self.pages), height, width
        return height, width, samples * contiguous

    def info(self) -> decoding.ImageInfo:
        """Give the facts of the image as `image` gives it."""
        height, width, _ = self.stored_shape()
        if decoding.swaps_sides(self.orientation):
            height, width = width, height
        is_rgb = self.kind in ("PALETTE", "SEPARATED")
        assert self.page.dtype is not None, "open_tiff refuses those"
        dtype = "uint8" if is_rgb else decoding.given_dtype(self.page.dtype, self.bits)
        is_black = self.kind == "MINISWHITE" and self._is_as_stored()
        shown = (3 if is_rgb else self._colours(), dtype, "MINISBLACK" if is_black else self.kind)
        pages = ("TIFF", self.num_pages, self.orientation)
        missing = (self._nodata, self.keeps_alpha)
        return decoding.ImageInfo(height, width, *shown, *pages, *missing)

    def image(self) -> decoding.Pixels:
        """Decode the pixels, turned."""
        return decoding.turn(self.colours_of(self._stored), self.orientation)

    def valid(self) -> decoding.Valid:
        """Tell where there is data, turned; None where the file has it everywhere."""
        if not self.may_miss:
            return None
        missing_HW = self.missing(self._stored)
        return decoding.turn(~missing_HW, self.orientation) if missing_HW.any() else None

    def colours_of(self, stored_HWC: decoding.Stored) -> decoding.Pixels:
        """Turn the stored numbers of any part of the image into pixels (uint8, uint16, float32)."""
        if self.may_miss:
            missing_HW = self.missing(stored_HWC)
            if missing_HW.any():
                stored_HWC = np.where(missing_HW[:, :, None], self._usual, stored_HWC)
        pixels_HWC = self._meant(stored_HWC)
        if self.kind == "PALETTE":
            return np.asarray(self._palette()[pixels_HWC[:, :, 0]])
        return self._stretched(pixels_HWC)

    def cover(self) -> decoding.Cover:
        """Give the transparency that is left out, turned, and the ICC profile."""
        tag, at = self.page.tags.get(_ICC), self._colours()
        icc = tag.value if tag is not None and isinstance(tag.value, bytes) else None
        if self.layout != "page" or at == self.stored_shape()[2] or self.bits not in (8, 16):
            return None, icc
        alpha_HW = self._stored[:, :, at] >> (self.bits - 8)
        return decoding.turn(alpha_HW.astype(np.uint8), self.orientation), icc

    def palette(self) -> decoding.Colours | None:
        """Give the colours of a palette, where there is one."""
        return self._palette() if self.kind == "PALETTE" else None

    def labels(self, *, indices: bool = False) -> decoding.Labels:
        """Decode the raw values, turned; numbers must be whole, colours 8-bit."""
        pixels_HWC = self._meant(self._stored)
        if self.kind == "PALETTE" and not indices:
            labels = through_palette(pixels_HWC[:, :, 0].astype(np.uint8), self._palette())
            return decoding.turn(labels, self.orientation)
        channels = pixels_HWC.shape[2]
        if channels not in (1, 3):
            raise ImageError(f"{self.name}: {channels} channels; a mask has 1, or 3 for colours")
        if pixels_HWC.dtype.kind == "b":
            pixels_HWC = pixels_HWC.astype(np.uint8)
        elif pixels_HWC.dtype.kind == "f":
            pixels_HWC = _whole(pixels_HWC, name=self.name)
        if channels == 1:
            return decoding.turn(pixels_HWC[:, :, 0], self.orientation)
        if pixels_HWC.min() < 0 or pixels_HWC.max() > 255:
            raise ImageError(f"{self.name}: colours above 255; save the mask as 8-bit RGB")
        return decoding.turn(pixels_HWC.astype(np.uint8, copy=False), self.orientation)

    def _colours(self) -> int:
        """Channels without alpha."""
        _, _, channels = self.stored_shape()
        # 1 and 2 mean alpha; 0 is a channel of unknown meaning (near infrared), which is kept.
        alphas = sum(1 for extra in self.page.extrasamples if int(extra) in (1, 2))
        if self.layout != "page" or not alphas or self.keeps_alpha:
            return channels
        return max(1, channels - alphas)

    @cached_property
    def keeps_alpha(self) -> bool:
        """Tell whether transparency varies like data: GDAL marks the fourth of four bands so."""
        marked = [int(extra) in (1, 2) for extra in self.page.extrasamples]
        if self.layout != "page" or self._is_float or sum(marked) != 1 or not marked[-1]:
            return False
        last_N = self._sample[:, -1]
        ends = (last_N == last_N.min()) | (last_N == last_N.max())
        return bool(ends.mean() < _LEAST_ENDS)

    @property
    def _is_float(self) -> bool:
        return self.page.dtype is not None and self.page.dtype.kind == "f"

    @cached_property
    def _nodata(self) -> float | None:
        tag = self.page.tags.get(_GDAL_NODATA)
        try:
            return None if tag is None else float(str(tag.value).strip("\0 "))
        except ValueError:
            return None

    @property
    def may_miss(self) -> bool:
        """Tell whether some pixels may be no data."""
        return self._nodata is not None or self._is_float

    def missing(self, stored_HWC: decoding.Stored) -> Bool[np.ndarray, "h w"]:
        """Tell where there is no data: NaN, or the declared value."""
        return decoding.missing_in(stored_HWC[:, :, : self._colours()], self._nodata)

    @cached_property
    def _sample(self) -> Shaped[np.ndarray, "N S"]:
        """Some of the stored pixels, from windows along the image's diagonal."""
        _, _, height, width, _ = self.page.shaped
        try:
            pieces = pieces_of(self, decoding.Cache())
        except ImageError:  # it can't be read in parts
            return self._stored.reshape(-1, self._stored.shape[2])
        windows = [read_pieces(pieces, *window) for window in decoding.diagonal(height, width)]
        return np.concatenate([one.reshape(-1, one.shape[2]) for one in windows])

    @cached_property
    def _usual(self) -> Shaped[np.ndarray, "S"]:
        return decoding.usual_of(self._sample, self._nodata)

    @cached_property
    def _stored(self) -> decoding.Stored:
        for one in self.pages:
            _check_packing(self.name, one)
            tiff_parts.check_pieces(one)
        stored = [one.asarray().reshape(one.shaped)[:, 0] for one in self.pages]
        if self.layout == "page a channel":
            return np.stack([one[0, :, :, 0] for one in stored], axis=2)
        if self.layout == "page a row":
            return np.stack([one[0, :, :, 0] for one in stored])
        return np.moveaxis(stored[0], 0, 2).reshape(self.stored_shape())

    def _meant(self, pixels_HWC: decoding.Stored) -> Shaped[np.ndarray, "h w C"]:
        """Without alpha, inks as RGB, black as 0; otherwise the numbers as stored."""
        if self.kind == "SEPARATED":
            return _rgb_of_cmyk(pixels_HWC)
        pixels_HWC = pixels_HWC[:, :, : self._colours()]
        if self.kind == "YCBCR" and int(self.page.compression) not in _JPEG:
            colours = Image.fromarray(np.ascontiguousarray(pixels_HWC), mode="YCbCr")
            return np.asarray(colours.convert("RGB"))
        if self.kind == "MINISWHITE" and not self._is_as_stored():
            if pixels_HWC.dtype == np.bool_:
                return ~pixels_HWC
            return np.asarray((2**self.bits - 1) - pixels_HWC, pixels_HWC.dtype)
        return pixels_HWC

    def _is_as_stored(self) -> bool:
        """Tell whether white-is-zero is to be ignored.

        tifffile (and scikit-image through it) writes arrays of bools as they are, True as 1, yet
        marks them as white-is-zero, and ignores the mark when it reads them: a mask from there
        would come out inverted. ImageJ's mark is an inverting lookup table for the screen, under
        which its masks are 255 where the object is. Other programs mean the mark.
        """
        if self.page.parent.is_imagej:
            return True
        software = self.page.tags.get(_SOFTWARE)
        by_tifffile = software is not None and str(software.value).startswith("tifffile")
        if self.page.dtype is None or self.page.dtype.kind not in "bu":
            return True  # negative numbers and fractions have no white to start from
        return self.bits == 1 and by_tifffile

    def _stretched(self, pixels_HWC: Shaped[np.ndarray, "H W C"]) -> decoding.Pixels:
        """To uint8, uint16 or float32; odd depths (4, 12 bits) fill the range of their type."""
        depth, kind = 8 * pixels_HWC.dtype.itemsize, pixels_HWC.dtype.kind
        if kind != "u" or not self.bits < depth <= 16:  # above it where 16-bit inks became RGB
            return decoding.as_given(pixels_HWC, name=self.name)
        most, full = 2**self.bits - 1, np.iinfo(pixels_HWC.dtype).max
        stretched = np.rint(np.arange(most + 1) * (full / most)).astype(pixels_HWC.dtype)
        return np.asarray(stretched[pixels_HWC])

    def _palette(self) -> decoding.Colours:
        colours = np.asarray(self.page.colormap).T
        # The standard has 16-bit colours; files with 8-bit numbers in them are common.
        return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def pieces_of(
    image: TiffImage, cache: decoding.Cache, *, key: int = 0, skip: int = 0
) -> list[tiff_parts.Pieces]:
    """Make each page of an image readable by windows; see `Pieces`."""
    return [
        tiff_parts.Pieces(one, name=image.name, cache=cache, key=key + index, skip=skip)
        for index, one in enumerate(image.pages)
    ]


def read_pieces(
    pieces: Sequence[tiff_parts.Pieces], top: int, left: int, height: int, width: int
) -> decoding.Stored:
    """Read a window of stored numbers, the channels of all pages."""
    return np.concatenate([one.read(top, left, height, width) for one in pieces], axis=2)


def is_tiff(head: bytes) -> bool:
    """Tell TIFF and BigTIFF by their first bytes."""
    return head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def open_tiff(handle: decoding.Handle, *, name: str, page: int | None, any_page: bool) -> TiffImage:
    """Read the tags of one image (of the first with `any_page`); ImageError if it can't be read."""
    content = tiff_parts.list_tiff(handle)
    if content.num_hidden:
        told = f"an ImageJ stack of {content.num_hidden} images under one page"
        raise ImageError(f"{name}: {told}; save it as BigTIFF, or as one file an image")
    if page is None and (num := content.num_pages) > 1 and not any_page:
        told = f"name one of them, 0 to {num - 1}, or give the file itself where a pipe was given"
        raise ImageError(f"{name}: a stack of {num} pages; {told}")
    image = image_of(content, 0 if page is None else page, name=name)
    height, width, channels = image.stored_shape()
    assert image.page.dtype is not None, "image_of refuses those"
    itemsize = image.page.dtype.itemsize
    decoding.check_size(name, height=height, width=width, channels=channels, itemsize=itemsize)
    return image


def image_of(content: tiff_parts.TiffContent, page: int, *, name: str) -> TiffImage:
    """Read the tags of one image of any size; ImageError for no such page, or an unread kind."""
    if not 0 <= page < content.num_pages:
        last = content.num_pages - 1
        raise ImageError(f"{name}: there is no page {page}; its pages are 0 to {last}")
    pages = tuple(tiff_parts.page_of(content.file, index) for index in content.images[page])
    tag = pages[0].tags.get(_ORIENTATION)
    orientation = int(tag.value) if tag is not None else 1
    kind, bits = _KINDS.get(int(pages[0].photometric), ""), int(pages[0].bitspersample)
    orientation = orientation if 1 <= orientation <= 8 else 1
    image = TiffImage(name, pages, content.layout, kind, bits, content.num_pages, orientation)
    _check(image)
    return image


def _check(image: TiffImage) -> None:
    """Refuse what can't be decoded into an image, of whatever size."""
    name, page, kind = image.name, image.page, image.kind
    if not kind:
        raise ImageError(f"{name}: TIFF colours of kind {page.photometric}; save it as RGB")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise ImageError(f"{name}: TIFF pixels of an odd type; save it as 8 or 16 bits")
    if not all(isinstance(side, int) for side in page.shaped):
        raise ImageError(f"{name}: the file is damaged (its size is no number); get it anew")
    tiff_parts.check_compression(page)
    _, depth, _, _, _ = page.shaped
    if depth != 1:
        raise ImageError(f"{name}: a page with {depth} layers; save it as one page a layer")
    height, width, channels = image.stored_shape()
    if (kind == "SEPARATED" and channels < 4) or (kind == "YCBCR" and channels != 3):
        raise ImageError(f"{name}: {channels} channels of kind {kind}; save it as RGB")
    is_odd = kind in ("SEPARATED", "PALETTE", "YCBCR") and page.dtype.kind != "u"
    if is_odd or (kind == "YCBCR" and page.dtype.itemsize > 1):
        better = "grey or RGB" if is_odd else "RGB"
        raise ImageError(f"{name}: {page.dtype} pixels of kind {kind}; save it as {better}")
    if height <= 0 or width <= 0 or channels <= 0:
        raise ImageError(f"{name}: {width} x {height} pixels; get it anew or leave it out")


def _check_packing(name: str, page: tifffile.TiffPage) -> None:
    """Refuse a page that claims many more pixels than its bytes can hold (missing tiles, bombs)."""
    packed = min(sum(page.databytecounts), page.parent.filehandle.size)  # pieces may overlap
    piece = page.tilewidth * page.tilelength * page.tiledepth if page.is_tiled else 0
    piece *= page.samplesperpixel * page.dtype.itemsize if page.dtype is not None else 0
    way_on = "the file is damaged or made to fill the memory; get it anew or leave it out"
    if piece > _LARGEST_TILE and piece > 2 * page.nbytes:
        told = f"tiles of {page.tilewidth} x {page.tilelength} pixels, far larger than the image"
        raise ImageError(f"{name}: {told}: {way_on}")
    if page.nbytes > _UNQUESTIONED and page.nbytes > _MOST_PACKED * packed:
        told = f"{page.nbytes / 1e6:,.0f} MB of pixels from {packed:,} bytes"
        raise ImageError(f"{name}: {told}: {way_on}")


def _rgb_of_cmyk(pixels_HWC: Shaped[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W 3"]:
    inks_HW4 = pixels_HWC[:, :, :4]
    if inks_HW4.dtype != np.uint8:
        inks_HW4 = (inks_HW4 >> 8 * (inks_HW4.dtype.itemsize - 1)).astype(np.uint8)
    inks = Image.fromarray(np.ascontiguousarray(inks_HW4), mode="CMYK")
    return np.asarray(inks.convert("RGB"))


def _whole(values: decoding.Pixels, *, name: str) -> decoding.Pixels:
    finite = decoding.finite_float32(values, name=name)
    rounded = np.rint(finite)
    if (rounded != finite).any() or np.abs(rounded).max() > 2**24:
        raise ImageError(f"{name}: fractions in a mask; save whole numbers, 8 or 16 bits")
    return np.asarray(rounded, np.int32)


def encode_tiff(
    pixels: np.ndarray,
    text: str | None,
    extratags: Sequence[Any] = (),
    *,
    resolution: tuple[float, float] | None = None,
) -> bytes:
    """Encode as deflated TIFF; `text` is its description, resolution is pixels per cm (x, y)."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels,
        photometric="rgb" if pixels.shape[2:] in {(3,), (4,)} else "minisblack",
        planarconfig="contig" if pixels.ndim == 3 else None,
        extrasamples=("unassalpha",) if pixels.shape[2:] == (4,) else None,
        compression="zlib",
        description=text,
        extratags=extratags,
        resolution=resolution,
        resolutionunit="CENTIMETER" if resolution else None,
        metadata=None,  # else tifffile notes the array's shape in the file's description
        software=False,
    )
    return buffer.getvalue()
