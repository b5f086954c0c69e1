"""The command line: one clear line and exit code 2 for a user's mistake, never a stack trace."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from dualstudent.errors import Stopped, UserError, unknown
from dualstudent.machine import keep_memory

COMMANDS = {
    "demo": "train a target, copy it twice, and draw the report",
    "target": "train or check a target",
    "plan": "say what an extraction will spend, before the first query",
    "extract": "copy a target from its answers",
    "resume": "go on with a stopped run, or extend a finished one",
    "evaluate": "judge a run's clone on other test images",
    "transfer": "attack a run's target with images made on its clone",
    "sweep": "do many runs that one file describes",
    "serve": "offer a target over HTTP, to try things",
    "journal": "verify, export or repair a run's journal of paid answers",
    "report": "make one HTML page of runs",
    "export": "write a run's clone as ONNX",
    "data": "download a data set's original files",
    "list": "show methods, architectures and data sets",
}
TOGETHER = ("extract", "resume")  # what several processes of torchrun can do as one


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a fault of ours, 2 for bad input, 130 if stopped."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads
    keep_memory()
    args = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="dualstudent: %(message)s", level=logging.WARNING)
    logging.getLogger("dualstudent").setLevel(logging.INFO)
    before = signal.getsignal(signal.SIGTERM)
    _on_sigterm(_interrupt)
    try:
        return _dispatch(args)
    except UserError as error:
        return _complain(str(error))
    except Stopped as stopped:
        print(f"dualstudent: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("dualstudent: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except MemoryError:
        return _complain("out of memory: take a smaller --batch or a smaller network")
    except Exception as error:
        if isinstance(error, RuntimeError) and "allocat" in str(error) and "memory" in str(error):  # torch's
            return _complain("out of memory: take a smaller --batch, a smaller network or smaller images")
        if os.environ.get("DUALSTUDENT_TRACE"):
            raise
        _complain(
            f"a fault of this program, {type(error).__name__}: {error}; DUALSTUDENT_TRACE=1 shows where"
        )
        return 1
    finally:
        _on_sigterm(before)


def _on_sigterm(handler: Any) -> None:
    with contextlib.suppress(ValueError, TypeError):  # another thread, another language: not our business
        signal.signal(signal.SIGTERM, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _complain(text: str) -> int:
    rank = os.environ.get("RANK", "0") if "MASTER_ADDR" in os.environ else "0"  # under torchrun
    who = "dualstudent" if rank == "0" else f"dualstudent, rank {rank}"
    print(f"{who}: " + " ".join(text.split()), file=sys.stderr)
    return 2


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if args[0] in ("--version", "version"):
        from importlib.metadata import version

        print(f"dualstudent {version('dualstudent')}")
        return 0
    if args[0] not in COMMANDS:
        raise unknown("command", args[0], COMMANDS)
    if "MASTER_ADDR" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1" and args[0] not in TOGETHER:
        raise UserError(f"'{args[0]}' is work for one process: start it without torchrun")
    from dualstudent.cli import commands

    run = getattr(commands, f"{args[0]}_command")
    return run(args[1:])  # type: ignore[no-any-return]


def _help() -> str:
    rows = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        "usage: dualstudent COMMAND …\n\n"
        "Data-free model extraction under one honest query budget.\n"
        "For models you own or may test.\n\n"
        f"{rows}\n\n"
        "dualstudent COMMAND --help tells more; dualstudent --version the version."
    )
