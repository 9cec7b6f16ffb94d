"""Slices of NIfTI volumes and DICOM files, as pages (extras `nifti` and `dicom`)."""

import gzip
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from binseg.errors import ImageError, needing
from binseg.imageio import decoding
from binseg.imageio.raster import NumpyImage


@dataclass(frozen=True, kw_only=True)
class _Slice(NumpyImage):
    """One slice of a file; `source` is what its package made of the header."""

    source: Any
    page: int
    num_pages: int
    axes: str = ""
    scale: tuple[float, float] = (1.0, 0.0)  # Slope and intercept; masks are taken as stored

    def info(self) -> decoding.ImageInfo:
        dtype = decoding.given_dtype(self.dtype) if self.scale == (1.0, 0.0) else "float32"
        format_ = type(self).__name__.removeprefix("_")
        return replace(
            super().info(), num_pages=self.num_pages, dtype=dtype, format=format_, axes=self.axes
        )

    def image(self) -> decoding.Pixels:
        stored_HWC, (slope, intercept) = self._load(), self.scale
        if self.scale != (1.0, 0.0):
            stored_HWC = stored_HWC.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        return decoding.as_given(stored_HWC, name=self.name)


class _NIFTI(_Slice):
    """A slice along the third axis: rows run along the second, columns along the first."""

    def _load(self) -> np.ndarray:
        height, width, _ = self.shape
        size = height * width * self.dtype.itemsize
        stream = _unpacked(self.handle)
        # Slices lie one behind the other: only those before this one are unpacked.
        stream.seek(self.source.get_data_offset() + self.page * size)
        pixels = np.frombuffer(stream.read(size), self.dtype)
        return pixels.astype(self.dtype.newbyteorder("=")).reshape(self.shape)

    def labels(self, *, indices: bool = False) -> decoding.Labels:
        """Give the numbers of a mask, scaled where that makes them whole, as it does 255 / 255."""
        stored_HW, (slope, intercept) = super().labels(indices=indices), self.scale
        scaled_HW = stored_HW * slope + intercept
        whole_HW = np.rint(scaled_HW)
        is_whole = bool(np.allclose(scaled_HW, whole_HW, rtol=0, atol=1e-4))
        return whole_HW.astype(np.int64) if is_whole and self.scale != (1.0, 0.0) else stored_HW


class _DICOM(_Slice):
    """A frame, with white as 255 also where the file says that white is zero."""

    def _load(self) -> np.ndarray:
        from pydicom.pixels.utils import pixel_array

        pixels_HWC = np.asarray(pixel_array(self.source, index=self.page)).reshape(self.shape)
        if self.source.PhotometricInterpretation == "MONOCHROME1":  # alike in all of a series
            is_signed = pixels_HWC.dtype.kind == "i"
            full = -1 if is_signed else (1 << int(self.source.BitsStored)) - 1
            pixels_HWC = np.asarray(full - pixels_HWC, pixels_HWC.dtype)
        return pixels_HWC


def _unpacked(handle: decoding.Handle) -> Any:
    handle.seek(0)
    is_packed = handle.read(2) == b"\x1f\x8b"
    handle.seek(0)
    return gzip.GzipFile(fileobj=handle) if is_packed else handle


def open_nifti(
    handle: decoding.Handle, *, name: str, page: int | None = None, any_page: bool = False
) -> _Slice:
    """Read the header of a NIfTI-1 volume; raises ImageError and MissingExtraError."""
    with needing("nibabel", extra="nifti", purpose=f"reading {name}"):
        from nibabel.nifti1 import Nifti1Header
        from nibabel.orientations import aff2axcodes
        from nibabel.spatialimages import HeaderDataError
    head = _unpacked(handle).read(348)
    if head[344:347] != b"n+1":
        raise ImageError(
            f"{name}: a packed file that is no NIfTI-1 volume; unpack it, or save it as NIfTI-1"
        )
    build: Any = Nifti1Header  # its functions have no types
    try:
        header = build(head)
        dtype, (slope, intercept) = header.get_data_dtype(), header.get_slope_inter()
    except HeaderDataError as error:
        raise ImageError(f"{name}: a NIfTI header that can't be read ({error})") from None
    if dtype.kind not in "buif":
        raise ImageError(f"{name}: a volume of {dtype}; save one number for each voxel")
    width, height, depth, *further = (*header.get_data_shape(), 1, 1)[:6]
    if any(one != 1 for one in further):
        raise ImageError(f"{name}: holds several volumes; save each as a file of its own")
    shape = (height, width, 1)
    decoding.check_size(name, height=height, width=width, channels=1, itemsize=dtype.itemsize)
    affine = header.get_best_affine()
    is_told = (header["sform_code"] or header["qform_code"]) and (affine != np.eye(4)).any()
    return _NIFTI(
        name=name, handle=handle, shape=shape, dtype=dtype, source=header,
        page=_chosen(page, depth, name, any_page=any_page), num_pages=depth,
        axes="".join(map(str, aff2axcodes(affine))) if is_told else "",  # type: ignore[no-untyped-call]
        scale=(1.0 if slope is None else slope, intercept or 0.0),
    )  # fmt: skip


def open_dicom(
    handle: decoding.Handle, *, name: str, page: int | None = None, any_page: bool = False
) -> _Slice:
    """Read the header of a DICOM file; raises as `open_nifti`."""
    with needing("pydicom", extra="dicom", purpose=f"reading {name}"):
        from pydicom import dcmread
    handle.seek(0)
    found = dcmread(handle)
    if "Rows" not in found:
        raise ImageError(f"{name}: a DICOM file without an image; leave it out")
    if found.PhotometricInterpretation == "PALETTE COLOR":
        raise ImageError(f"{name}: a DICOM file of palette colours; save it as RGB")
    shape = (int(found.Rows), int(found.Columns), int(found.get("SamplesPerPixel", 1)))
    bits, sign = int(found.BitsAllocated), "i" if found.get("PixelRepresentation", 0) else "u"
    depth = int(found.get("NumberOfFrames", 1) or 1)
    decoding.check_size(
        name, height=shape[0], width=shape[1], channels=shape[2], itemsize=max(1, bits // 8)
    )
    return _DICOM(
        name=name, handle=handle, shape=shape, dtype=np.dtype(f"{sign}{max(1, bits // 8)}"),
        source=found, page=_chosen(page, depth, name, any_page=any_page), num_pages=depth,
        scale=(float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))),
    )  # fmt: skip


def _chosen(page: int | None, num: int, name: str, *, any_page: bool) -> int:
    if page is None and num > 1 and not any_page:
        raise ImageError(f"{name}: has {num} slices; name one, or save them as single images")
    if not 0 <= (page or 0) < num:
        raise ImageError(f"{name}: there is no slice {page}; there are 0 to {num - 1}")
    return page or 0
