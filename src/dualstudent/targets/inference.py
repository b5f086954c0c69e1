"""Targets behind the Open Inference Protocol v2: KServe, Triton, MLServer, TorchServe and others."""

import hashlib
import json
import re
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dualstudent.errors import Refused, TargetError, UserError
from dualstudent.spec import Access, Spec
from dualstudent.targets.metadata import INPUTS, WHOLE, Tensors, read_tensors
from dualstudent.targets.module import Output
from dualstudent.targets.onnx_file import Layout
from dualstudent.targets.service import HttpService, Images, to_bytes
from dualstudent.targets.strict import DEEP, numbers, plain, read_object, unrounded
from dualstudent.targets.transport import Reply, Transport

METADATA = 1 << 20  # bytes of it, at most
_ADDRESS = re.compile(r"(?P<root>.*)/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?(/infer)?/?")


class InferenceService(HttpService):
    """A model behind OIP v2. Answers of another version than the run began with end the run."""

    def __init__(
        self,
        transport: Transport,
        spec: Spec,
        output: Output,
        tensors: Tensors,
        *,
        path: str,
        chosen: str | None,
        about: dict[str, Any],
    ) -> None:
        batch = 1 if not tensors.batched else tensors.fixed or transport.options.request_batch
        super().__init__(transport, spec, output, path=f"{path}/infer", batch=batch)
        self.tensors, self._model, self._chosen = tensors, path, chosen
        self._name = unquote(path.rpartition("/v2/models/")[2].partition("/")[0])
        self.version = _version(about, chosen, self._name)
        self.digest = _digest(about, self.version)

    def encode(self, images: Images, number: int) -> tuple[bytes, list[tuple[str, str]]]:
        of = self.tensors
        if of.fixed is not None and len(images) < of.fixed:  # the model takes no fewer
            images = np.concatenate([images, np.repeat(images[-1:], of.fixed - len(images), 0)])
        values = to_bytes(images, self.spec) if of.datatype == "UINT8" else images
        if of.layout == "nhwc":
            values = values.transpose(0, 2, 3, 1)
        values = np.ascontiguousarray(values if of.batched else values[0], INPUTS[of.datatype])
        tensor: dict[str, Any] = {"name": of.input, "shape": values.shape, "datatype": of.datatype}
        asked: dict[str, Any] = {"name": of.output}
        request = {"id": str(number), "inputs": [tensor], "outputs": [asked]}
        if not of.binary:
            tensor["data"] = values.ravel().tolist()
            return json.dumps(request).encode(), [("Content-Type", "application/json")]
        tensor["parameters"] = {"binary_data_size": values.nbytes}
        asked["parameters"] = {"binary_data": True}
        head = json.dumps(request).encode()
        headers = [
            ("Content-Type", "application/octet-stream"),
            ("Inference-Header-Content-Length", str(len(head))),
        ]
        return head + values.tobytes(), headers

    def decode(self, reply: Reply, images: int, number: int) -> Tensor:
        head, rest = _split(reply)
        answer = read_object(head, "the answer", reply.kind if not rest else "")
        if answer.get("model_version") not in (None, ""):
            self.same_version(answer["model_version"])
        if answer.get("id") not in (None, "", str(number)):
            raise TargetError("the answer belongs to another request (its id is not the one that was sent)")
        outputs = answer.get("outputs")
        if not isinstance(outputs, list) or not all(isinstance(out, dict) for out in outputs):
            raise TargetError("the answer has no list of outputs")
        found: npt.NDArray[Any] | None = None
        for out in outputs:
            raw, rest = _own_bytes(out, rest)
            if out.get("name") == self.tensors.output:
                if found is not None:
                    raise TargetError(f"the answer has the output '{self.tensors.output}' twice")
                found = _values(out, raw, self.tensors.output_kinds)
        if rest:
            raise TargetError(f"the answer has {len(rest)} bytes that belong to no output")
        if found is None:
            names = ", ".join(plain(str(out.get("name")), 40) for out in outputs[:5])
            raise TargetError(f"the answer has no output '{self.tensors.output}', but {names or 'none'}")
        return torch.from_numpy(self._rows(found, images))

    def altered(self) -> str | None:
        about = _read(self.transport, self._model, self._name)
        try:
            now = _digest(about, _version(about, self._chosen, self._name))
        except UserError as error:
            return self.transport.secrets.hide(str(error))
        return None if now == self.digest else "its metadata are others than at first"

    def _rows(self, found: npt.NDArray[Any], images: int) -> npt.NDArray[Any]:
        """Return one row an image, without those of images that only filled a fixed batch."""
        sent = self.tensors.fixed or images
        if not self.tensors.batched:
            found = found.reshape(-1) if found.size == 1 else found.reshape(1, -1)
        if self.output == "labels" and found.ndim == 2 and found.shape[1] == 1:
            found = found[:, 0]
        if found.ndim == 0 or len(found) != sent:
            raise TargetError(f"the answer has shape {list(found.shape)} for {sent} images")
        if found.ndim != 2 and not (found.ndim == 1 and self.output == "labels"):
            raise TargetError(
                f"the answer has shape {list(found.shape)}, not a row of probabilities an image"
            )
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise TargetError("the target returned NaN or infinite values")
        if self.output == "probabilities" and found.dtype == np.float16:
            return unrounded(found[:images].astype(np.float32), 0.01)
        return found[:images]


def open_inference(
    url: str,
    transport: Transport,
    *,
    shape: tuple[int, int, int] | None,
    classes: int | Literal["unknown"] | None,
    bounds: tuple[float, float] | None,
    output: Output,
    output_name: str | None = None,
    layout: Layout = "auto",
    levels: int | None = None,
) -> tuple[InferenceService, dict[str, Any]]:
    """Read health and metadata of a model; return the target and what a manifest keeps of it.

    Raises UserError where the metadata leave open what flags must say.
    """
    at = _ADDRESS.fullmatch(transport.url.raw_path.decode().partition("?")[0])
    if at is None or transport.url.query:
        raise UserError(f"{url}: write http://host/v2/models/NAME, or …/NAME/versions/V")
    root, name = at["root"], unquote(at["name"])
    path = f"{root}/v2/models/{at['name']}" + (f"/versions/{at['version']}" if at["version"] else "")
    server = _optional(transport, f"{root}/v2")
    for health in (f"{root}/v2/health/ready", f"{path}/ready"):
        transport.ask(health, limit=METADATA)
    about = _read(transport, path, name)
    version = _version(about, at["version"], name)
    binary = transport.options.binary and "binary_tensor_data" in _words(server.get("extensions"))
    try:
        tensors, found = read_tensors(
            about,
            shape,
            names=(transport.options.input_name, output_name),
            layout=layout,
            binary=binary,
            labels=output == "labels",
        )
    except UserError as error:
        raise UserError(transport.secrets.hide(str(error))) from None
    count = None if classes == "unknown" else classes or tensors.classes
    if count is None and classes != "unknown":
        raise UserError(f"{url}: the metadata do not tell how many classes: give --classes K")
    if tensors.classes is not None and count is not None and count != tensors.classes:
        raise UserError(f"--classes {count}: the model's metadata say {tensors.classes}")
    if tensors.datatype == "UINT8" and levels not in (None, 256):
        raise UserError(f"--levels {levels}: the model takes UINT8, which has 256")
    levels = 256 if tensors.datatype == "UINT8" else levels
    spec = Spec(found, count, bounds or (0.0, 1.0), levels=levels, half=tensors.datatype == "FP16")
    spec = replace(spec, access=Access.LABEL) if output == "labels" else spec
    target = InferenceService(transport, spec, output, tensors, path=path, chosen=at["version"], about=about)
    noted = {
        "protocol": "Open Inference Protocol v2" + (", binary tensors" if tensors.binary else ""),
        "server": transport.secrets.hide(" ".join(_words([server.get("name"), server.get("version")])))[:100],
        "version": version and transport.secrets.hide(version)[:100],
        "sha256": target.digest,
    }
    return target, noted


def _read(transport: Transport, path: str, name: str) -> dict[str, Any]:
    reply = transport.ask(path, limit=METADATA)
    return read_object(reply.body, f"the metadata of '{name}'", reply.kind)


def _digest(about: dict[str, Any], version: str | None) -> str:
    """Return the SHA-256 of what metadata say of a model."""
    keep = {key: about.get(key) for key in ("name", "inputs", "outputs")} | {"version": version}
    return hashlib.sha256(json.dumps(keep, sort_keys=True).encode()).hexdigest()


def _optional(transport: Transport, path: str) -> dict[str, Any]:
    """Return the server's metadata; nothing where it has none, as some leave them out."""
    try:
        reply = transport.ask(path, limit=METADATA)
    except Refused as error:
        if error.status == 404:
            return {}
        raise
    return read_object(reply.body, "the server's metadata", reply.kind)


def _version(about: dict[str, Any], chosen: str | None, name: str) -> str | None:
    versions = _words(about.get("versions"))
    if chosen is not None:
        if versions and chosen not in versions:
            raise UserError(f"the model '{name}' has versions {', '.join(versions)}, not {chosen}")
        return chosen
    if len(versions) > 1:
        raise UserError(
            f"the model '{name}' has versions {', '.join(versions[:9])}:"
            f" say which, …/{name}/versions/{versions[-1]}"
        )
    return versions[0] if versions else None


def _words(values: Any) -> list[str]:
    """Return the words of a list in metadata; nothing for what is none."""
    if not isinstance(values, list):
        return []
    return [plain(str(value), 100) for value in values if isinstance(value, (str, int))]


def _split(reply: Reply) -> tuple[bytes, bytes]:
    """Return the JSON of an answer and the tensors behind it."""
    length = reply.headers.get("inference-header-content-length")
    if length is None:
        return reply.body, b""
    if not length.isdecimal() or len(length) > 12 or int(length) > len(reply.body):
        raise TargetError(f"the answer says that its JSON has {plain(length, 20)} of {len(reply.body)} bytes")
    return reply.body[: int(length)], reply.body[int(length) :]


def _own_bytes(out: dict[str, Any], rest: bytes) -> tuple[bytes | None, bytes]:
    """Return an output's binary tensor, None where its data are in the JSON, and what follows it."""
    parameters = out.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None, rest
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise TargetError(f"an output says it has {plain(str(size), 20)} bytes of the {len(rest)} there are")
    return rest[:size], rest[size:]


def _values(out: dict[str, Any], raw: bytes | None, kinds: dict[str, str]) -> npt.NDArray[Any]:
    shape, datatype = out.get("shape"), out.get("datatype")
    if not isinstance(datatype, str) or datatype not in kinds:
        raise TargetError(f"the answer is of datatype {plain(str(datatype), 20)}, not {' or '.join(kinds)}")
    sizes: list[Any] = shape if isinstance(shape, list) and len(shape) <= DEEP else [None]
    if not all(type(n) is int and 0 <= n < 1 << 31 for n in sizes):
        raise TargetError(f"the answer has no shape: {plain(str(shape), 40)}")
    if raw is None:
        values = numbers(out.get("data"), "the answer's data").reshape(-1)
        if values.dtype.kind == "f" and datatype in WHOLE:
            raise TargetError(f"the answer is of datatype {datatype}, its data are fractions")
        with np.errstate(over="ignore"):  # infinite then, which is refused
            values = values.astype(np.int64 if datatype in WHOLE else np.float32)
    else:
        kind = np.dtype(kinds[datatype])
        if len(raw) % kind.itemsize:
            raise TargetError(f"the answer has {len(raw)} bytes, which are no {datatype} values")
        values = np.frombuffer(raw, kind)
        values = values.astype(np.int64) if datatype in WHOLE else values.astype(kind.newbyteorder("="))
    count = 1
    for size in sizes:
        count *= size
    if count != len(values):
        raise TargetError(f"the answer has {len(values)} values for shape {sizes}")
    return values.reshape(sizes)
