"""The only reader and writer of image files.

    reading.py   the public readers: a file, bytes or a Pillow image becomes an array
    raster.py    JPEG, PNG, WebP, BMP and still GIF
    tiff.py      TIFF: pages, many channels, 16 and 32 bits
    pixels.py    what the decoders share: facts of an image, limits, turning, broken files
    windows.py   images of any size, read window by window (pieces.py, zarr_folders.py)
    tiled.py     results of any size, written tile by tile
    writing.py   masks, images and probabilities to files
    cage.py      decoding what strangers send in killable children (caged.py is their side)

What a file holds decides how it is read, never its name.
"""

from binseg.imageio.metadata import (
    Georeference,
    PixelSize,
    read_georeference,
    read_pixel_size,
)
from binseg.imageio.pixels import MAX_PIXELS, ImageInfo
from binseg.imageio.reading import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    decode_image,
    from_pil,
    num_pages,
    probe,
    probe_bytes,
    read_image,
    read_labels,
)
from binseg.imageio.tiled import (
    TiledPage,
    decode_tiles,
    encode_tiles,
    write_tiled,
)
from binseg.imageio.windows import (
    WINDOW_PIXELS,
    Windows,
    holds_tiff,
    needs_windows,
    open_windows,
)
from binseg.imageio.writing import (
    Facts,
    encode_image,
    encode_mask,
    encode_probability,
    read_facts,
    write_bands,
    write_mask,
    write_probability,
    write_rgb,
    write_rgba,
)
from binseg.imageio.zarr_folders import is_zarr

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "TIFF_SUFFIXES",
    "WINDOW_PIXELS",
    "Facts",
    "Georeference",
    "ImageInfo",
    "PixelSize",
    "TiledPage",
    "Windows",
    "decode_image",
    "decode_tiles",
    "encode_image",
    "encode_mask",
    "encode_probability",
    "encode_tiles",
    "from_pil",
    "holds_tiff",
    "is_zarr",
    "needs_windows",
    "num_pages",
    "open_windows",
    "probe",
    "probe_bytes",
    "read_facts",
    "read_georeference",
    "read_image",
    "read_labels",
    "read_pixel_size",
    "write_bands",
    "write_mask",
    "write_probability",
    "write_rgb",
    "write_rgba",
    "write_tiled",
]
