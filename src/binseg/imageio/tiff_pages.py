"""The pages of a TIFF file: which of them are images, and which only channels or copies of one."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tifffile

from binseg.imageio.decoding import Handle

MOST_LEVELS = 32
"""Files with more pages than this are stacks; a pyramid of smaller copies has fewer levels."""
MOST_CHANNELS = 16
"""As many pages may be the channels of one image, where the file's metadata says so."""

Layout = Literal["page", "page a channel", "page a row"]


@dataclass(frozen=True, kw_only=True)
class TiffContent:
    """Pages of an open TIFF file that are images."""

    file: tifffile.TiffFile
    images: tuple[tuple[int, ...], ...]
    """The pages of each image: one, unless its channels or rows are spread over several. Smaller
    copies and transparency of another page are left out."""
    layout: Layout
    num_hidden: int
    """Images of an ImageJ stack that share the tags of one page; else 0."""

    @property
    def num_pages(self) -> int:
        """Images in the file, hidden ones left out."""
        return len(self.images)


def list_tiff(handle: Handle) -> TiffContent:
    """Look through the pages of a file."""
    handle.seek(0)
    file = tifffile.TiffFile(handle, _multifile=False)
    file.filehandle.set_lock(True)
    real = _real_pages(file)
    hidden = _hidden_pages(file)
    images, layout = _arranged(file, real)
    return TiffContent(
        file=file, images=images, layout=layout, num_hidden=hidden if hidden > len(real) else 0
    )


def _real_pages(file: tifffile.TiffFile) -> list[int]:
    """The pages that are images of their own, no smaller copies or transparency of another."""
    if file.is_svs:
        return [0]  # the others are its pyramid, thumbnail, label and a photograph of the slide
    count = len(file.pages)
    if count == 1 or count > MOST_LEVELS:
        return list(range(count))
    pages = [page_of(file, index) for index in range(count)]
    whole = [index for index, page in enumerate(pages) if not page.is_reduced]
    return [index for index in whole if not pages[index].is_mask] or whole or [0]


def page_of(file: tifffile.TiffFile, index: int) -> tifffile.TiffPage:
    """Give a page with all of its tags."""
    page = file.pages[index]
    # Reading a series leaves frames behind: pages that borrow most tags from the first one.
    return page if isinstance(page, tifffile.TiffPage) else page.aspage()


def _hidden_pages(file: tifffile.TiffFile) -> int:
    """Count the images that ImageJ notes; beyond 4 GB it gives all of them one page."""
    metadata = file.imagej_metadata if file.is_imagej else None
    return int((metadata or {}).get("images", 1))


def _arranged(
    file: tifffile.TiffFile, real: list[int]
) -> tuple[tuple[tuple[int, ...], ...], Layout]:
    """Tell the channels of an image from a stack of images, by what the writer noted.

    ImageJ and OME files name their axes: C Y X is one image with a page a channel, Z C Y X a stack
    of them. tifffile, handed an array of height x width x channels without a word on it, writes a
    page for each *row*, and notes the array's shape.
    """
    singles = tuple((page,) for page in real)
    if len(real) == 1:
        return singles, "page"
    if file.is_imagej or file.is_ome:
        axes, shape = file.series[0].axes, file.series[0].shape
        if axes[-2:] == "YX" and "C" in axes and math.prod(shape[:-2]) == len(real):
            at = axes.index("C")
            if 1 < shape[at] <= MOST_CHANNELS:
                order = np.moveaxis(np.array(real).reshape(shape[:-2]), at, -1)
                images = order.reshape(-1, shape[at]).tolist()
                return tuple(map(tuple, images)), "page a channel"
        return singles, "page"
    if file.is_shaped and page_of(file, 0).ndim == 2:
        shape = file.series[0].shape
        narrow = len(shape) == 3 and shape[2] <= MOST_CHANNELS < min(shape[:2])
        if narrow and shape[0] == len(real):
            return (tuple(real),), "page a row"
    return singles, "page"
