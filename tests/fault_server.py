"""A service over real sockets that fails as a script says: `python fault_server.py script.json`.

It speaks OIP v2 (JSON and binary tensors) and a plain JSON service at /predict, about a small
deterministic model, and needs numpy only, so that it starts in no time. The script, a JSON object:

    "port"     0 for any; the line "listening on http://127.0.0.1:PORT" is printed
    "model"    {"name", "shape", "classes", "seed", "output", "layout", "datatype", "versions"}
    "binary"   whether the extension is offered (default true)
    "delay"    seconds of every answer
    "token"    what the header Authorization: Bearer … must hold
    "tls"      [certificate, key]: PEM files, then it speaks https
    "log"      file that gets a line {"number", "images", "fault"} for each answer computed
    "faults"   {"3": fault, …} by number of the inference request, from 1; "*" for all others
    "pages"    {"/v2": fault, …}: what a GET of a path is answered instead
    "share"    {"of": 0.05, "seed": 1, "faults": [fault, …]}: a share of all requests fails

A fault is an object of: "status", "headers", "body" (text) and "type": that answer; "wait": seconds
before the answer; "drip": seconds between its bytes; "cut": so many bytes of it; "reset": "before" it is
computed or "after"; "bomb": MiB, packed; "huge": MiB; "exit": the server is gone; "metadata": its
metadata change from here on; and, of the answer itself, "id", "version", "datatype", "shape", "rows"
(more or fewer), "classes" (more), "values" (nan, negative, unnormalised, label, text), "twice", "deep",
"name". No fault is counted as an answer but those after it was computed.
"""

import base64
import gzip
import io
import json
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from fault_model import Model, damaged

KINDS = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1", "INT64": "<i8", "FP64": "<f8", "INT32": "<i4"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        server, model, path = self.server, self.server.model, self.path
        at = f"/v2/models/{model.name}"
        if not self.allowed():
            return
        if path in server.script.get("pages", {}):
            self.instead(server.script["pages"][path])
        elif path == "/v2":
            extensions = ["binary_tensor_data"] if server.binary else []
            self.answer({"name": "fault server", "version": "1", "extensions": extensions})
        elif path in ("/v2/health/ready", "/v2/health/live") or (
            path.startswith(at) and path.endswith("/ready")
        ):
            self.reply(200, b"")
        elif path == "/count":
            self.answer({"requests": server.requests, "images": server.images, "seen": server.number})
        elif path == at or path.startswith(at + "/versions/"):
            self.answer(model.metadata() | server.changed)
        else:
            self.answer({"error": f"no such path {path[:50]}"}, status=404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/script":
            self.server.changes(json.loads(body))
            self.reply(200, b"")
        elif self.allowed():
            self.ask(body)

    def instead(self, fault: dict[str, Any]) -> None:
        headers = {"Content-Type": fault.get("type", "application/json"), **fault.get("headers", {})}
        self.reply(fault.get("status", 200), fault.get("body", "").encode(), headers)

    def ask(self, body: bytes) -> None:
        number, fault = self.server.next_fault()
        self.server.changed |= fault.get("metadata", {})
        if fault.get("exit"):
            os._exit(1)
        time.sleep(fault.get("wait", 0) + self.server.delay)
        if fault.get("reset") == "before":
            self.reset()
            return
        if "status" in fault or "body" in fault:
            self.instead(fault)
            return
        if "bomb" in fault:
            packed = gzip.compress(bytes(fault["bomb"] << 20))
            self.reply(200, packed, {"Content-Encoding": "gzip", "Content-Type": "application/json"})
            return
        if "huge" in fault:
            self.reply(200, b"[" + b" " * (fault["huge"] << 20), {"Content-Type": "application/json"})
            return
        if self.path.endswith("/infer"):
            images, content, headers = self.infer(body, fault)
        else:
            images, content, headers = self.predict(body, fault)
        self.server.answered(number, images, fault)
        if fault.get("reset") == "after":
            self.reset()
            return
        self.reply(200, content, headers, fault)

    def allowed(self) -> bool:
        said = self.headers.get("Authorization", "")
        if self.server.token is None or said == f"Bearer {self.server.token}":
            return True
        self.answer({"error": f"wrong token\n\x1b[31m{said}"}, status=401)
        return False

    def infer(self, body: bytes, fault: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        asked = json.loads(body[:length])
        tensor, model = asked["inputs"][0], self.server.model
        kind = np.dtype(KINDS[tensor["datatype"]])
        raw = np.frombuffer(body[length:], kind) if "data" not in tensor else np.array(tensor["data"], kind)
        x = raw.reshape(tensor["shape"])
        x = x / 255 if tensor["datatype"] == "UINT8" else x
        rows = model(x if model.layout == "nchw" else x.transpose(0, 3, 1, 2))
        rows = damaged(rows, fault)
        shape = fault.get("shape", list(rows.shape))
        datatype = fault.get("datatype", "INT64" if rows.dtype == "<i8" else "FP32")
        out: dict[str, Any] = {"name": fault.get("name", "output"), "datatype": datatype, "shape": shape}
        about = {"model_name": model.name, "model_version": fault.get("version", model.versions[-1])}
        if "id" in asked:
            about["id"] = fault.get("id", asked["id"])
        wants = asked.get("outputs", [{}])[0].get("parameters", {}).get("binary_data", False)
        if fault.get("values") == "text":
            out["data"] = ["cat"] * len(rows)
            wants = False
        elif not wants:
            out["data"] = rows.ravel().tolist()
        if not wants:
            text = json.dumps(about | {"outputs": [out]})
            if fault.get("twice"):
                text = text[:-1] + ', "outputs": []}'
            if fault.get("deep"):
                text = '{"outputs": ' + "[" * 200_000 + "]" * 200_000 + "}"
            return len(x), text.encode(), {"Content-Type": "application/json"}
        content = rows.astype(KINDS.get(datatype, rows.dtype)).tobytes()
        out["parameters"] = {"binary_data_size": len(content)}
        head = json.dumps(about | {"outputs": [out]}).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }
        return len(x), head + content, headers

    def predict(self, body: bytes, fault: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        """Answer {"instances": [image, …]} by {"predictions": [row, …]}, {"image": …} by scores by name.

        An image is nested lists of its layout, base64 of float32 or base64 of a PNG.
        """
        asked, model = json.loads(body), self.server.model
        single = "image" in asked
        x = np.stack([self.image(value) for value in ([asked["image"]] if single else asked["instances"])])
        rows = damaged(model(x), fault)
        names = [f"class-{k}" for k in range(model.classes)]
        if rows.dtype == "<i8":
            said: Any = [fault.get("label", names[label]) for label in rows]
        elif single:
            said = [
                [{"label": n, "score": float(p)} for n, p in sorted(zip(names, row, strict=False))]
                for row in rows
            ]
        else:
            said = rows.tolist()
        text = json.dumps({"result": {"classes": said[0]}} if single else {"predictions": said})
        return len(x), text.encode(), {"Content-Type": "application/json"}

    def image(self, value: Any) -> np.ndarray:
        c, h, w = self.server.model.shape
        if isinstance(value, str):
            raw = base64.b64decode(value)
            if raw.startswith(b"\x89PNG"):
                from PIL import Image

                picture = np.asarray(Image.open(io.BytesIO(raw)))
                return picture.reshape(h, w, c).transpose(2, 0, 1) / 255
            return np.frombuffer(raw, "<f4").reshape(c, h, w)
        x = np.array(value, float)
        return x if self.server.model.layout == "nchw" else x.transpose(2, 0, 1)

    def answer(self, values: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        fault: dict[str, Any] | None = None,
    ) -> None:
        fault = fault or {}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.flush()
        try:
            if "drip" in fault:
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(fault["drip"])
            else:
                self.wfile.write(body[: fault["cut"]] if "cut" in fault else body)
        except OSError:
            self.close_connection = True
        if "cut" in fault:
            self.wfile.flush()
            self.close_connection = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", script.get("port", 0)), Handler)
        self.script, self.model = script, Model(script.get("model", {}))
        self.binary, self.delay = script.get("binary", True), script.get("delay", 0.0)
        self.token, self.changed = script.get("token"), dict[str, Any]()
        self.number = self.requests = self.images = 0
        self.lock = threading.Lock()
        self.scheme = "https" if "tls" in script else "http"
        if "tls" in script:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*script["tls"])
            self.socket = context.wrap_socket(self.socket, server_side=True)
        log = script.get("log")
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        share = script.get("share", {})
        self.dice = random.Random(share.get("seed", 0))

    def changes(self, script: dict[str, Any]) -> None:
        """Begin to count anew, with these faults, pages and metadata."""
        with self.lock:
            self.script = self.script | {"faults": {}, "pages": {}} | script
            self.changed = script.get("metadata", {})
            self.number = self.requests = self.images = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (OSError, ValueError)):  # a client that went away
            super().handle_error(request, client_address)

    def next_fault(self) -> tuple[int, dict[str, Any]]:
        faults, share = self.script.get("faults", {}), self.script.get("share", {})
        with self.lock:
            self.number += 1
            unlucky = self.dice.random() < share.get("of", 0.0)
            fault = faults.get(str(self.number), faults.get("*", {}))
            return self.number, self.dice.choice(share["faults"]) if unlucky and not fault else fault

    def answered(self, number: int, images: int, fault: dict[str, Any]) -> None:
        with self.lock:
            self.requests += 1
            self.images += images
            if self.log is not None:
                line = {"number": number, "images": images, "fault": fault or None}
                os.write(self.log, (json.dumps(line) + "\n").encode())


class Faulty:
    """The server in a process of its own; leaving the context ends it. `more` are keys of the script."""

    def __init__(self, **more: Any) -> None:
        self.script = more
        self.start()

    def start(self) -> None:
        """Start it, on the same port where it ran before."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(self.script, file)
        command = [sys.executable, __file__, file.name]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        Path(file.name).unlink()
        assert line.startswith("listening on "), "the server did not start"
        self.base = line.split()[-1]
        self.script["port"] = int(self.base.rpartition(":")[2])

    @property
    def url(self) -> str:
        """The model's address."""
        return f"{self.base}/v2/models/{self.script.get('model', {}).get('name', 'toy')}"

    @property
    def model(self) -> Model:
        """The model itself, to compare with."""
        return Model(self.script.get("model", {}))

    def count(self) -> dict[str, int]:
        """What it has answered since it started."""
        with urllib.request.urlopen(f"{self.base}/count", timeout=10) as answer:
            return dict(json.load(answer))

    def change(self, faults: dict[str, Any] | None = None, **more: Any) -> None:
        """Let the running server count anew, with other "faults", "pages" or "metadata"."""
        body = json.dumps({"faults": faults or {}, **more}).encode()
        with urllib.request.urlopen(f"{self.base}/script", body, timeout=10):
            pass

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> "Faulty":
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with Server(json.loads(Path(sys.argv[1]).read_text())) as server:
        print(f"listening on {server.scheme}://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever(poll_interval=0.05)
