"""Every way of saying no: a status, a stable code for programs, one plain sentence for people."""

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

__all__ = ["DOCUMENTED", "Documented", "ErrorAnswer", "Refusal", "add_handlers", "refusal_of"]


class ErrorFacts(BaseModel):
    """What was wrong."""

    code: str
    """Stable, for programs: too_large, unreadable_image, busy, ..."""
    message: str
    """One sentence for people."""


class ErrorAnswer(BaseModel):
    """The body of every answer that isn't a success."""

    error: ErrorFacts


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure of ours
    """An answer that says no.

    Args:
        status: of HTTP.
        code: stable, for programs.
        message: one sentence for people.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    def answer(self) -> JSONResponse:
        """The refusal as a response."""
        return JSONResponse(
            {"error": {"code": self.code, "message": self.message}},
            status_code=self.status,
            headers=self.headers,
        )

    def as_dict(self) -> dict[str, str]:
        """Code and message, as they stand in lists of results."""
        return {"code": self.code, "message": self.message}


_WORDS = {
    400: "the request is not valid HTTP, or its form is damaged",
    401: "a token is needed: send the header Authorization: Bearer TOKEN",
    403: "this page or this host name may not use the server",
    404: "there is nothing of this name here",
    405: "this address doesn't take that method",
    408: "the request came too slowly",
    409: "the job isn't finished yet",
    413: "more bytes or pixels than the server takes",
    415: "a body of another kind",
    422: "not an image that can be read, or a parameter out of range",
    429: "the server is busy: try again after the seconds in Retry-After",
}
Documented = dict[int | str, dict[str, Any]]
DOCUMENTED: Documented = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in _WORDS.items()
    if status in (400, 401, 403, 408, 413, 422, 429)
}
"""For the OpenAPI document: refusals that any route may give."""


def refusal_of(error: BinsegError) -> Refusal:
    """What a client hears of an error of ours."""
    match error:
        case UsageError():
            return Refusal(422, "bad_parameter", _sentence(str(error)))
        case DataError():
            return Refusal(422, "unreadable_image", _sentence(str(error)))
        case OutputError():
            return Refusal(507, "storage", "The server can't keep the answer: its disk refused.")
    return Refusal(500, "model", "The model can't answer; whoever runs the server sees why there.")


def add_handlers(app: FastAPI) -> None:
    """Make every failure of an application a refusal."""

    @app.exception_handler(Refusal)
    async def _refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return error.answer()

    @app.exception_handler(BinsegError)
    async def _ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, BinsegError)
        refusal = refusal_of(error)
        if refusal.status >= 500:
            _log(error)
        return refusal.answer()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return Refusal(422, "bad_parameter", _problems(error)).answer()

    @app.exception_handler(HTTPException)
    async def _plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = _WORDS.get(error.status_code, str(error.detail))
        code = str(error.detail).lower().replace(" ", "_")
        headers = error.headers
        return Refusal(error.status_code, code, _sentence(words), headers=headers).answer()

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, __: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def _bug(_: Request, __: Exception) -> Response:
        return Refusal(500, "internal", "A bug of the server, not your mistake.").answer()


def _log(error: BinsegError) -> None:
    import logging

    logging.getLogger("uvicorn.error").error("%s", " ".join(str(error).split()))


def _problems(error: RequestValidationError) -> str:
    """All wrong parameters in one sentence."""
    lines = []
    for one in error.errors()[:4]:
        name = ".".join(str(part) for part in one["loc"][1:]) or "the request"
        lines.append(f"{name[:60]}: {str(one['msg'])[:160]}")
    return _sentence("; ".join(lines))


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")
