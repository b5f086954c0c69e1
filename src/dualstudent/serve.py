"""A target behind the Open Inference Protocol v2: for tests, and to try things before a real service pays."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch

from dualstudent.errors import UserError
from dualstudent.ledger import Account
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Target
from dualstudent.targets.strict import read_object

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as _error:
    raise UserError("'serve' needs: pip install 'dualstudent[serve]'") from _error

Datatype = Literal["FP32", "FP16", "UINT8"]
KINDS = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1"}
LARGEST = 256 << 20  # bytes of a request
VERSION = "1"


class Served:
    """A target that answers requests, one at a time, and counts its images.

    With `log`, a line of JSON is written for each answer before it is sent, and what an earlier
    server wrote there counts too.
    """

    def __init__(
        self,
        target: Target,
        *,
        name: str = "target",
        datatype: Datatype = "FP32",
        delay: float = 0.0,
        token: str | None = None,
        log: Path | None = None,
    ) -> None:
        if not name or "/" in name or not name.isprintable():
            raise UserError(f"--name {name}: a name without '/'")
        if not 0 <= delay < 3600:
            raise UserError(f"--delay {delay}: seconds, 0 or more")
        self.name, self.datatype, self.delay, self.token = name, datatype, delay, token
        self.spec, self.hard = target.spec, target.spec.access == Access.LABEL
        self.account = Account("served")
        self.requests, self.images = (0, 0) if log is None else _counted(log)
        self._oracle = Oracle(target, self.account)
        self._worker = ThreadPoolExecutor(1)
        self._log = None
        if log is not None:
            try:
                self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise UserError(f"--log {log}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the log."""
        self._worker.shutdown()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def application(self) -> Starlette:
        """Return what answers the protocol's paths, and /count."""
        models = f"/v2/models/{self.name}"
        both = (models, f"{models}/versions/{VERSION}")
        about = {"name": "dualstudent", "version": "2", "extensions": ["binary_tensor_data"]}
        paths: dict[str, Callable[[], Any]] = {
            "/v2": lambda: about,
            "/v2/health/live": lambda: {"live": True},
            "/v2/health/ready": lambda: {"ready": True},
            "/count": lambda: {"requests": self.requests, "images": self.images},
        }
        for path in both:
            paths |= {path: self.metadata, f"{path}/ready": lambda: {"name": self.name, "ready": True}}
        routes = [Route(path, self._told(what), methods=["GET"]) for path, what in paths.items()]
        routes += [Route(f"{path}/infer", self._infer, methods=["POST"]) for path in both]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    def metadata(self) -> dict[str, Any]:
        """Return what the protocol tells of a model."""
        c, h, w = self.spec.shape
        classes = -1 if self.spec.classes is None else self.spec.classes
        out: dict[str, Any] = {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]}
        if self.hard:
            out = {"name": "labels", "datatype": "INT64", "shape": [-1]}
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "dualstudent",
            "inputs": [{"name": "images", "datatype": self.datatype, "shape": [-1, c, h, w]}],
            "outputs": [out],
        }

    def _told(self, what: Callable[[], Any]) -> Callable[[Request], Any]:
        async def tell(request: Request) -> Response:
            self._allow(request)
            return JSONResponse(what())

        return tell

    def _allow(self, request: Request) -> None:
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            raise HTTPException(401, "a bearer token is needed, this is not it")

    async def _infer(self, request: Request) -> Response:
        self._allow(request)
        start = time.monotonic()
        body = await _body(request)
        work = asyncio.get_running_loop().run_in_executor(self._worker, self._answer, body, request.headers)
        try:
            response = await work
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        if self.delay:
            await asyncio.sleep(max(0.0, start + self.delay - time.monotonic()))
        return response

    def _answer(self, body: bytes, headers: Any) -> Response:
        """Answer one request, and note it. Raises UserError."""
        length = headers.get("inference-header-content-length")
        if length is not None and not (length.isdecimal() and int(length) <= len(body)):
            raise UserError("Inference-Header-Content-Length is not the length of the JSON")
        head = body if length is None else body[: int(length)]
        asked = read_object(head, "the request")
        images = self._images(asked, body[len(head) :])
        rows = self._oracle(torch.from_numpy(images))
        values: npt.NDArray[Any] = (rows.argmax(1) if self.hard else rows).numpy()
        [out] = self.metadata()["outputs"]
        out = {"name": out["name"], "datatype": out["datatype"], "shape": list(values.shape)}
        answer = {"model_name": self.name, "model_version": VERSION}
        answer |= {"id": asked["id"]} if isinstance(asked.get("id"), str) else {}
        response = _packed(answer, out, values, binary=_wants_binary(asked))
        self._note(len(images), len(body), len(response.body))
        return response

    def _images(self, asked: dict[str, Any], rest: bytes) -> npt.NDArray[np.float32]:
        """Return the images of a request in the target's bounds. Raises UserError."""
        try:
            [tensor] = asked["inputs"]
            name, datatype, shape = tensor["name"], tensor["datatype"], tuple(tensor["shape"])
            size = tensor.get("parameters", {}).get("binary_data_size")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError("give one input with name, datatype and shape") from None
        if name != "images" or datatype not in KINDS:
            raise UserError(f"the input is 'images' of datatype {', '.join(KINDS)}")
        if shape[1:] != self.spec.shape or not isinstance(shape[0], int) or shape[0] < 1:
            raise UserError(f"the input's shape is [n, {', '.join(map(str, self.spec.shape))}]")
        try:
            if size is None:
                values = np.asarray(tensor["data"], np.float64).astype(np.float32)
            elif size == len(rest):
                values = np.frombuffer(rest, KINDS[datatype]).astype(np.float32)
            else:
                raise UserError(f"binary_data_size is {size}, but {len(rest)} bytes follow the JSON")
            images = values.reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise (
                error if isinstance(error, UserError) else UserError("the data do not fit the shape")
            ) from None
        if datatype != "UINT8":
            return images
        low, high = self.spec.bounds
        return (low + images * np.float32((high - low) / 255)).astype(np.float32)

    def _note(self, images: int, received: int, sent: int) -> None:
        self.requests += 1
        self.images += images
        if self._log is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            line = {"time": now, "images": images, "received": received, "sent": sent}
            os.write(self._log, (json.dumps(line) + "\n").encode())


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise HTTPException(413, f"a request has at most {LARGEST} bytes")
        parts.append(part)
    return b"".join(parts)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


def _wants_binary(asked: dict[str, Any]) -> bool:
    """Return whether the answer is asked for as binary data, by the output or for all of them."""
    with suppress(KeyError, TypeError, AttributeError):
        if asked["outputs"]:
            return bool(asked["outputs"][0].get("parameters", {}).get("binary_data", False))
    parameters = asked.get("parameters")
    return isinstance(parameters, dict) and bool(parameters.get("binary_data_output", False))


def _packed(
    answer: dict[str, Any], out: dict[str, Any], values: npt.NDArray[Any], *, binary: bool
) -> Response:
    if not binary:
        return JSONResponse(answer | {"outputs": [out | {"data": values.ravel().tolist()}]})
    raw = values.astype("<i8" if out["datatype"] == "INT64" else "<f4").tobytes()
    head = json.dumps(answer | {"outputs": [out | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + raw, media_type="application/octet-stream", headers=headers)


def _counted(log: Path) -> tuple[int, int]:
    """Return the requests and images of a log; a line that was cut off is ended, and not counted."""
    if not log.is_file():
        return 0, 0
    lines = log.read_bytes().splitlines(keepends=True)
    try:
        images = [int(json.loads(line)["images"]) for line in lines if line.endswith(b"\n")]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--log {log} is no log of served requests: choose another file") from error
    if lines and not lines[-1].endswith(b"\n"):
        log.write_bytes(b"".join(lines[:-1]))
    return len(images), sum(images)


def serve(
    served: Served, *, host: str = "127.0.0.1", port: int = 8000, ready: Callable[[str], None] = print
) -> None:
    """Serve until SIGTERM or SIGINT, after what is being answered; tell `ready` the model's address.

    Raises UserError where the port is not to be had.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: 0 to 65535")
    with ExitStack() as stack:
        stack.callback(served.close)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # the protocol is named: only then does asyncio send answers without the kernel's 40 ms delay
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(128)  # who reads the address may connect at once
        except OSError as error:
            raise UserError(f"cannot serve at {host}:{port}: {error.strerror}") from error
        config = uvicorn.Config(
            served.application(), log_level="warning", access_log=False, timeout_graceful_shutdown=10
        )
        server = _Server(config)
        stack.enter_context(server.ending())
        place = f"[{host}]" if ":" in host else host
        ready(f"http://{place}:{sock.getsockname()[1]}/v2/models/{quote(served.name)}")
        server.run(sockets=[sock])


class _Server(uvicorn.Server):
    """Uvicorn's server, which a signal ends without being raised again."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    @contextmanager
    def ending(self) -> Any:
        """Let SIGTERM and SIGINT end it, where this is the main thread."""

        def end(number: int, frame: Any) -> None:
            self.should_exit = True

        before = {}
        with suppress(ValueError):
            before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
