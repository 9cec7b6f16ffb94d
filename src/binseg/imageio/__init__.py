"""The only reader and writer of image files.

    formats.py   FORMATS, and the public readers that walk it
    raster.py    JPEG, PNG and others of single images, through Pillow
    tiff.py      TIFF: many channels, 16 and 32 bits, no data (tiff_parts.py: pages, tiles)
    decoding.py  shared by the decoders: facts of an image, limits, turning, broken files
    windows.py   images of any size, read window by window (zarr_folders.py)
    writing.py   masks, images and probabilities to files; results of any size, tile by tile
    cage.py      decoding what strangers send in children that can be killed (caged.py)

What a file holds decides how it is read, never its name.
"""

from binseg.imageio.decoding import ImageInfo
from binseg.imageio.formats import (
    IMAGE_SUFFIXES,
    STACK_SUFFIXES,
    TIFF_SUFFIXES,
    decode_image,
    decode_pixels,
    kind_of,
    probe,
    probe_bytes,
    read_image,
    read_labels,
    read_palette,
    read_pixels,
    read_reduced,
)
from binseg.imageio.metadata import Georeference, PixelSize, read_georeference, read_pixel_size
from binseg.imageio.windows import Windows, needs_windows, open_windows
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
    write_probability,
    write_tiled,
)
from binseg.imageio.zarr_folders import is_zarr
