"""From words to dataclasses (tyro), with its complaints turned into one line each."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Annotated, TypeVar

import tyro

from dualstudent.errors import UserError, unknown
from dualstudent.spec import parse_count

T = TypeVar("T")


Count = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|Nk|NM",
        instance_from_str=lambda words: parse_count(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


def parse(form: type[T], args: Sequence[str], prog: str, description: str) -> T:
    """Fill a dataclass from command-line words; prints help and exits 0 for --help. Raises UserError."""
    known = {*_flags(form), "--help"}
    for word in args:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise unknown(f"option of '{prog}'", flag, known)
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(
                form,
                args=list(args),
                prog=f"dualstudent {prog}",
                description=description,
                config=(
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.OmitSubcommandPrefixes,
                ),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise _one_line(words.getvalue(), args, prog) from None


def peek(args: Sequence[str], flag: str, default: str) -> str:
    """Return the value of an option before the options are known in full."""
    for i, word in enumerate(args):
        if word == flag and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
    return default


def _one_line(text: str, args: Sequence[str], prog: str) -> UserError:
    """Turn tyro's box into one line."""
    lines = [re.sub(r"[╭╮╰╯│─+|]|-{3,}", " ", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    missing = [line.split()[0] for line in lines if line.startswith("--") and "(required)" in line]
    for line, following in pairwise(lines):
        if line.startswith("--") and "(required)" in following and not following.startswith("--"):
            missing.append(line.split()[0])
    if missing and lines[0].startswith("Required"):
        return UserError(f"'{prog}' needs {', '.join(missing)}: see dualstudent {prog} --help")
    choice = re.search(r"[Ii]nvalid choice '(.*?)' for argument '--(.*?)'.*?\((.*?)\)", " ".join(lines))
    if choice is not None:
        return unknown(choice[2], choice[1], re.findall(r"'(.*?)'", choice[3]))
    bad = re.search(r"Error parsing --(\S+?): (.*)", " ".join(lines))
    if bad is not None:
        kind = re.search(r"no type matching (.*?) could", bad[2])
        number = "FLOAT" if "to float" in bad[2] else "INT" if "for int" in bad[2] else ""
        wanted = kind[1] if kind else number
        said = _plain(wanted) if wanted else bad[2].partition(" Argument helptext:")[0]
        said = "not understood" if "valid parse" in said else said
        return UserError(f"--{bad[1]} {_given(args, bad[1])}: {said} (see dualstudent {prog} --help)")
    whole = " ".join(line for line in lines if not line.startswith(("For full helptext", "dualstudent ")))
    said = whole.partition("Argument helptext:")[0]
    for tyros in ("Value error", "Invalid choice", "Error parsing method:"):
        said = said.removeprefix(tyros).strip()
    return UserError(f"{said or whole or 'not understood'}: see dualstudent {prog} --help")


def _given(args: Sequence[str], flag: str) -> str:
    """Return what was typed after an option."""
    words: list[str] = []
    mine = False
    for word in args:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            mine = name.replace("_", "-") == flag
            words = words if not mine else [value] if equals else []
        elif mine:
            words.append(word)
    return " ".join(words)


def _plain(kinds: str) -> str:
    """Return what an option takes, from tyro's names of it."""
    for name, text in (("INT", "whole number"), ("FLOAT", "number")):
        count = len(re.findall(rf"\b{name}\b", kinds))
        if count:
            wanted = f"a {text}" if count == 1 else f"{count} {text}s"
            return f"give {wanted}" + " or 'unknown'" * ("unknown" in kinds)
    return f"give {kinds}"


def _flags(form: type) -> list[str]:
    """Return all options of a dataclass, those of its dataclass fields included."""
    names: list[str] = []
    for field in fields(form):
        if isinstance(field.type, type) and is_dataclass(field.type):
            names += _flags(field.type)
        else:
            said = [getattr(extra, "name", None) for extra in getattr(field.type, "__metadata__", ())]
            name = next((n for n in said if isinstance(n, str)), field.name.replace("_", "-"))
            names.append("--" + name)
            if field.type is bool:
                names.append("--no-" + name)
    return names
