"""Small files that cost a decoder gigabytes or minutes."""

import io
import struct

import numpy as np
import tifffile
from PIL import Image

__all__ = ["imagej_stack", "jpeg_in_tiff", "jpeg_of_scans", "ome_stack"]

_OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="8"'
    ' SizeY="8" SizeZ="1000000000" SizeC="1" SizeT="1"><TiffData/></Pixels></Image></OME>'
)


def ome_stack() -> bytes:
    """An OME-TIFF of one page that claims 10^9 planes."""
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((8, 8), np.uint8), description=_OME, metadata=None)
    return out.getvalue()


def imagej_stack() -> bytes:
    """An ImageJ TIFF of one page that claims 10^9 images."""
    out = io.BytesIO()
    about = "ImageJ=1.54\nimages=1000000000\nslices=1000000000\n"
    tifffile.imwrite(out, np.zeros((8, 8), np.uint8), description=about, metadata=None)
    return out.getvalue()


def _jpeg(side: int, **settings: bool) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), 90).save(out, "JPEG", quality=50, **settings)
    return out.getvalue()


def jpeg_in_tiff() -> bytes:
    """A TIFF of 16 x 16 pixels whose JPEG inside claims 65,500 x 65,500."""
    jpeg = bytearray(_jpeg(16))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    tags = [(256, 16), (257, 16), (258, 8), (259, 7), (262, 1), (277, 1), (278, 16)]
    tags += [(273, 8), (279, len(jpeg))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    head = b"II" + struct.pack("<HI", 42, 8 + len(jpeg))
    return head + bytes(jpeg) + struct.pack("<H", len(tags)) + entries + bytes(4)


def jpeg_of_scans(side: int = 3000, num_scans: int = 4000) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    jpeg = _jpeg(side, progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + (jpeg[last:-2]) * num_scans + jpeg[-2:]
