"""docs/targets.md and the README's example of real targets: commands run, figures are those measured."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualstudent.cli import main
from dualstudent.targets import TargetOptions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "targets.md").read_text()
README = (ROOT / "README.md").read_text()
QUICK = [
    "--student",
    "digits-cnn",
    "--compute-least",
    "20",
    "--batch",
    "16",
    "--points",
    "2",
    "--threads",
    "1",
]


def commands(text: str) -> list[list[str]]:
    """Return the commands of a page's blocks, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("dualstudent")]


def quick(words: list[str]) -> list[str]:
    """Return a command that takes seconds: few queries, little learning."""
    words = words[1:]
    if words[0] == "extract":
        words[words.index("--queries") + 1] = "120"
        words += QUICK
    return words


@pytest.fixture(scope="module")
def place(digits_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the examples run: with a trained target, and a run of it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "runs").mkdir()
    (folder / "runs" / "target").symlink_to(digits_target)
    (folder / "runs" / "digits").symlink_to(digits_target)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = [
            "extract",
            "frugal",
            "--target",
            "runs/target",
            "--queries",
            "120",
            "--out",
            "runs/copy",
            *QUICK,
        ]
        assert main(first) == 0
        yield folder


def run(page: list[list[str]], place: Path) -> None:
    """Run commands in turn; a server goes on while those after it run."""
    servers = []
    try:
        for words in page:
            if words[1] != "serve":
                assert main(quick(words)) == 0, words
                continue
            command = [sys.executable, "-m", "dualstudent", *(word for word in words[1:] if word != "&")]
            server = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True, env=os.environ)
            servers.append(server)
            assert server.stdout is not None
            assert "serving" in server.stdout.readline()
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)


@pytest.mark.slow
def test_every_command_of_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    page = commands(PAGE)
    exported = [words for words in page if words[1] == "export"]
    assert len(exported) == 1
    run(exported + [words for words in page if words not in exported], place)
    assert json.loads((place / "runs" / "over-http" / "result.json").read_text())["complete"]
    assert json.loads((place / "check.json").read_text())["price"] == 1.5


@pytest.mark.slow
def test_the_readmes_example_of_real_targets_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    part = README[README.index("## Real targets") :]
    page = commands(part[: part.index("\n## ", 3)])
    assert sorted({words[1] for words in page}) == ["export", "extract", "serve"]
    run(page, place)


def test_every_option_of_a_target_is_told() -> None:
    for name in TargetOptions.__dataclass_fields__:
        if name != "service":
            assert f"`--{name.replace('_', '-')}" in PAGE, name


def test_links_of_the_page_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert link.startswith("http") or (ROOT / "docs" / link).exists(), link


def test_figures_of_the_page_are_those_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = importlib.util.spec_from_file_location("tables_of_targets", ROOT / "benchmarks" / "targets.py")
    assert found is not None
    assert found.loader is not None
    module: Any = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert module.filled(PAGE, ROOT) == PAGE
