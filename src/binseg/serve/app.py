"""The application: access control around every request, and all routes behind it."""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from ipaddress import ip_address
from typing import TYPE_CHECKING, Union
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from binseg.errors import UsageError
from binseg.serve import job_routes, routes
from binseg.serve.refusals import Refusal, add_handlers

if TYPE_CHECKING:
    from binseg.serve.label_routes import LabelService
    from binseg.serve.service import Service

_LOG = logging.getLogger("binseg.serve")
OWN_ROUTERS = (routes.router, job_routes.router)  # The routes of `binseg serve`
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # Names by which this machine calls itself
_ABOUT = """Finds one kind of thing in images. Every refusal has the body
`{"error": {"code": ..., "message": ...}}`: a stable code, and one sentence for people."""
_FACTS = ("Model", "Threshold", "Size", "Seconds", "Quality", "Pixel-Um")
_READABLE = [f"X-Binseg-{name}" for name in _FACTS]
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=(), payment=(), usb=()",
}
_OPEN = ("/healthz", "/readyz", "/static/")  # No token: the page must ask for it; probes bring none
_SHORTEST_TOKEN = 16
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 4.0
"""A wrong token waits for its refusal; each further one of a client waits twice as long."""
_FORGET_S, _MAX_CLIENTS = 300.0, 10_000
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use a server."""

    token: str | None = field(default=None, repr=False)  # That requests must bear
    hosts: Sequence[str] = ()  # Further names of the server, as by a proxy
    own_names: Sequence[str] = ()
    """Names of the machine itself. Where there are any, or any `hosts`, other names are refused: a
    web page whose name suddenly means 127.0.0.1 (DNS rebinding) can't use a server on its visitor's
    machine."""
    origins: Sequence[str] = ()  # Other web pages that may use it; "*" for any

    def __post_init__(self) -> None:
        token = self.token
        if token is not None and not re.fullmatch("[!-~]+", token):
            raise UsageError(
                "the token is blank or has spaces: a token is one line of plain letters (ASCII)"
            )
        if token is not None and len(token) < _SHORTEST_TOKEN:
            raise UsageError(
                f"the token has {len(token)} characters: give {_SHORTEST_TOKEN} or more, as of "
                'python3 -c "import secrets; print(secrets.token_urlsafe(24))"'
            )


Served = Union["Service", "LabelService"]
"""A service that the application puts behind HTTP."""


def create_app(
    service: Served,
    *,
    access: Access | None = None,
    routers: Sequence[APIRouter] = OWN_ROUTERS,
) -> ASGIApp:
    """Build the ASGI application, for everyone without `access`; its lifespan runs the service."""
    chosen = access or Access()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="binseg",
        version=version("binseg"),
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    add_handlers(app)
    app.mount("/static", routes.PageFiles(directory=routes.PAGE), name="static")
    for router in routers:
        app.include_router(router)
    guarded: ASGIApp = _AccessControl(app, access=chosen, service=service)
    if chosen.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(chosen.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=_READABLE,
        )
    return guarded


class _AccessControl:
    """The first thing that every request meets; it also sets the headers of every response."""

    def __init__(self, app: ASGIApp, *, access: Access, service: Served) -> None:
        self._app = app
        self._token = None if access.token is None else access.token.encode()
        self._hosts = frozenset(name.lower() for name in (*access.own_names, *access.hosts))
        self._listed = frozenset(name.lower() for name in access.hosts).difference(LOOPBACK)
        self._failures: dict[str, tuple[int, float]] = {}  # Wrong tokens: how many, last when
        self._origins = frozenset(access.origins)
        self._max_head_bytes = service.limits.max_head_bytes
        self._answered = service.answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not self._origins:
                    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None and refusal.code == "token":
            await self._slow_down(scope)
        try:
            app = self._app if refusal is None else refusal.response()
            await app(scope, receive, guarded)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            # Clients may invent methods, and each would be a line of the figures.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._answered(route, method, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _name_of(host)
        if _head_bytes(scope) > self._max_head_bytes:
            told = f"Address and headers have more than {self._max_head_bytes} bytes."
            return Refusal(431, "head_too_large", told)
        # A name can be made to lead here by whoever owns it, a number can't.
        if self._hosts and name not in self._hosts and not _is_number(name):
            told = "This server isn't called by that name; --allow-host NAME adds one."
            return Refusal(403, "wrong_host", told)
        if origin is not None and not self._may_use(origin, scope["scheme"], host):
            told = "That web page may not use this server; --cors lists who may."
            return Refusal(403, "wrong_origin", told)
        path: str = scope["path"]
        is_open = scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith(_OPEN))
        if self._token and not is_open and not _bears(headers, self._token):
            told = "A token is needed: send the header Authorization: Bearer TOKEN."
            return Refusal(401, "token", told, headers={"WWW-Authenticate": "Bearer"})
        return None

    def _may_use(self, origin: str, scheme: str, host: str) -> bool:
        """Tell whether a page of this origin is listed, or one of this very server."""
        if "*" in self._origins or origin.lower() in self._origins:
            return True
        page = _origin_of(origin)
        if page is None or page == _origin_of(f"{scheme}://{host}"):
            return page is not None
        # A proxy ends TLS, and may call the server by another name than its visitors do.
        is_usual = page[2] == _DEFAULT_PORTS[page[0]] or page == _origin_of(f"{page[0]}://{host}")
        return page[1] in self._listed and is_usual

    async def _slow_down(self, scope: Scope) -> None:
        """Let a client with a wrong token wait longer each time; log its 1st, 2nd, 4th, 8th ..."""
        if "authorization" not in Headers(scope=scope):
            return
        client, now = (scope.get("client") or ("?",))[0], time.monotonic()
        num, last = self._failures.pop(client, (0, now))
        num = 1 if now - last > _FORGET_S else num + 1
        self._failures[client] = (num, now)  # at the end: the first one is the longest unseen
        if len(self._failures) > _MAX_CLIENTS:
            del self._failures[next(iter(self._failures))]
        if num & (num - 1) == 0:
            _LOG.warning("binseg serve: %d wrong token(s) from %s", num, client)
        await asyncio.sleep(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(num - 1, 16)))


def _origin_of(text: str) -> tuple[str, str, int] | None:
    """Split an origin into scheme, host and port; None where it is none."""
    try:
        parts = urlsplit(text.lower())
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _head_bytes(scope: Scope) -> int:
    address = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    return address + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _bears(headers: Headers, token: bytes) -> bool:
    """Compare in constant time: how long it takes doesn't say how near a guess came."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    is_equal = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
    return kind.lower() == "bearer" and is_equal


def _name_of(host: str) -> str:
    """Give a host's name without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _is_number(name: str) -> bool:
    """Tell whether a host is called by its address."""
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
