"""TIFF through tifffile: one page at a time, any number of channels, 1 to 64 bits."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tifffile
from jaxtyping import Num, Shaped, UInt8
from PIL import Image

from binseg.errors import ImageError
from binseg.imageio.decoding import (
    Handle,
    ImageInfo,
    check_size,
    finite_float32,
    swaps_sides,
    turn,
)
from binseg.imageio.raster import through_palette

__all__ = [
    "TiffContent",
    "TiffImage",
    "encode_tiff",
    "image_of",
    "is_tiff",
    "list_tiff",
    "open_tiff",
]

# tifffile reports odd tags to its log; without any handler Python would print those to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_SOFTWARE, _ORIENTATION = 305, 274
_MOST_LEVELS = 32
"""Files with more pages than this are stacks; a pyramid of smaller copies has fewer levels."""
_MOST_CHANNELS = 16
"""As many pages may be the channels of one image, where the file's metadata says so."""
_LARGEST_TILE = 64_000_000
"""Bytes of a tile that may be larger than its image."""
_UNQUESTIONED, _MOST_PACKED = 200_000_000, 2000
"""Bytes that any page may have, and bytes for each packed byte above that: deflate packs up to 1032
into one."""
_JPEG = (6, 7)
"""Compressions whose colours the decoder already turned into RGB."""
_KINDS = {0: "MINISWHITE", 1: "MINISBLACK", 2: "RGB", 3: "PALETTE", 5: "SEPARATED", 6: "YCBCR"}

Layout = Literal["page", "page a channel", "page a row"]


@dataclass(frozen=True, kw_only=True)
class TiffImage:
    """One image of a TIFF file whose tags were read; its pixels are still packed."""

    name: str
    pages: tuple[tifffile.TiffPage, ...]
    """One, unless the layout spreads the image over several."""
    layout: Layout
    kind: str
    bits: int
    """Bits a sample."""
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

    def info(self) -> ImageInfo:
        """The facts of the image as `image` gives it."""
        height, width, _ = self.stored_shape()
        if swaps_sides(self.orientation):
            height, width = width, height
        channels, dtype = self._colours(), "uint8"
        if self.kind in ("PALETTE", "SEPARATED"):
            channels = 3
        else:
            assert self.page.dtype is not None, "open_tiff refuses those"
            dtype = _given_dtype(self.page.dtype, self.bits)
        return ImageInfo(
            height=height,
            width=width,
            channels=channels,
            dtype=dtype,
            mode="MINISBLACK" if self.kind == "MINISWHITE" and self._is_as_stored() else self.kind,
            format="TIFF",
            num_pages=self.num_pages,
            turned=self.orientation != 1,
        )

    def image(self) -> Num[np.ndarray, "H W C"]:
        """The pixels, turned: uint8, uint16 or float32."""
        return turn(self.colours_of(self._stored()), self.orientation)

    def colours_of(self, stored_HWC: Shaped[np.ndarray, "h w S"]) -> Num[np.ndarray, "h w C"]:
        """Turn the stored numbers of any part of the image into pixels (uint8, uint16, float32)."""
        pixels_HWC = self._meant(stored_HWC)
        if self.kind == "PALETTE":
            return np.asarray(self._palette()[pixels_HWC[:, :, 0]])
        return self._stretched(pixels_HWC)

    def palette(self) -> UInt8[np.ndarray, "N 3"] | None:
        """Give the colours of a palette, or None where the file has none."""
        return self._palette() if self.kind == "PALETTE" else None

    def labels(self, *, indices: bool = False) -> Shaped[np.ndarray, "H W ..."]:
        """Give the raw values, turned; numbers must be whole, colours 8-bit."""
        pixels_HWC = self._meant(self._stored())
        if self.kind == "PALETTE" and not indices:
            labels = through_palette(pixels_HWC[:, :, 0].astype(np.uint8), self._palette())
            return turn(labels, self.orientation)
        channels = pixels_HWC.shape[2]
        if channels not in (1, 3):
            raise ImageError(f"{self.name}: {channels} channels; a mask has 1, or 3 for colours")
        if pixels_HWC.dtype == np.bool_:
            pixels_HWC = pixels_HWC.astype(np.uint8)
        if pixels_HWC.dtype.kind == "f":
            pixels_HWC = _whole(pixels_HWC, name=self.name)
        if channels == 1:
            return turn(pixels_HWC[:, :, 0], self.orientation)
        if pixels_HWC.min() < 0 or pixels_HWC.max() > 255:
            raise ImageError(f"{self.name}: colours above 255; save the mask as 8-bit RGB")
        return turn(pixels_HWC.astype(np.uint8, copy=False), self.orientation)

    def _colours(self) -> int:
        """Channels without alpha."""
        _, _, channels = self.stored_shape()
        # 1 and 2 mean alpha; 0 is a channel of unknown meaning (near infrared), which is kept.
        alphas = sum(1 for extra in self.page.extrasamples if int(extra) in (1, 2))
        return max(1, channels - alphas) if self.layout == "page" else channels

    def _stored(self) -> Shaped[np.ndarray, "H W S"]:
        """The numbers in the file, all samples, channels last."""
        for one in self.pages:
            _check_packing(self.name, one)
        stored = [one.asarray().reshape(one.shaped)[:, 0] for one in self.pages]
        if self.layout == "page a channel":
            return np.stack([one[0, :, :, 0] for one in stored], axis=2)
        if self.layout == "page a row":
            return np.stack([one[0, :, :, 0] for one in stored])
        return np.moveaxis(stored[0], 0, 2).reshape(self.stored_shape())

    def _meant(self, pixels_HWC: Shaped[np.ndarray, "h w S"]) -> Shaped[np.ndarray, "h w C"]:
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

    def _stretched(self, pixels_HWC: Shaped[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W C"]:
        """To uint8, uint16 or float32; odd depths (4, 12 bits) fill the range of their type."""
        if _given_dtype(pixels_HWC.dtype, self.bits) == "float32":
            return finite_float32(pixels_HWC, name=self.name)
        if pixels_HWC.dtype == np.bool_:
            return pixels_HWC.astype(np.uint8) * np.uint8(255)
        most, full = 2**self.bits - 1, np.iinfo(pixels_HWC.dtype).max
        if most >= full:  # above it where 16-bit inks became 8-bit RGB
            return pixels_HWC
        stretched = np.rint(np.arange(most + 1) * (full / most)).astype(pixels_HWC.dtype)
        return np.asarray(stretched[pixels_HWC])

    def _palette(self) -> UInt8[np.ndarray, "N 3"]:
        colours = np.asarray(self.page.colormap).T
        # The standard has 16-bit colours; files with 8-bit numbers in them are common.
        return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def is_tiff(head: bytes) -> bool:
    """Tell TIFF and BigTIFF by their first bytes."""
    return head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def open_tiff(handle: Handle, *, name: str, page: int | None, any_page: bool) -> TiffImage:
    """Read the tags of one image.

    Args:
        handle: the file, open.
        name: what messages call it.
        page: which page, from 0; None where it must be the only one.
        any_page: take the first page where `page` is None, however many there are.

    Raises:
        ImageError: it is damaged, too large, of a kind that we don't read, or lacks that page.
    """
    content = list_tiff(handle)
    if content.num_hidden:
        raise ImageError(
            f"{name}: an ImageJ stack of {content.num_hidden} images under one page; save it as "
            "BigTIFF, or as one file an image"
        )
    if page is None and content.num_pages > 1 and not any_page:
        raise ImageError(
            f"{name}: a stack of {content.num_pages} pages; name one of them, 0 to "
            f"{content.num_pages - 1}"
        )
    image = image_of(content, 0 if page is None else page, name=name)
    height, width, channels = image.stored_shape()
    assert image.page.dtype is not None, "image_of refuses those"
    itemsize = image.page.dtype.itemsize
    check_size(name, height=height, width=width, channels=channels, itemsize=itemsize)
    return image


@dataclass(frozen=True, kw_only=True)
class TiffContent:
    """Pages of an open TIFF file that are images."""

    file: tifffile.TiffFile
    real: tuple[int, ...]
    """The pages that are no smaller copies or transparency of another."""
    layout: Layout
    num_hidden: int
    """Images of an ImageJ stack that share the tags of one page; else 0."""

    @property
    def num_pages(self) -> int:
        """Images in the file, hidden ones left out."""
        return len(self.real) if self.layout == "page" else 1


def list_tiff(handle: Handle) -> TiffContent:
    """Look through the pages of a file."""
    handle.seek(0)
    file = tifffile.TiffFile(handle, _multifile=False)
    file.filehandle.set_lock(True)
    real = _real_pages(file)
    hidden = _hidden_pages(file)
    return TiffContent(
        file=file,
        real=tuple(real),
        layout=_layout(file, len(real)),
        num_hidden=hidden if hidden > len(real) else 0,
    )


def image_of(content: TiffContent, page: int, *, name: str) -> TiffImage:
    """Read the tags of one image of a file, of any size.

    Raises:
        ImageError: there is no such page, or it is of a kind that we don't read.
    """
    if not 0 <= page < content.num_pages:
        last = content.num_pages - 1
        raise ImageError(f"{name}: there is no page {page}; its pages are 0 to {last}")
    chosen = [content.real[page]] if content.layout == "page" else content.real
    pages = tuple(_page(content.file, index) for index in chosen)
    tag = pages[0].tags.get(_ORIENTATION)
    orientation = int(tag.value) if tag is not None else 1
    image = TiffImage(
        name=name,
        pages=pages,
        layout=content.layout,
        kind=_KINDS.get(int(pages[0].photometric), ""),
        bits=int(pages[0].bitspersample),
        num_pages=content.num_pages,
        orientation=orientation if 1 <= orientation <= 8 else 1,
    )
    _check(image)
    return image


def _real_pages(file: tifffile.TiffFile) -> list[int]:
    """The pages that are images of their own, no smaller copies or transparency of another."""
    if file.is_svs:
        return [0]  # the others are its pyramid, thumbnail, label and a photograph of the slide
    count = len(file.pages)
    if count == 1 or count > _MOST_LEVELS:
        return list(range(count))
    pages = [_page(file, index) for index in range(count)]
    whole = [index for index, page in enumerate(pages) if not page.is_reduced]
    return [index for index in whole if not pages[index].is_mask] or whole or [0]


def _page(file: tifffile.TiffFile, index: int) -> tifffile.TiffPage:
    page = file.pages[index]
    # Reading a series leaves frames behind: pages that borrow most tags from the first one.
    return page if isinstance(page, tifffile.TiffPage) else page.aspage()


def _hidden_pages(file: tifffile.TiffFile) -> int:
    """Count the images that ImageJ notes; beyond 4 GB it gives all of them one page."""
    metadata = file.imagej_metadata if file.is_imagej else None
    return int((metadata or {}).get("images", 1))


def _layout(file: tifffile.TiffFile, num_pages: int) -> Layout:
    """Tell the channels of one image from a stack of images, by what the writer noted.

    ImageJ and OME files name their axes: C Y X is one image with a page a channel. tifffile,
    handed an array of height x width x channels without a word on it, writes a page for each *row*,
    and notes the array's shape.
    """
    if num_pages == 1:
        return "page"
    if num_pages <= _MOST_CHANNELS and (file.is_imagej or file.is_ome):
        return "page a channel" if file.series[0].axes == "CYX" else "page"
    if file.is_shaped and _page(file, 0).ndim == 2:
        shape = file.series[0].shape
        narrow = len(shape) == 3 and shape[2] <= _MOST_CHANNELS < min(shape[:2])
        return "page a row" if narrow and shape[0] == num_pages else "page"
    return "page"


def _check(image: TiffImage) -> None:
    """Refuse what can't be decoded into an image, of whatever size."""
    name, page, kind = image.name, image.page, image.kind
    if not kind:
        raise ImageError(f"{name}: TIFF colours of kind {page.photometric}; save it as RGB")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise ImageError(f"{name}: TIFF pixels of an odd type; save it as 8 or 16 bits")
    if not all(isinstance(side, int) for side in page.shaped):
        raise ImageError(f"{name}: the file is damaged (its size is no number); get it anew")
    _, depth, _, _, _ = page.shaped
    if depth != 1:
        raise ImageError(f"{name}: a page with {depth} layers; save it as one page a layer")
    height, width, channels = image.stored_shape()
    if (kind == "SEPARATED" and channels < 4) or (kind == "YCBCR" and channels != 3):
        raise ImageError(f"{name}: {channels} channels of kind {kind}; save it as RGB")
    if kind in ("SEPARATED", "PALETTE", "YCBCR") and page.dtype.kind != "u":
        raise ImageError(f"{name}: {page.dtype} pixels of kind {kind}; save it as grey or RGB")
    if kind == "YCBCR" and page.dtype.itemsize > 1:
        raise ImageError(f"{name}: {page.dtype} pixels of kind {kind}; save it as RGB")
    if height <= 0 or width <= 0 or channels <= 0:
        raise ImageError(f"{name}: {width} x {height} pixels; get it anew or leave it out")


def _check_packing(name: str, page: tifffile.TiffPage) -> None:
    """Refuse a page that claims many more pixels than its bytes can hold (missing tiles, bombs)."""
    packed = sum(page.databytecounts)
    piece = page.tilewidth * page.tilelength * page.tiledepth if page.is_tiled else 0
    piece *= page.samplesperpixel * page.dtype.itemsize if page.dtype is not None else 0
    if piece > _LARGEST_TILE and piece > 2 * page.nbytes:
        raise ImageError(
            f"{name}: tiles of {page.tilewidth} x {page.tilelength} pixels, far larger than the "
            "image: the file is damaged or made to fill the memory; get it anew or leave it out"
        )
    if page.nbytes > _UNQUESTIONED and page.nbytes > _MOST_PACKED * packed:
        raise ImageError(
            f"{name}: {page.nbytes / 1e6:,.0f} MB of pixels from {packed:,} bytes: the file is "
            "damaged or made to fill the memory; get it anew or leave it out"
        )


def _given_dtype(stored: np.dtype[np.generic], bits: int) -> str:
    if stored.kind == "b" or (stored.kind == "u" and bits <= 8):
        return "uint8"
    return "uint16" if stored.kind == "u" and bits <= 16 else "float32"


def _rgb_of_cmyk(pixels_HWC: Shaped[np.ndarray, "H W C"]) -> Num[np.ndarray, "H W 3"]:
    inks_HW4 = pixels_HWC[:, :, :4]
    if inks_HW4.dtype != np.uint8:
        inks_HW4 = (inks_HW4 >> 8 * (inks_HW4.dtype.itemsize - 1)).astype(np.uint8)
    inks = Image.fromarray(np.ascontiguousarray(inks_HW4), mode="CMYK")
    return np.asarray(inks.convert("RGB"))


def _whole(values: Num[np.ndarray, "H W C"], *, name: str) -> Num[np.ndarray, "H W C"]:
    """Labels that were saved as floats, as integers again."""
    finite = finite_float32(values, name=name)
    rounded = np.rint(finite)
    if (rounded != finite).any() or np.abs(rounded).max() > 2**24:
        raise ImageError(f"{name}: fractions in a mask; save whole numbers, 8 or 16 bits")
    return np.asarray(rounded, np.int32)


def encode_tiff(pixels: np.ndarray, text: str | None, extratags: Sequence[Any] = ()) -> bytes:
    """Encode as a TIFF packed without loss (deflate); `text` becomes its description."""
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
        metadata=None,  # else tifffile notes the array's shape in the file's description
        software=False,
    )
    return buffer.getvalue()
