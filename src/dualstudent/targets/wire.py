"""How a service is asked: traffic, secrets by name only, and what its answers mean."""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dualstudent.errors import UserError
from dualstudent.targets.strict import plain

KINDS: dict[str, type] = {"rate": float, "answer_limit": int}  # of options that have no default; texts else
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True)
class SecretNames:
    """Where secrets are read from. A run keeps these names; whoever goes on with it says them again.

    Raises UserError for two tokens.
    """

    token_env: str | None = None  # environment variable that holds a bearer token
    token_file: str | None = None  # file that holds a bearer token
    headers_file: str | None = None  # file of further headers, a "Name: value" a line

    def __post_init__(self) -> None:
        if self.token_env is not None and self.token_file is not None:
            raise UserError("--token-env and --token-file: give one of them")
        _absolute(self, "token_file", "headers_file")

    @property
    def flags(self) -> list[str]:
        """The words of a command line that say these names."""
        said = [(field.name, getattr(self, field.name)) for field in fields(SecretNames)]
        return [word for name, value in said if value for word in (f"--{name.replace('_', '-')}", value)]


@dataclass(frozen=True)
class ServiceOptions(SecretNames):
    """How a service is asked. Secrets are named, never given: a manifest keeps these options.

    Raises UserError for values that make no sense.
    """

    request_batch: int = 64  # images of a request
    concurrency: int = 4  # requests in flight
    rate: float | None = None  # images a second, at most
    timeout: float = 60.0  # seconds that a request may take
    retries: int = 8  # times that a failed request is asked again
    pause: float = 0.5  # seconds before the first time; they double, up to a minute
    ca_file: str | None = None  # certificates to trust, PEM; default: the system's
    answer_limit: int | None = None  # bytes of an answer; default: 1 MiB, and 64 KiB an image
    binary: bool = True  # send and ask binary tensors where the server offers them
    input_name: str | None = None  # tensor that takes the images, where there are several
    template: str | None = None  # TOML or JSON file: how an http+json service is asked (docs/services.md)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("request_batch", 1 << 16), ("concurrency", 256)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: 1 to {most:,}")
        for name in ("rate", "timeout", "answer_limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value}: more than 0, and finite")
        if self.timeout > 86_400:
            raise UserError(f"--timeout {self.timeout}: seconds, a day at most")
        for name, most in (("retries", 1000), ("pause", 3600)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"--{name} {getattr(self, name)}: 0 to {most:,}")
        _absolute(self, "ca_file", "template")

    def with_secrets(self, said: SecretNames, place: str) -> "ServiceOptions":
        """Return these options of a run with the secrets that its user names.

        A run may be a stranger's, its address too: what it names is never sent there by itself. Raises
        UserError where a token or headers are not named again.
        """
        kept = SecretNames(
            token_env=None if said.token_env or said.token_file else self.token_env,
            token_file=None if said.token_env or said.token_file else self.token_file,
            headers_file=None if said.headers_file else self.headers_file,
        )
        if kept.flags:
            raise UserError(
                f"the run was begun with secrets, which would be sent to {plain(place)}: if they are to go"
                f" there, say where they are again: {plain(shlex.join(kept.flags), 1000)}"
            )
        return replace(self, **vars(said))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ServiceOptions":
        """Read what a manifest recorded. Raises UserError on anything else."""
        given: dict[str, Any] = dict(values) if isinstance(values, Mapping) else {"": values}
        try:
            for known in fields(cls):
                value = given.get(known.name, known.default)
                whole = type(known.default) if known.default is not None else KINDS.get(known.name, str)
                kind = (int, float) if whole is float else whole
                if not (value is None and known.default is None) and (
                    not isinstance(value, kind) or (isinstance(value, bool) and whole is not bool)
                ):
                    raise TypeError(f"{known.name} is {str(value)[:40]!r}")
                if whole is float and given.get(known.name) is not None:
                    given[known.name] = float(given[known.name])
            return cls(**given)
        except (TypeError, OverflowError) as error:
            raise UserError(f"these are no options of a service: {error}") from error


class Secrets:
    """What is sent with every request and shown nowhere: read from the environment or from files.

    Raises UserError, without the value, where one cannot be sent.
    """

    __slots__ = ("_headers", "_origins")

    def __init__(self, options: ServiceOptions, environment: Mapping[str, str]) -> None:
        self._headers: list[tuple[str, str]] = []
        token = options.token_file if options.token_env is None else f"${options.token_env}"
        origins = (("token", token), ("headers", options.headers_file))
        self._origins = [f"the {what} in {place}" for what, place in origins if place is not None]
        if options.token_env is not None:
            if options.token_env not in environment:
                raise UserError(f"--token-env {options.token_env}: there is no such environment variable")
            self._token(environment[options.token_env], f"${options.token_env}")
        if options.token_file is not None:
            self._token(_read(options.token_file), options.token_file)
        if options.headers_file is not None:
            for number, line in enumerate(_read(options.headers_file).splitlines(), 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    self._line(line, f"{options.headers_file}, line {number}")

    def _token(self, text: str, where: str) -> None:
        token = text.strip()
        if not token:
            raise UserError(f"{where} holds no token")
        self._add("Authorization", f"Bearer {token}", where)

    def _line(self, line: str, where: str) -> None:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not value or not _HEADER.fullmatch(name):
            raise UserError(f"{where} is no header: write Name: value")
        if name.lower() in ("host", "content-length", "content-type", "transfer-encoding", "connection"):
            raise UserError(f"{where}: {name} is not yours to set")
        self._add(name, value, where)

    def _add(self, name: str, value: str, where: str) -> None:
        if not value.isascii() or not value.isprintable():
            raise UserError(f"{where}: the value has characters that no header can hold")
        self._headers.append((name, value))

    def __repr__(self) -> str:
        return " and ".join(self._origins) or "no secrets"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What to send, by name."""
        return list(self._headers)

    def hide(self, text: str) -> str:
        """Return a text without them: whatever a service says may hold them."""
        for secret in self._values():
            text = text.replace(secret, "…")
        return text

    def among(self, body: bytes) -> bool:
        """Return whether a body holds one of them."""
        return any(secret.encode() in body for secret in self._values())

    def _values(self) -> list[str]:
        values = [part for _, value in self._headers for part in (value, *value.split()[1:])]
        return [value for value in values if len(value) >= 4]  # less is no secret, and in every text


def _absolute(options: SecretNames, *names: str) -> None:
    """Make names of files absolute: a run is resumed from anywhere."""
    for name in names:
        if getattr(options, name) is not None:
            object.__setattr__(options, name, str(Path(getattr(options, name)).absolute()))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a name with a NUL; bytes that are no UTF-8
        raise UserError(f"cannot read {path!r}: no file of text") from None
