"""The table of image formats, and the choice among them: content decides, never the name.

A new format is a row of `FORMATS`: its suffixes, the first bytes that tell it, a function that
opens it, and one that encodes it where binseg writes it.
"""

import codecs
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from binseg.errors import ImageError
from binseg.imageio.decoding import Decoder, Handle, broken_files, one_line
from binseg.imageio.medical import open_dicom, open_nifti
from binseg.imageio.raster import encode_jpeg, encode_png, open_heic, open_numpy, open_raster
from binseg.imageio.tiff import encode_tiff, is_tiff, open_tiff
from binseg.storage import open_file

HEAD = 352  # Bytes at a file's beginning that tell its format: NIfTI's mark comes last


@dataclass(frozen=True)
class Format:
    """One image format: how its files are recognised, read and, where it can be, written."""

    suffixes: tuple[str, ...]  # Endings by which folders are searched; the first is the usual one
    matches: Callable[[bytes], bool]  # Tells the format by a file's first `HEAD` bytes
    open: Callable[..., Decoder]  # Takes the open file and `name`; of stacks page and any_page too
    encode: Callable[..., bytes] | None = None
    """Takes uint8 or float32 pixels, a text to note or None, and further TIFF tags."""
    stacks: bool = False  # True where a file may hold several pages


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


def _pillow(
    plugin: type[ImageFile], matches: Callable[[bytes], bool], *suffixes: str, **more: Any
) -> Format:
    """Describe a format of single images that one of Pillow's classes opens."""
    return Format(suffixes, matches, partial(open_raster, plugin=plugin), **more)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_ppm(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace()


def _is_nifti(head: bytes) -> bool:
    return head[:2] == b"\x1f\x8b" or head[344:347] == b"n+1"


def _is_iso(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


_JPEG, _JPEG2000 = b"\xff\xd8\xff", (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1")
FORMATS: Mapping[str, Format] = {
    "JPEG": _pillow(
        JpegImageFile, _starts(_JPEG), ".jpg", ".jpeg", ".jpe", ".jfif", encode=encode_jpeg),
    "PNG": _pillow(PngImageFile, _starts(b"\x89PNG\r\n\x1a\n"), ".png", encode=encode_png),
    "WEBP": _pillow(WebPImageFile, _is_webp, ".webp"),
    "BMP": _pillow(BmpImageFile, _starts(b"BM"), ".bmp"),
    "GIF": _pillow(GifImageFile, _starts(b"GIF87a", b"GIF89a"), ".gif"),
    "PPM": _pillow(PpmImageFile, _is_ppm, ".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": _pillow(Jpeg2KImageFile, _starts(*_JPEG2000), ".jp2", ".j2k"),
    "AVIF": _pillow(AvifImageFile, _is_iso(b"avif", b"avis"), ".avif"),
    "HEIF": Format((".heic", ".heif"), _is_iso(*_HEIC), open_heic),
    "NPY": Format((".npy",), _starts(b"\x93NUMPY"), open_numpy),
    "TIFF": Format((".tif", ".tiff", ".svs", ".lsm", ".btf", ".ndpi"), is_tiff, open_tiff,
        encode_tiff, stacks=True),
    "NIFTI": Format((".nii", ".gz"), _is_nifti, open_nifti, stacks=True),
    "DICOM": Format((".dcm", ".dicom"), lambda head: head[128:132] == b"DICM", open_dicom,
        stacks=True),
}  # fmt: skip
OTHERS: Mapping[str, tuple[str, bytes]] = {
    "Photoshop": ("export it as PNG or TIFF", b"8BPS"),
    "PDF": ("export its images as PNG", b"%PDF"),
    "NRRD": ("convert it to .nii, with 3D Slicer for example", b"NRRD"),
    "NIfTI-2": ("save it as NIfTI-1, with nibabel for example", b"\x1c\x02\0\0n+2"),
    "HDF5 or Imaris": ("export it as OME-TIFF, from Fiji for example", b"\x89HDF"),
    "Zeiss CZI": ("export it as OME-TIFF, from Fiji or ZEN", b"ZISRAWFILE"),
    "Nikon ND2": ("export it as OME-TIFF, from Fiji or NIS-Elements", b"\xda\xce\xbe\x0a"),
    "OpenEXR": ("save it as a TIFF of floats", b"\x76\x2f\x31\x01"),
    "MATLAB": ("write its arrays as TIFF or .npy", b"MATLAB"),
    "SVG or XML": ("export it as PNG", b"<"),
    "Git LFS pointer": ("fetch the file itself by `git lfs pull`", b"version https://git-lfs"),
}
"""Known formats that aren't read: what to do, and the bytes that they begin with."""
STACK_SUFFIXES = frozenset(  # Endings of files that may hold several pages
    suffix for one in FORMATS.values() if one.stacks for suffix in one.suffixes
)
TIFF_SUFFIXES = frozenset(FORMATS["TIFF"].suffixes)  # May be too large to be read whole
IMAGE_SUFFIXES = frozenset(suffix for one in FORMATS.values() for suffix in one.suffixes)
"""Endings, in lower case, by which folders are searched for images."""


def format_of(head: bytes) -> str | None:
    """Tell a format by a file's first `HEAD` bytes; None where it is none that binseg reads."""
    return next((name for name, one in FORMATS.items() if one.matches(head)), None)


def kind_of(path: Path) -> Literal["image", "text", "other"]:
    """Tell what a file is by its content: an image that can be read, text, or neither."""
    if not path.is_file():
        return "other"
    with opened(path) as handle:
        head = handle.read(512)
    if format_of(head[:32]) is not None:
        return "image"
    try:
        is_text = b"\0" not in head and codecs.getincrementaldecoder("utf-8")().decode(head) != "\0"
    except UnicodeDecodeError:
        is_text = False
    return "text" if is_text else "other"


@contextmanager
def opened(path: Path | bytes) -> Iterator[Handle]:
    """Open a file to read, or one in memory, with one line for what the system says against it."""
    if isinstance(path, bytes):
        yield io.BytesIO(path)
        return
    name = one_line(path)
    try:
        handle = open_file(path)  # closed by the `with` below
    except (OSError, ValueError) as error:
        reasons: dict[type[Exception], str] = {
            FileNotFoundError: "there is no such file; check the name",
            IsADirectoryError: "a folder, not an image; name a file in it",
            PermissionError: "you may not read it; change its permissions",
        }
        reason = reasons.get(type(error), f"can't be opened ({one_line(error)})")
        raise ImageError(f"{name}: {reason}") from error
    with handle:
        yield handle


@contextmanager
def decoder_of(source: Path | bytes, *, name: str, **asked: Any) -> Iterator[Decoder]:
    """Read an image's header in this process; `asked` goes to `choose`; raises as that."""
    with opened(source) as handle, broken_files(name):
        yield choose(handle, name=name, **asked)


def choose(
    handle: Handle, *, name: str, page: int | None = None, any_page: bool = False
) -> Decoder:
    """Choose a decoder by the first bytes; stacks need a `page`, or `any_page`. ImageError."""
    head = handle.read(HEAD)
    found = format_of(head)
    if found is None:
        raise ImageError(_unknown(head, name))
    if FORMATS[found].stacks:
        return FORMATS[found].open(handle, name=name, page=page, any_page=any_page)
    if page not in (None, 0):
        raise ImageError(f"{name}: there is no page {page}; a {found} file has page 0 only")
    return FORMATS[found].open(handle, name=name)


def known_other(path: Path) -> str | None:
    """Name the format of a file that isn't read, and the export that works, where it is known."""
    with opened(path) as handle:
        return _other(handle.read(HEAD))


def _other(head: bytes) -> str | None:
    told = (f"a {name} file, which binseg doesn't read: {advice}"
            for name, (advice, mark) in OTHERS.items() if head.startswith(mark))  # fmt: skip
    return next(told, None)


def _unknown(head: bytes, name: str) -> str:
    if not head:
        return f"{name}: the file is empty; get it anew or leave it out"
    read = ", ".join(FORMATS)
    if other := _other(head):
        return f"{name}: {other}"
    head = head[:32]
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"{name}: text, not an image; binseg reads {read}"
    return f"{name}: not an image that binseg knows; it reads {read}"
