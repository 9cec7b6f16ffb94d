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

from binseg.serve.capacity import Held
from binseg.serve.limits import Limits
from binseg.serve.refusals import Refusal

__all__ = ["Sent", "chunks_of", "is_form", "plain_name", "read_form", "read_image"]

_FORM_EXTRA = 100_000
"""Bytes that a form may have beside its files."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A file that a client sent."""

    name: str
    """As the client calls it, made harmless: for words and for names inside a ZIP only."""
    data: bytes


async def chunks_of(
    request: Request, *, max_bytes: int, limits: Limits, held: Held | None = None
) -> AsyncGenerator[bytes, None]:
    """Give a body piece by piece.

    Args:
        request: whose body was not read yet.
        max_bytes: of the whole body.
        limits: how slowly it may come.
        held: counts the bytes, where they stay in memory.

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
        if held is not None:
            held.grow(len(chunk))
        if chunk:
            yield chunk


def is_form(request: Request) -> bool:
    """Whether the body is a form with files."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_image(request: Request, *, limits: Limits, held: Held) -> Sent:
    """Read one image: the body itself, or a form's field `file`.

    Raises:
        Refusal: too large, too slow, empty, or a form without that field.
    """
    if is_form(request):
        files = await read_form(
            request, field="file", max_files=1, max_bytes=limits.max_bytes, limits=limits, held=held
        )
        return files[0]
    data = bytearray()
    async for chunk in chunks_of(request, max_bytes=limits.max_bytes, limits=limits, held=held):
        data += chunk
    if not data:
        raise Refusal(
            422, "unreadable_image", "The body is empty; send an image's bytes, or a form."
        )
    return Sent(name="the image", data=bytes(data))


async def read_form(
    request: Request, *, field: str, max_files: int, max_bytes: int, limits: Limits, held: Held
) -> list[Sent]:
    """Read the files of a form.

    Args:
        request: whose body is the form.
        field: the files' name in it; other fields are refused.
        max_files: most files.
        max_bytes: of all files together.
        limits: how slowly it may come, and how large one file may be.
        held: counts the bytes.

    Raises:
        Refusal: too large, too slow, damaged, or without a file.
    """
    stream = chunks_of(request, max_bytes=max_bytes + _FORM_EXTRA, limits=limits, held=held)
    parser = _InMemory(request.headers, stream, max_files=max_files, max_fields=0, max_part_size=1)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(
            400, "bad_form", f"The form can't be read: {error.message.rstrip('.')}."
        ) from None
    except UnicodeError:  # its head names an encoding that isn't one
        raise Refusal(400, "bad_form", "The form can't be read: its text is damaged.") from None
    sent = []
    for name, value in form.multi_items():
        assert isinstance(value, UploadFile), "fields without a file name are refused"
        try:
            if name != field:
                raise Refusal(422, "bad_parameter", f"The form's files must be called {field!r}.")
            data = value.file.read()
        finally:
            value.file.close()
        if len(data) > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        sent.append(Sent(name=plain_name(value.filename or "") or "the image", data=data))
    if not sent:
        raise Refusal(422, "bad_parameter", f"The form has no file in the field {field!r}.")
    return sent


class _InMemory(MultiPartParser):
    """Files stay in memory, where they are counted: no disk is filled on the way."""

    spool_max_size = 0  # SpooledTemporaryFile: 0 means never to disk


def plain_name(name: str) -> str:
    r"""A client's file name without folders, control characters and leading dots.

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
        f"More than {max_bytes / 1e6:,.0f} MB, which is the most that this server takes at once.",
    )
