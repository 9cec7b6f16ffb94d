"""What every request meets first (host, origin, token), and what every answer gets."""

import hmac
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from binseg.serve.refusals import Refusal

__all__ = ["Guard"]

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=(), payment=(), usb=()",
}
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
_OPEN = ("/healthz", "/readyz", "/static/")
"""The page must be there to ask for the token; probes of health bring none."""
Told = Callable[[str, str, int, float], None]


class Guard:
    """An ASGI application around another one.

    Args:
        app: what answers whoever gets through.
        token: what requests must bear; None for no token.
        hosts: host names by which the server may be called; empty for any. It keeps a web page
            whose name suddenly means 127.0.0.1 (DNS rebinding) from using a server on the visitor's
            machine.
        origins: of other web pages that may use the server.
        max_head_bytes: of a request's address and headers together.
        told: hears route, method, status and seconds of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Sequence[str],
        origins: Sequence[str],
        max_head_bytes: int,
        told: Told,
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(host.lower() for host in hosts)
        self._own = self._hosts - _LOOPBACK
        self._origins = frozenset(origins)
        self._max_head_bytes = max_head_bytes
        self._told = told

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
        try:
            if refusal is not None:
                await refusal.answer()(scope, receive, guarded)
            else:
                await self._app(scope, receive, guarded)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            seconds = time.perf_counter() - start
            self._told(route, _method(scope["method"]), status, seconds)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if _head_bytes(scope) > self._max_head_bytes:
            return Refusal(
                431,
                "head_too_large",
                f"Address and headers have more than {self._max_head_bytes} bytes.",
            )
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A name can be made to lead here by whoever owns it, a number can't.
        if self._hosts and _name_of(host) not in self._hosts and not _is_number(_name_of(host)):
            return Refusal(
                403,
                "wrong_host",
                "This server isn't called by that name; --allow-host NAME adds one.",
            )
        origin = headers.get("origin")
        if origin is not None and not self._may_use(origin, host):
            return Refusal(
                403, "wrong_origin", "That web page may not use this server; --cors lists who may."
            )
        if self._token is None or self._is_open(scope):
            return None
        if not _bears(headers.get("authorization", ""), self._token):
            return Refusal(
                401,
                "token",
                "A token is needed: send the header Authorization: Bearer TOKEN.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _may_use(self, origin: str, host: str) -> bool:
        """Whether a page of this origin is listed, or one of this very server."""
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        # A proxy may call the server by another name than its visitors do.
        is_own = place != "" and (place == host.lower() or _name_of(place) in self._own)
        return is_own or "*" in self._origins or origin.lower() in self._origins

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        path: str = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith(_OPEN))


def _head_bytes(scope: Scope) -> int:
    address = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    return address + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _bears(header: str, token: bytes) -> bool:
    """Whether the header holds the token; the time it takes tells nothing of how near it came."""
    kind, _, given = header.partition(" ")
    is_equal = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
    return kind.lower() == "bearer" and is_equal


def _name_of(host: str) -> str:
    """The host's name without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _is_number(name: str) -> bool:
    """Whether a host is called by its address."""
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _method(method: str) -> str:
    """One of a few names: clients may invent methods, and each would be a line of the figures."""
    return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
