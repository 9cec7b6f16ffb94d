"""The only reader and writer of image files.

    formats.py   FORMATS, and the choice among them
    reading.py   the public readers: here, or in a cage
    raster.py    JPEG, PNG and others of single images, through Pillow
    tiff.py      TIFF: many channels, 16 and 32 bits, no data (tiff_parts.py: pages, tiles)
    decoding.py  shared by the decoders: facts of an image, limits, turning, broken files
    windows.py   images of any size, read window by window (zarr_folders.py)
    writing.py   masks, images and probabilities to files; results of any size, tile by tile
    cage.py      decoding in children that can be killed (child.py, caged.py)

What a file holds decides how it is read, never its name.
"""

from binseg.imageio.decoding import ImageInfo
from binseg.imageio.formats import IMAGE_SUFFIXES, STACK_SUFFIXES, TIFF_SUFFIXES, kind_of
from binseg.imageio.metadata import Georeference, PixelSize
from binseg.imageio.reading import (
    caged_windows,
    decode_image,
    needs_windows,
    probe,
    read_cover,
    read_georeference,
    read_image,
    read_labels,
    read_palette,
    read_pixel_size,
    read_pixels,
    read_reduced,
)
from binseg.imageio.windows import Windows
from binseg.imageio.writing import (
    Layout,
    decode_tiles,
    encode_image,
    encode_mask,
    encode_probability,
    encode_tiles,
    is_whole,
    read_facts,
    write_image,
    write_mask,
    write_numbers,
    write_tiled,
)
from binseg.imageio.zarr_folders import is_zarr
