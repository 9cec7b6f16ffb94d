"""A client's parameters and body: never more than is allowed, and never for ever."""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from binseg.inference.predict_options import PredictOptions
from binseg.serve.limits import Limits, Reservation
from binseg.serve.refusals import Refusal

Output = Literal["mask", "probability", "overlay", "cutout", "json"]
UNNAMED = "the image"
_MOST_AREA = 10**12
_FORM_EXTRA = 100_000  # Bytes that a form may have beside its files


class Wanted(BaseModel):
    """The parameters that all routes of prediction share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    model: Annotated[str | None, Field(max_length=200)] = None
    """Id or name of a model (`/v1/models`); the first one if left out."""
    threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    """A pixel is in the mask where its probability is above this; the model's own if left out."""
    min_area: Annotated[int | None, Field(ge=0, le=_MOST_AREA)] = None
    """Smaller objects are removed, in pixels; the model's own if left out, as with the next two."""
    fill_holes: Annotated[int | None, Field(ge=0, le=_MOST_AREA)] = None
    """Holes of up to so many pixels are filled."""
    largest_only: bool | None = None
    """Only the largest object stays."""

    def options(self) -> PredictOptions:
        """The settings that were asked for; the rest is left to the model."""
        return PredictOptions(**self.model_dump(exclude={"model", "output", "quality"}))


class Judged(Wanted):
    """The parameters of what is answered at once."""

    quality: bool = True
    """False saves the time of judging the mask (header X-Binseg-Quality, and in JSON)."""


class PredictQuery(Judged):
    """The parameters of `/v1/predict`."""

    output: Output | None = None
    """The result: a PNG (mask: 0 and 255; probability: times 255; overlay; cutout with
    transparency), or JSON with objects, polygons and run lengths. If left out, `Accept` decides:
    application/json gives json, anything else the mask."""


class JobQuery(Wanted):
    """The parameters of `/v1/jobs`."""

    output: Output = "mask"
    """As for `/v1/predict`. Stacks, and images above 64 megapixels, come as a TIFF of mask or
    probability."""


Predicting = Annotated[PredictQuery, Query()]
Working = Annotated[JobQuery, Query()]
Asking = Annotated[Judged, Query()]


def output_of(query: PredictQuery, request: Request) -> Output:
    """Tell what comes back, by the parameter or else by the header Accept."""
    if query.output is not None:
        return query.output
    kind = media_of(request, ("image/png", "application/json"))
    return "json" if kind == "application/json" else "mask"


def media_of(request: Request, offered: tuple[str, ...]) -> str:
    """Choose the offered media type that a client likes best; the first one where all are alike."""
    accept = request.headers.get("accept", "").strip() or "*/*"
    best = max(offered, key=lambda media: _quality(accept, media))
    if _quality(accept, best) == 0:
        told = f"This comes as {' or '.join(offered)}; Accept excludes those."
        raise Refusal(406, "not_acceptable", told)
    return best


def _quality(accept: str, media: str) -> float:
    """Tell how much a client likes a media type, from 0 to 1: the most exact mention counts."""
    ranges = ("*/*", f"{media.partition('/')[0]}/*", media)
    found = (-1, 0.0)
    for part in accept.lower().split(","):
        kind, *settings = (piece.strip() for piece in part.split(";"))
        asked = next((one for one in settings if one.startswith("q=")), "q=1")
        try:
            quality = min(1.0, max(0.0, float(asked[2:])))
        except ValueError:
            quality = 0.0
        if kind in ranges and ranges.index(kind) > found[0]:
            found = (ranges.index(kind), quality)
    return found[1]


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that a client sent."""

    name: str  # Made harmless: for messages and names inside a ZIP only
    data: bytes


async def chunks_of(
    request: Request, *, max_bytes: int, limits: Limits, reserved: Reservation | None = None
) -> AsyncGenerator[bytes, None]:
    """Give an unread body by pieces; refuse too many bytes (413), or too few a second (408)."""
    _check_size(declared_bytes(request), max_bytes)
    start, total, more = time.monotonic(), 0, True
    while more:
        until = start + limits.head_seconds + total / limits.min_rate
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            told = f"The body came too slowly: {total} bytes so far."
            raise Refusal(408, "too_slow", told) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        total += len(chunk)
        _check_size(total, max_bytes)
        if reserved is not None:
            reserved.grow(len(chunk))
        if chunk:
            yield chunk


def declared_bytes(request: Request) -> int:
    """Give the size that a body says to have; 0 where it says none."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


def is_form(request: Request) -> bool:
    """Tell whether the body is a form with files."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_uploads(
    request: Request, *, limits: Limits, reserved: Reservation, many: bool = False
) -> list[Upload]:
    """Read one image, the body itself or a form's field `file`; or a form's many fields `files`."""
    if not many and not is_form(request):
        chunks = chunks_of(request, max_bytes=limits.max_bytes, limits=limits, reserved=reserved)
        data = b"".join([chunk async for chunk in chunks])
        if not data:
            told = "The body is empty; send an image's bytes, or a form."
            raise Refusal(422, "unreadable_image", told)
        return [Upload(name=UNNAMED, data=data)]
    field = "files" if many else "file"
    max_bytes = (4 if many else 1) * limits.max_bytes + _FORM_EXTRA
    stream = chunks_of(request, max_bytes=max_bytes, limits=limits, reserved=reserved)
    max_files = limits.max_files if many else 1
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
        _check_size(len(data), limits.max_bytes)
        uploads.append(Upload(name=plain_name(value.filename or "") or UNNAMED, data=data))
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


def _check_size(num_bytes: int, most: int) -> None:
    if num_bytes > most:
        told = f"More than {most / 1e6:,.0f} MB, which is the most that this server accepts at once"
        raise Refusal(413, "too_large", f"{told}.")
