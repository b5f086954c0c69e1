"""A time by which a whole request must be over: the client's own limits are of each read and write."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpcore2

PIECE = 1 << 16  # bytes that are written under one limit


class Deadline(httpcore2.NetworkBackend):
    """A network on which all that a thread waits for, in `within`, ends by its deadline.

    Connecting, handshake, writing, interim answers, headers and body count together, so that no service
    can hold a request by a byte now and then.
    """

    def __init__(self) -> None:
        self._inner, self._mine = httpcore2.SyncBackend(), threading.local()

    def governs(self, client: Any) -> None:
        """Put all connections of a client, those through proxies included, on this network."""
        for transport in (client._transport, *client._mounts.values()):  # no public way, as of httpx2 2.16
            if transport is not None:
                transport._pool._network_backend = self

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Begin a request that is over in so many seconds, else in a timeout."""
        self._mine.end = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._mine.end

    def left(self, error: type[Exception], timeout: float | None) -> float | None:
        """Return what is left of a limit. Raises the error where that is nothing."""
        end = getattr(self._mine, "end", None)
        if end is None:
            return timeout
        left: float = end - time.monotonic()
        if left <= 0:
            raise error("the time of the whole request is over")
        return left if timeout is None else min(left, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> "Timed":
        left = self.left(httpcore2.ConnectTimeout, timeout)
        return Timed(self._inner.connect_tcp(host, port, left, local_address, socket_options), self)


class Timed(httpcore2.NetworkStream):
    """A connection whose waits are cut at the deadline."""

    def __init__(self, inner: httpcore2.NetworkStream, clock: Deadline) -> None:
        self._inner, self._clock = inner, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._clock.left(httpcore2.ReadTimeout, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), PIECE):
            left = self._clock.left(httpcore2.WriteTimeout, timeout)
            self._inner.write(buffer[at : at + PIECE], left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None
    ) -> "Timed":
        left = self._clock.left(httpcore2.ConnectTimeout, timeout)
        return Timed(self._inner.start_tls(ssl_context, server_hostname, left), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
