"""One HTTP client for all services: requests in flight, paced, asked again; secrets are not repeated."""

import contextlib
import logging
import os
import random
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from dualstudent.errors import Later, Refused, Stopped, TargetError, UserError
from dualstudent.spec import Traffic
from dualstudent.targets.strict import message, plain, retry_after
from dualstudent.targets.wire import Secrets, ServiceOptions

try:
    import httpx2
except ImportError as _error:
    raise UserError("targets over HTTP need: pip install 'dualstudent[http]'") from _error
from dualstudent.targets.deadline import Deadline

T = TypeVar("T")
AGAIN = (429, 502, 503, 504)  # what a service says when it may answer later
BROKEN = ("timeout", "reset", "502", "504")  # the service may have answered, and charge for it
LONGEST = 60.0  # seconds of a pause of our own
PATIENCE = 3600.0  # seconds of a pause that a service may ask for
GRACE = 5.0  # seconds that a run which is to stop waits for a question that is under way
SLACK = 0.05  # seconds that a late request may catch up, so that the rate is met and not only kept below
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A whole answer of status 200."""

    body: bytes
    kind: str  # its content type
    headers: Any


class _Abandoned(Exception):
    """The question that a request belongs to has ended otherwise."""


class _Failed(Exception):
    """A request that may be asked again."""

    def __init__(self, status: str, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.why, self.after = status, why, after


class Transport:
    """Keeps connections to one service and counts what goes over them.

    `wish` says whether the run is to stop: then a question is waited for some seconds more, and ends
    in Stopped.
    """

    def __init__(self, options: ServiceOptions, url: str) -> None:
        self.options, self.traffic = options, Traffic()
        self.wish: Callable[[], bool] = lambda: False
        self.secrets = Secrets(options, os.environ)
        try:
            self.url = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise UserError(f"the target's address is none: {error}") from None
        if self.secrets.headers:
            log.info("%s: sends %s", self.place, self.secrets)
        self.client = httpx2.Client(
            headers=[("User-Agent", "dualstudent"), ("Accept-Encoding", "identity"), *self.secrets.headers],
            verify=_trusted(options.ca_file),
            timeout=httpx2.Timeout(options.timeout, pool=None),
            limits=httpx2.Limits(
                max_connections=options.concurrency,
                max_keepalive_connections=options.concurrency,
                keepalive_expiry=60.0,
            ),
            trust_env=self.url.host not in ("localhost", "127.0.0.1", "::1"),  # no proxy to ourselves
        )
        self._deadline = Deadline()
        self._deadline.governs(self.client)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._next = self._hold = self._said = 0.0  # monotonic: the next turn, no turn before, last told
        self._dice = random.Random()  # the pauses', which no seed of a run may know of
        self.close = weakref.finalize(self, _close, self.client, self._jobs, options.concurrency)

    def each(self, works: Sequence[Callable[[threading.Event], T]]) -> Iterator[tuple[int, T]]:
        """Start all works now, `concurrency` at a time, and yield (index, result) as they end.

        A work that fails ends the question: those under way are waited for and yielded, then the
        error is raised.
        """
        gone, done = threading.Event(), SimpleQueue[tuple[int, T | None, BaseException | None]]()

        def job(index: int, work: Callable[[threading.Event], T]) -> None:
            try:
                if gone.is_set():
                    raise _Abandoned
                done.put((index, work(gone), None))
            except BaseException as error:
                gone.set()
                done.put((index, None, error))

        while len(self._threads) < min(self.options.concurrency, len(works)):
            name = f"dualstudent request {len(self._threads) + 1}"
            thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        for index, work in enumerate(works):
            self._jobs.put(lambda index=index, work=work: job(index, work))  # type: ignore[misc]
        return self._drain(len(works), gone, done)

    def _drain(self, count: int, gone: threading.Event, done: Any) -> Iterator[tuple[int, Any]]:
        wrong: BaseException | None = None
        try:
            while count:
                found = self._await(done, gone)
                if found is None:
                    wrong = wrong or Stopped("stopped while the service was awaited")
                    continue
                count -= 1
                index, value, error = found
                if error is None:
                    yield index, value
                elif not isinstance(error, _Abandoned):
                    wrong = wrong or error
            if wrong is not None:
                raise wrong
        finally:
            gone.set()

    def _await(self, done: Any, gone: threading.Event) -> Any:
        """Return the next that is done; None once, where a run that is to stop has waited enough."""
        start, wished = time.perf_counter(), 0.0
        try:
            while True:
                with contextlib.suppress(Empty):
                    return done.get(timeout=0.1)
                if self.wish() and not gone.is_set():
                    wished = wished or time.monotonic()
                    if time.monotonic() - wished > GRACE:
                        gone.set()  # nothing more is begun; what is under way is paid, and waited for
                        return None
        finally:
            self.traffic.waiting += time.perf_counter() - start

    def ask(
        self,
        path: str,
        *,
        content: bytes | None = None,
        headers: Sequence[tuple[str, str]] = (),
        images: int = 0,
        limit: int,
        gone: threading.Event | None = None,
        sending: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Return the answer to one request (POST with content, else GET), asked again where that may help.

        `sending` is called whenever it is sent, after any turn that it has to wait for. Raises
        TargetError with the service's words, cleaned of secrets; Later.
        """
        gone, attempt = gone or threading.Event(), 0
        while True:
            self._turn(images, gone)
            sending()
            try:
                return self._once(self.url.join(path), content, headers, limit)
            except _Failed as failure:
                attempt += 1
                self._count(failure.status)
                if failure.after > PATIENCE:
                    wait = f"wait {failure.after / 3600:.1f} hours ({failure.why})"
                    raise Later(f"{self.place} asks to {wait}") from None
                if attempt > self.options.retries or (failure.status == "refused" and not images):
                    tries = f"tried {attempt} times, the last: " if attempt > 1 else ""
                    raise Later(f"{self.place} does not answer ({tries}{failure.why})") from None
                with self._lock:
                    self.traffic.retried += 1
                    self.traffic.failed_images += images
                    self.traffic.broken_off += images if failure.status in BROKEN else 0
                self._rest(failure, attempt, gone)

    def about(self, error: TargetError, body: bytes) -> TargetError:
        """Return an error about an answer without what must not be repeated."""
        if self.secrets.among(body):
            return TargetError(f"{self.place} repeats a secret in an answer that is none: it is not shown")
        return TargetError(self.secrets.hide(str(error)))

    @property
    def place(self) -> str:
        """Scheme, host and port, to name in messages."""
        return f"{self.url.scheme}://{self.url.netloc.decode()}"

    def _rest(self, failure: _Failed, attempt: int, gone: threading.Event) -> None:
        """Wait before a request is asked again; a pause that the service asks for is kept by all."""
        own = min(LONGEST, self.options.pause * 2 ** (attempt - 1)) * self._dice.uniform(0.5, 1.0)
        now = time.monotonic()
        with self._lock:
            self._hold = max(self._hold, now + failure.after)
            speak, self._said = now - self._said > 5, max(self._said, now if now - self._said > 5 else 0)
        pause = max(own, failure.after)
        if speak:
            tries = f"{attempt} of {self.options.retries}"
            log.info("%s: %s; asked again in %.1f s (%s)", self.place, failure.why, pause, tries)
        if gone.wait(pause):
            raise _Abandoned

    def _turn(self, images: int, gone: threading.Event) -> None:
        """Wait for this request's turn under the limit of images a second."""
        while True:
            with self._lock:
                now = time.monotonic()
                at = max(self._next if now - self._next < SLACK else now, self._hold)
                if at <= now:
                    if self.options.rate is not None and images:
                        self._next = at + images / self.options.rate
                    return
            if gone.wait(at - now):
                raise _Abandoned

    def _once(
        self, url: Any, content: bytes | None, headers: Sequence[tuple[str, str]], limit: int, hops: int = 0
    ) -> Reply:
        with self._lock:
            self.traffic.requests += 1
            self.traffic.sent += len(content or b"")
        method = "GET" if content is None else "POST"
        asking = partial(self.client.stream, method, url, content=content, headers=list(headers))
        try:
            with self._deadline.within(self.options.timeout), asking() as response:
                body = self._body(response, limit if response.status_code == 200 else 65536)
        except httpx2.TimeoutException:
            raise _Failed("timeout", f"no answer in {self.options.timeout:g} s") from None
        except httpx2.ConnectError as error:
            if _behind(error, ssl.SSLError):
                raise TargetError(
                    f"{self.place} is not trusted ({plain(str(error), 120)}):"
                    " if its certificate is your own, name it with --ca-file"
                ) from None
            raise _Failed("refused", plain(str(error), 80)) from None
        except httpx2.TransportError as error:
            raise _Failed("reset", f"the answer was cut off: {plain(str(error), 80)}") from None
        status = response.status_code
        if 300 <= status < 400 and status != 304:
            return self._once(self._elsewhere(response, method, hops), content, headers, limit, hops + 1)
        if status in AGAIN:
            raise _Failed(str(status), f"status {status}", retry_after(response.headers.get("retry-after")))
        self._count(str(status))
        if status != 200:
            said = message(body) or "no reason given"
            refused = self.about(TargetError(f"{self.place} refuses with status {status}: {said}"), body)
            raise Refused(str(refused), status)
        return Reply(body, response.headers.get("content-type", ""), response.headers)

    def _body(self, response: Any, limit: int) -> bytes:
        """Return a body, unpacked, of at most `limit` bytes: no compressed one can fill the memory."""
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "", "gzip", "deflate"):
            raise TargetError(
                f"{self.place} answers packed as '{plain(coding, 20)}', which was not asked for"
            )
        unpack = None if coding in ("identity", "") else zlib.decompressobj(47 if coding == "gzip" else 15)
        parts, size = [], 0
        for part in response.iter_raw():
            with self._lock:
                self.traffic.received += len(part)
            try:
                part = part if unpack is None else unpack.decompress(part, limit + 1 - size)
            except zlib.error:
                raise TargetError(f"{self.place} sent a packed answer that cannot be unpacked") from None
            parts.append(part)
            size += len(part)
            if unpack is not None and unpack.unused_data:
                raise TargetError(f"{self.place} sent more behind a packed answer than the answer")
            if size > limit or (unpack is not None and unpack.unconsumed_tail):
                if response.status_code != 200:
                    break  # enough to see why
                raise TargetError(
                    f"{self.place} sent an answer of more than {limit:,} bytes:"
                    " if that is right, raise --answer-limit"
                )
        if unpack is not None and not unpack.eof and response.status_code == 200:
            raise _Failed("reset", "the packed answer was cut off")
        return b"".join(parts)

    def _elsewhere(self, response: Any, method: str, hops: int) -> Any:
        """Return where a redirect leads, if to the same server. Raises TargetError."""
        self._count(str(response.status_code))
        try:
            target = response.url.join(response.headers.get("location", ""))
        except httpx2.InvalidURL:
            raise TargetError(f"{self.place} redirects to an address that is none") from None
        same = (target.scheme, target.host, target.port) == (self.url.scheme, self.url.host, self.url.port)
        keeps = method == "GET" or response.status_code in (307, 308)
        if not same or not keeps or hops >= 3:
            where = self.secrets.hide(
                plain(f"{target.scheme}://{target.netloc.decode(errors='replace')}", 100)
            )
            raise TargetError(
                f"{self.place} redirects to {where}, which is not followed: if it is right, give that address"
            )
        return target

    def _count(self, status: str) -> None:
        with self._lock:
            self.traffic.statuses[status] = self.traffic.statuses.get(status, 0) + 1


def _trusted(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or "no certificate in PEM form"
        raise UserError(f"--ca-file {ca_file!r}: {reason}") from None


def _behind(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # it holds the transport, which must be free to go


def _close(client: Any, jobs: "SimpleQueue[Callable[[], None] | None]", threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)
    client.close()
