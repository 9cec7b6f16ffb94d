"""Tensors as safetensors bytes, and the checks before a stranger's header is believed."""

import math
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from binseg.errors import BundleError, one_line
from binseg.storage import parse_json

_MAX_HEADER = 2**20
"""Room for thousands of tensors, in bytes."""
_ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Pack tensors into the bytes of one safetensors file; equal tensors give equal bytes."""
    # safetensors reads from the data pointer on, so strided views must be made dense first
    # (asarray, because ascontiguousarray would turn a number into a vector).
    return save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})


def from_bytes(data: bytes, *, name: str) -> dict[str, np.ndarray]:
    """Unpack the bytes of a safetensors file into arrays that own their memory.

    Args:
        data: the whole file.
        name: the file, for errors.

    Raises:
        BundleError: a header that lies about the file, or a type that numpy doesn't have.
    """
    check_header(data, name=name)
    try:
        return {
            key: array if array.flags.writeable else array.copy()
            for key, array in load(data).items()
        }
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{name}: not readable as safetensors ({one_line(str(error))})") from None


def check_header(data: bytes, *, name: str) -> None:
    """Check a safetensors header against the size of its file, before it is believed.

    Args:
        data: the whole file.
        name: the file, for errors.

    Raises:
        BundleError: the header is longer than the file, isn't JSON, or claims tensors that
            don't fill the file exactly.
    """
    size = len(data)
    if size < 8:
        raise BundleError(f"{name}: {size} bytes are too few for a safetensors file; it is cut off")
    length = int.from_bytes(data[:8], "little")
    if length > min(size - 8, _MAX_HEADER):
        raise BundleError(
            f"{name}: the header claims {length} bytes in a file of {size}; "
            "it is cut off, or no safetensors file"
        )
    try:
        header = parse_json(data[8 : 8 + length])
        spans = [_span(entry) for key, entry in header.items() if key != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BundleError(f"{name}: the header is no safetensors header") from None
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise BundleError(f"{name}: the header's tensors overlap or leave holes")
        end = stop
    if end != size - 8 - length:
        raise BundleError(
            f"{name}: the header claims {end} bytes of tensors, the file holds "
            f"{size - 8 - length}; it is cut off or damaged"
        )


def _span(entry: Mapping[str, object]) -> tuple[int, int]:
    """Find a tensor's bytes; an error where its shape, its type and its bytes disagree."""
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(shape) > 16:
        raise TypeError
    if not all(type(number) is int and 0 <= number < 2**48 for number in (*shape, *offsets)):
        raise ValueError
    begin, end = offsets
    if math.prod(shape) * _ITEM_SIZES[str(entry["dtype"])] != end - begin:
        raise ValueError
    return begin, end
