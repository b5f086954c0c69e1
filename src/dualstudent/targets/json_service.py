"""Targets behind any JSON service, asked as a template says."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dualstudent.errors import TargetError, UserError
from dualstudent.spec import Access, Spec
from dualstudent.targets.module import Output
from dualstudent.targets.service import HttpService, Images
from dualstudent.targets.strict import numbers, read_json, unrounded
from dualstudent.targets.template import Template, follow, parse_path, read_template
from dualstudent.targets.transport import Reply, Transport

HEADERS = [("Content-Type", "application/json"), ("Accept", "application/json")]


class JsonService(HttpService):
    """A JSON service. Where the template says where its version is, another one ends the run."""

    def __init__(self, transport: Transport, spec: Spec, output: Output, template: Template) -> None:
        batch = 1 if template.single else transport.options.request_batch
        super().__init__(transport, spec, output, path=str(transport.url), batch=batch)
        self.template = template

    def encode(self, images: Images, number: int) -> tuple[bytes, list[tuple[str, str]]]:
        return self.template.request(images, self.spec.bounds), HEADERS

    def decode(self, reply: Reply, images: int, number: int) -> Tensor:
        value = read_json(reply.body, "the answer", reply.kind)
        self._same_model(value)
        found = self.template.read(value, images, labels=self.output == "labels")
        rows = numbers(found, "the answers")
        if self.output == "labels" and rows.ndim == 1:
            if not np.issubdtype(rows.dtype, np.signedinteger):
                raise TargetError("the service gave a label that is out of all bounds")
            return torch.from_numpy(rows)
        if rows.ndim != 2:
            hint = "; give --output labels" if rows.dtype.kind in "iu" else ""
            raise TargetError(f"the answers have shape {list(rows.shape)}, no row an image{hint}")
        rows = rows.astype(np.float64)
        if not np.isfinite(rows).all():
            raise TargetError("the target returned NaN or infinite values")
        if self.output == "probabilities" and self.template.decimals is not None:
            rows = unrounded(rows, rows.shape[1] * 0.5 * 10.0**-self.template.decimals + 1e-6)
        with np.errstate(over="ignore"):  # infinite then, which is refused
            return torch.from_numpy(rows.astype(np.float32))

    def _same_model(self, value: Any) -> None:
        if self.template.version is None:
            return
        path = self.template.version
        self.same_version(follow(value, parse_path(path, "version"), path))


def open_json(
    transport: Transport,
    *,
    shape: tuple[int, int, int] | None,
    classes: int | Literal["unknown"] | None,
    bounds: tuple[float, float] | None,
    levels: int | None,
    output: Output,
    **unused: Any,
) -> tuple[JsonService, dict[str, Any]]:
    """Return the target and what a manifest keeps of it; nothing is asked. Raises UserError."""
    if transport.options.template is None:
        raise UserError("a JSON service needs --template FILE: how it is asked, and where its answers are")
    template = read_template(transport.options.template)
    shape = shape or template.shape
    known = None if template.classes is None else len(template.classes)
    if shape is None or (classes is None and known is None):
        raise UserError(
            "the template does not say what the service takes: give --shape C H W and --classes K"
        )
    if template.shape not in (None, shape) or (known is not None and classes not in (None, known)):
        raise UserError(f"--shape or --classes: the template says {template.shape} and {known} classes")
    if template.image == "base64 png" and shape[0] not in (1, 3, 4):
        raise UserError(f"a PNG has 1, 3 or 4 channels, not {shape[0]}")
    if template.levels is not None and levels not in (None, template.levels):
        raise UserError(f"--levels {levels}: by the template an image has {template.levels}")
    count = None if classes == "unknown" else classes or known
    spec = Spec(shape, count, bounds or (0.0, 1.0), levels=template.levels or levels)
    spec = replace(spec, access=Access.LABEL) if output == "labels" else spec
    noted = {"protocol": "JSON by a template", "server": "", "version": None, "sha256": template.sha256}
    return JsonService(transport, spec, output, template), noted
