"""A service over real sockets, in a thread, whose bytes a test writes: nothing checks them."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

MODEL: dict[str, Any] = {
    "name": "toy",
    "versions": ["1"],
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 4]}],
}


def said(value: Any) -> bytes:
    """Return a whole answer of status 200."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def rough(infer: Callable[[socket.socket], None], model: Any = MODEL) -> Iterator[str]:
    """Serve a model's metadata, and let `infer` write the answers to questions; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = list[threading.Thread]()

        def serve(connection: socket.socket) -> None:
            with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
                while line := lines.readline():
                    path, length = line.split()[1].decode(), 0
                    while (header := lines.readline()) not in (b"\r\n", b""):
                        if header.lower().startswith(b"content-length:"):
                            length = int(header.split(b":")[1])
                    lines.read(length)
                    if path.endswith("/infer"):
                        infer(connection)
                    else:
                        connection.sendall(said(model if path.endswith("/toy") else {}))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threads.append(threading.Thread(target=serve, args=listening.accept()[:1], daemon=True))
                    threads[-1].start()

        door = threading.Thread(target=accept, daemon=True)
        door.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v2/models/toy"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            door.join()
