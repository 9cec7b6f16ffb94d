"""Every way of saying no: a status, a stable code for programs, one plain sentence for people."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from binseg.errors import BinsegError, DataError, OutputError, UsageError

LOG = logging.getLogger("uvicorn.error")
_BETWEEN_S = 0.25  # Time between two answers that an image is refused
_OF_IMAGES = {"unreadable_image", "stack", "too_many_pixels"}
_SAVED_S = 2.0  # Turns of so many seconds that nobody took are given at once
_LONGEST_DELAY_S = 10.0


class ErrorFacts(BaseModel):
    """The reason of a refusal."""

    code: str  # stable, for programs: too_large, unreadable_image, busy, ..
    message: str  # one sentence for people


class ErrorBody(BaseModel):
    """The body of every response that isn't a success."""

    error: ErrorFacts


class Refusal(Exception):  # noqa: N818 - it is a response, not a failure of ours
    """A response that says no: status of HTTP, stable code, one sentence, further headers."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The refusal as a response of HTTP."""
        return JSONResponse({"error": self.as_dict()}, self.status, headers=self.headers)

    def as_dict(self) -> dict[str, str]:
        """Code and message, as they stand in lists of results."""
        return {"code": self.code, "message": self.message}


_REASONS = {
    400: "the request is not valid HTTP, or its form is damaged",
    401: "a token is needed: send the header Authorization: Bearer TOKEN",
    403: "this page or this host name may not use the server",
    404: "there is nothing of this name here",
    405: "this address doesn't accept that method",
    406: "Accept excludes everything that is offered",
    408: "the request came too slowly",
    409: "the job isn't finished yet",
    413: "more bytes or pixels than the server accepts",
    415: "a body of another kind",
    422: "not an image that can be read, or a parameter out of range",
    429: "the server is busy: try again after the seconds in Retry-After",
    503: "the server isn't ready, or is being stopped",
}
Documented = dict[int | str, dict[str, Any]]


def documented(*statuses: int) -> Documented:
    """Describe refusals for the OpenAPI document."""
    return {one: {"model": ErrorBody, "description": _REASONS[one]} for one in statuses}


DOCUMENTED = documented(400, 401, 403, 408, 413, 422, 429)  # refusals that any route may give


def refusal_of(error: Refusal | BinsegError) -> Refusal:
    """Turn an error of ours into what its client hears."""
    match error:
        case Refusal():
            return error
        case UsageError():
            return Refusal(422, "bad_parameter", _sentence(str(error)))
        case DataError():
            return Refusal(422, "unreadable_image", _sentence(str(error)))
        case OutputError():
            return Refusal(507, "storage", "The server can't keep the result: its disk refused.")
    return Refusal(500, "model", "The model failed; whoever runs the server sees the reason there.")


def add_handlers(app: FastAPI) -> None:
    """Make every failure of an application a refusal.

    Those of bad images come one after the other, so that loops of them starve nobody.
    """
    next_turn = 0.0

    async def wait_for_turn() -> None:
        nonlocal next_turn
        now = time.monotonic()
        turn = min(max(now - _SAVED_S, next_turn), now + _LONGEST_DELAY_S)
        next_turn = turn + _BETWEEN_S
        await asyncio.sleep(max(0.0, turn - now))

    async def refuse(_: Request, error: Exception) -> Response:
        match error:
            case Refusal() | BinsegError():
                refusal = refusal_of(error)
                if refusal is not error and refusal.status >= 500:
                    LOG.error("%s", " ".join(str(error).split()))
                if refusal.code in _OF_IMAGES:
                    await wait_for_turn()
                return refusal.response()
            case RequestValidationError():
                problems = "; ".join(
                    f"{'.'.join(map(str, one['loc'][1:]))[:60] or 'the request'}: "
                    f"{str(one['msg'])[:160]}"
                    for one in error.errors()[:4]
                )
                return Refusal(422, "bad_parameter", _sentence(problems)).response()
            case HTTPException():
                reason = _sentence(_REASONS.get(error.status_code, str(error.detail)))
                code = str(error.detail).lower().replace(" ", "_")
                return Refusal(error.status_code, code, reason, headers=error.headers).response()
            case ClientDisconnect():
                return Response(status_code=400)  # nobody reads it
        return Refusal(500, "internal", "A bug of the server, not your mistake.").response()

    ours = (Refusal, BinsegError, RequestValidationError, HTTPException, ClientDisconnect)
    for kind in (*ours, Exception):
        app.add_exception_handler(kind, refuse)


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")
