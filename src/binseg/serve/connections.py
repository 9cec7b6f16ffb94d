"""HTTP connections with clients that dribble, stall, or never finish."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from binseg.serve.limits import Limits
from binseg.serve.refusals import Refusal

__all__ = ["patient_protocol"]


class _PatientProtocol(H11Protocol):
    """Uvicorn's protocol, with an end to all waiting for the client.

    Uvicorn limits how long an idle connection is kept. This class limits as well how long the head
    of a request may take, how long the rest of a refused body is waited for, and how long a client
    may not read its answer. How slowly a body may come is looked after where it is read.
    """

    limits: Limits

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that any unread byte calls pause_writing
        self._wait_for_client()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that isn't whole yet has no more time than before."""
        super().data_received(data)
        if self._is_in_work():
            self._stop_reading()
        else:
            self._wait_for_client()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that was refused."""
        super().on_response_complete()
        if not self._is_in_work() and self.conn.their_state is h11.SEND_BODY:
            self._unset_keepalive_if_required()
            self._wait_for_client()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._writing is None:
            self._look_at_unsent(None)

    def _look_at_unsent(self, before: int | None) -> None:
        """Go on waiting for a client that has read something since; a large answer takes long."""
        unsent, seconds = self.transport.get_write_buffer_size(), self.limits.send_seconds
        # As slowly as a body may come; who reads a byte now and then holds its answer for ever.
        if before is not None and before - unsent < min(before, self.limits.min_rate * seconds):
            self._abort()
            return
        self._writing = self.loop.call_later(seconds, self._look_at_unsent, unsent)

    def resume_writing(self) -> None:
        """Stop to wait: it has read."""
        super().resume_writing()
        self._stop_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._stop_reading()
        self._stop_writing()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too long a head, as everything else is refused."""
        body = bytes(Refusal(400, "bad_request", msg).answer().body)
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

    def _is_in_work(self) -> bool:
        """Whether a request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _wait_for_client(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self.limits.head_seconds, self._abort)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _abort(self) -> None:
        self.transport.abort()


def patient_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class for a server of these limits."""
    return type("PatientProtocol", (_PatientProtocol,), {"limits": limits})
