"""The process: a socket, the server, signals, and an orderly end."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import uvicorn

from binseg.errors import UsageError
from binseg.serve.app import Access, Service, create_app
from binseg.serve.connections import patient_protocol

__all__ = ["Server", "bind", "is_loopback"]

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_KEEP_ALIVE = 5
"""Seconds that a connection without a request is kept."""
_GRACE = 30
"""Seconds beyond `max_seconds` that the end may take."""


class Server:
    """A service on a socket.

    Args:
        service: the models and all around them.
        listener: what `bind` gave; a free port of this machine if left out.
        access: who may use it.
        started: told the address once requests are answered.
    """

    def __init__(
        self,
        service: Service,
        *,
        listener: socket.socket | None = None,
        access: Access | None = None,
        started: Callable[[str], None] = lambda url: None,
    ) -> None:
        limits = service.limits
        self._socket = listener or bind("127.0.0.1", 0)
        host, port = self._socket.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{port}/"
        app = create_app(service, access=_named(access or Access(), host))
        config = uvicorn.Config(
            app,
            http=patient_protocol(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(limits.max_seconds) + _GRACE,
            h11_max_incomplete_event_size=limits.max_head_bytes,
        )
        self._server = _Uvicorn(config, service, lambda: started(self.url))

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`, then finish what was taken.

        A second SIGINT ends at once.
        """
        with self._socket:
            self._server.run([self._socket])

    def stop(self) -> None:
        """Have `run` end, from any thread."""
        self._server.should_exit = True


def _named(access: Access, host: str) -> Access:
    """The names by which a server of this address may be called."""
    own = (*_LOOPBACK, host) if is_loopback(host) or access.hosts else ()
    return replace(access, hosts=(*own, *access.hosts))


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    return host in {"localhost", "::1"} or host.startswith("127.")


class _Uvicorn(uvicorn.Server):
    """Uvicorn's server, which tells when it has started, and ends with code 0 when asked to."""

    def __init__(
        self, config: uvicorn.Config, service: Service, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._tell()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as wishes to end, and not as failures."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {one: signal.signal(one, self.handle_exit) for one in signals}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no new requests."""
        self._service.is_ready = False
        super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before time is spent on models; nobody is let in yet.

    Args:
        host: loopback unless others are to reach the server.
        port: 0 takes a free one.

    Raises:
        UsageError: it isn't to be had.
    """
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
