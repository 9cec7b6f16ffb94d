"""Reading what a client sends: never more than is allowed, and never for ever."""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from binseg.serve.limits import Limits, Reservation
from binseg.serve.refusals import Refusal

_FORM_EXTRA = 100_000
"""Bytes that a form may have beside its files."""
_UNNAMED = "the image"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that a client sent."""

    name: str
    """The client's name for it, made harmless: for messages and names inside a ZIP only."""
    data: bytes


async def chunks_of(
    request: Request, *, max_bytes: int, limits: Limits, reserved: Reservation | None = None
) -> AsyncGenerator[bytes, None]:
    """Give a body piece by piece.

    Args:
        request: its body must be unread.
        max_bytes: limit of the whole body.
        limits: how slowly it may come.
        reserved: counts the bytes, where they stay in memory.

    Raises:
        Refusal: 413 for too many bytes, as soon as that is known; 408 for too few a second.
        ClientDisconnect: the client is gone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    start, total, more = time.monotonic(), 0, True
    while more:
        until = start + limits.head_seconds + total / limits.min_rate
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise Refusal(
                408, "too_slow", f"The body came too slowly: {total} bytes so far."
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        if reserved is not None:
            reserved.grow(len(chunk))
        if chunk:
            yield chunk


def is_form(request: Request) -> bool:
    """Tell whether the body is a form with files."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_upload(request: Request, *, limits: Limits, reserved: Reservation) -> Upload:
    """Read one image: the body itself, or a form's field `file`.

    Raises:
        Refusal: too large, too slow, empty, or a form without that field.
    """
    if is_form(request):
        (upload,) = await read_form(
            request, field="file", max_files=1, max_bytes=limits.max_bytes, limits=limits,
            reserved=reserved,
        )  # fmt: skip
        return upload
    chunks = chunks_of(request, max_bytes=limits.max_bytes, limits=limits, reserved=reserved)
    data = b"".join([chunk async for chunk in chunks])
    if not data:
        raise Refusal(
            422, "unreadable_image", "The body is empty; send an image's bytes, or a form."
        )
    return Upload(name=_UNNAMED, data=data)


async def read_form(
    request: Request,
    *,
    field: str,
    max_files: int,
    max_bytes: int,
    limits: Limits,
    reserved: Reservation,
) -> list[Upload]:
    """Read the files of a form.

    Args:
        request: its body is the form.
        field: the files' name in it; other fields are refused.
        max_files: most files.
        max_bytes: of all files together.
        limits: how slowly it may come, and how large one file may be.
        reserved: counts the bytes.

    Raises:
        Refusal: too large, too slow, damaged, or without a file.
    """
    stream = chunks_of(request, max_bytes=max_bytes + _FORM_EXTRA, limits=limits, reserved=reserved)
    parser = _InMemory(request.headers, stream, max_files=max_files, max_fields=0, max_part_size=1)
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:  # its head may name a false encoding
        reason = getattr(error, "message", "its text is damaged").rstrip(".")
        raise Refusal(400, "bad_form", f"The form can't be read: {reason}.") from None
    uploads = []
    for name, value in form.multi_items():
        assert isinstance(value, UploadFile), "fields without a file name are refused"
        with value.file as file:
            if name != field:
                raise Refusal(422, "bad_parameter", f"The form's files must be called {field!r}.")
            data = file.read()
        if len(data) > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        uploads.append(Upload(name=plain_name(value.filename or "") or _UNNAMED, data=data))
    if not uploads:
        raise Refusal(422, "bad_parameter", f"The form has no file in the field {field!r}.")
    return uploads


class _InMemory(MultiPartParser):
    """Files stay in memory, where they are counted: no disk is filled on the way."""

    spool_max_size = 0  # SpooledTemporaryFile: 0 means never to disk


def plain_name(name: str) -> str:
    r"""Give a client's file name without folders, control characters and leading dots.

    >>> plain_name("../../etc/pass\nwd"), plain_name("C:\\a\\b.png"), plain_name("..")
    ('passwd', 'b.png', '')
    """
    last = re.split(r"[\\/]", name)[-1]
    clean = "".join(letter for letter in last if letter.isprintable()).lstrip(". ")
    stem, suffix = os.path.splitext(clean)  # noqa: PTH122 - a name, not a path
    return stem[:80] + suffix[:10]


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"More than {max_bytes / 1e6:,.0f} MB, which is the most that this server accepts at once.",
    )
