"""The process: a socket, connections with an end to all waiting, signals, and an orderly end."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import APIRouter
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from binseg.errors import UsageError
from binseg.parallel import heard
from binseg.serve.app import LOOPBACK, OWN_ROUTERS, Access, Served, create_app
from binseg.serve.limits import Limits
from binseg.serve.refusals import Refusal

_KEEP_ALIVE = 5  # seconds for which a connection without a request is kept
_GRACE = 5  # seconds for accepted requests at the end; what takes longer is given up
_RESERVE = 8  # connections beyond the limit, for probes of health alone
_OTHER_FILES = 200  # descriptors for everything that is no connection


class Server:
    """A service on `bind`'s socket, or a free port; `started` gets the address once it answers."""

    def __init__(
        self,
        service: Served,
        *,
        listener: socket.socket | None = None,
        access: Access | None = None,
        routers: Sequence[APIRouter] = OWN_ROUTERS,
        started: Callable[[str], None] = lambda url: None,
    ) -> None:
        limits, access = service.limits, access or Access()
        self._socket = listener or bind("127.0.0.1", 0)
        host, port = self._socket.getsockname()[:2]
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://[{here}]:{port}/" if ":" in here else f"http://{here}:{port}/"
        if is_loopback(host) or access.hosts or access.token is None:
            access = replace(access, own_names=(*LOOPBACK, *_machine_names(host)))
        waiting: dict[_PatientProtocol, None] = {}
        settings = {"limits": limits, "most": _raise_descriptors(limits), "waiting": waiting}
        config = uvicorn.Config(
            create_app(service, access=access, routers=routers),
            http=type("Protocol", (_PatientProtocol,), settings),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GRACE,
            h11_max_incomplete_event_size=limits.max_head_bytes,
        )
        self._server = _Uvicorn(config, service, lambda: started(self.url))

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`, then finish what was accepted."""
        with self._socket:
            self._server.run([self._socket])

    def stop(self) -> None:
        """Have `run` end, from any thread."""
        self._server.should_exit = True


def network_address(host: str) -> str | None:
    """The address by which other machines reach a server that listens on `host`, if they do."""
    if is_loopback(host):
        return None
    if host not in ("0.0.0.0", "::"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address of nobody
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if is_loopback(address) else address


def is_loopback(host: str) -> bool:
    """Tell whether an address reaches this machine alone."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _machine_names(host: str) -> tuple[str, ...]:
    """Names by which a server on an address is called; its numbers need not be listed."""
    if is_loopback(host):
        return (host,)
    name = socket.gethostname().lower()
    return (host, name, f"{name.partition('.')[0]}.local")  # multicast DNS


def bind(host: str, port: int) -> socket.socket:
    """Take an address before time is spent on models (port 0: a free one); or UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"can't listen on {host} port {port}: {reason.lower()}; choose another --port or --host"
        ) from None
    return listener


def _raise_descriptors(limits: Limits) -> int:
    """Allow as many descriptors as connections need, and give how many connections that are."""
    import resource

    wanted = limits.connections + _RESERVE + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    has_room = soft == resource.RLIM_INFINITY or soft >= wanted
    return limits.connections if has_room else max(1, soft - _RESERVE - _OTHER_FILES)


def _health_only(app: Any) -> ASGIApp:
    """Make the application of a connection beyond the last: it says how the server is, no more."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/healthz", "/readyz"):
            headers = {"Retry-After": "1", "Connection": "close"}
            refusal = Refusal(429, "busy", "The server has too many connections.", headers=headers)
            await refusal.response()(scope, receive, send)
        else:
            await app(scope, receive, send)

    return limited


class _Uvicorn(uvicorn.Server):
    """Uvicorn's server, which says when it has started, and ends with code 0 when asked to."""

    def __init__(
        self, config: uvicorn.Config, service: Served, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_start()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Take SIGINT and SIGTERM as wishes to end, and not as failures."""
        return heard(self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Accept no new requests."""
        self._service.is_ready = False
        super().handle_exit(sig, frame)


class _PatientProtocol(H11Protocol):
    """Uvicorn's protocol, with an end to all waiting for the client.

    Uvicorn's settings limit neither how long a head may take, nor how long the rest of a refused
    body is awaited, nor how long a client may leave its response unread. Without this class a
    connection that sends nothing stays for ever: 4 of the 21 tests in `test_connections.py` fail.
    """

    limits: Limits
    most: int  # connections that are open at once, one more being for probes of health
    waiting: dict["_PatientProtocol", None]  # Connections without a request, oldest first

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request; one connection too many costs the one that has waited longest."""
        super().connection_made(transport)
        if len(self.connections) > self.most and self.waiting:
            longest = next(iter(self.waiting))
            del self.waiting[longest]  # it goes later, and the next costs another
            longest.transport.abort()
        elif len(self.connections) > self.most + _RESERVE:
            transport.abort()
        elif len(self.connections) > self.most:
            self.app = _health_only(self.app)
        transport.set_write_buffer_limits(high=0)  # so that any unread byte calls pause_writing
        self._await_client()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that isn't whole yet has no more time than before."""
        super().data_received(data)
        if self._is_in_work:
            self._stop("read")
            self.waiting.pop(self, None)
        else:
            self._await_client()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that was refused."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if not self._is_in_work:
            self.waiting[self] = None
        if not self._is_in_work and self.conn.their_state is h11.SEND_BODY:
            self._unset_keepalive_if_required()
            self._await_client()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if "write" not in self._timers:
            self._check_unsent(None)

    def _check_unsent(self, before: int | None) -> None:
        """Go on waiting for a client that has read enough since; a large response takes long."""
        unsent, seconds = self.transport.get_write_buffer_size(), self.limits.send_seconds
        # As slowly as a body may come; who reads a byte now and then holds a response for ever.
        if before is not None and before - unsent < min(before, self.limits.min_rate * seconds):
            self.transport.abort()
        else:
            self._timers["write"] = self.loop.call_later(seconds, self._check_unsent, unsent)

    def resume_writing(self) -> None:
        """Stop waiting: the client has read."""
        super().resume_writing()
        self._stop("write")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self.waiting.pop(self, None)
        self._stop("read")
        self._stop("write")
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too long a head, as everything else is refused."""
        body = bytes(Refusal(400, "bad_request", msg).response().body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _is_in_work(self) -> bool:
        """A request is being answered; `cycle` is None before the first one."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _await_client(self) -> None:
        self.waiting[self] = None
        if "read" not in self._timers:
            seconds = self.limits.head_seconds
            self._timers["read"] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
