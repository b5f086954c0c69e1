"""Targets behind an address: OIP v2 at http and https, any JSON service at http+json and https+json."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dualstudent.errors import UserError
from dualstudent.targets.inference import open_inference
from dualstudent.targets.json_service import open_json
from dualstudent.targets.service import HttpService
from dualstudent.targets.transport import Transport
from dualstudent.targets.wire import ServiceOptions

SECRET = ("key", "token", "secret", "password", "passwd", "sig", "signature", "auth")


def open_service(
    reference: str, options: ServiceOptions, **said: Any
) -> tuple[HttpService, str, dict[str, Any]]:
    """Open a service; return it, its name, and what a manifest keeps of it.

    `said` is what is known of the target: shape, classes, bounds, levels, output, output_name, layout.
    Nothing is asked of the model. Raises UserError, TargetError.
    """
    url = reference.replace("+json", "", 1) if "+json:" in reference[:12] else reference
    _harmless(url)
    transport = Transport(options, url)
    try:
        target: HttpService
        if url == reference:
            if options.template is not None:
                raise UserError(f"--template belongs to a JSON service: write {_json(url)}")
            target, about = open_inference(url, transport, **said)
        else:
            target, about = open_json(transport, **said)
    except BaseException:
        transport.close()
        raise
    name = transport.url.path.split("/models/")[-1].strip("/") or "model"
    return target, f"{name} at {transport.url.host}", about


def _json(url: str) -> str:
    scheme, colon, rest = url.partition(":")
    return f"{scheme}+json{colon}{rest}"


def _harmless(url: str) -> None:
    """Raise UserError for an address that is none, or holds a secret: a run would keep it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the target's address is none: {error}") from None
    if not host:
        raise UserError(f"'{url}' names no host: write http://host/v2/models/NAME")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"{parts.scheme}://…@{host}: a run would keep the password; give it with --headers-file"
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if any(
            word in name.lower().replace("-", "_").split("_") or name.lower().endswith(word)
            for word in SECRET
        ):
            raise UserError(
                f"…?{name}=…: a run would keep it; give secrets with --token-env or --headers-file"
            )
