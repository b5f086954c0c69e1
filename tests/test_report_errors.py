"""Reports of damaged runs, and places where no report can be written: one line, nothing overwritten."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualstudent.errors import UserError
from dualstudent.report import curves_png, render
from report_fixture import Page, edit, make_run


@pytest.mark.parametrize("write", [render, curves_png])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "manifest.json").unlink(), "holds no run"),
        (lambda run: (run / "manifest.json").write_text("{"), "manifest.json is not readable as JSON"),
        (lambda run: (run / "result.json").write_text("[1]"), "result.json holds no JSON object"),
        (
            lambda run: edit(run / "manifest.json", schema_version=2),
            "has schema version 2, this program reads 1",
        ),
        (lambda run: edit(run / "result.json", schema_version=None), "has schema version None"),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n{\n{}\n"), "metrics.jsonl is damaged in line 2"),
        (
            lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n"),
            "metrics.jsonl is damaged in line 1",
        ),
    ],
)
def test_damaged_runs_end_in_one_clear_line(
    write: Callable[..., None], spoil: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "demo")
    spoil(run)
    (tmp_path / "out").write_text("<!doctype html>an old page")
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        write([run], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").read_text() == "<!doctype html>an old page"


@pytest.mark.parametrize("write", [render, curves_png])
def test_no_run_or_no_place_to_write(write: Callable[..., None], tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    with pytest.raises(UserError, match="at least one run"):
        write([], tmp_path / "out")
    with pytest.raises(UserError, match=r"nowhere holds no run: there is no manifest.json"):
        write([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot write .*: No such file"):
        write([run], tmp_path / "missing/out.html")
    with pytest.raises(UserError, match=r"cannot write .*: it is a directory"):
        write([run], tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        write([run], run / "manifest.json/out.html")
    before = (run / "result.json").read_bytes()
    with pytest.raises(UserError, match="exists and is no"):
        write([run], run / "result.json")
    assert (run / "result.json").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("wrong", [None, "text", -1, 1e300, [[1, "a"]]])
def test_wrong_values_count_as_missing(wrong: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    for path in (run / "manifest.json", run / "result.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps(dict.fromkeys(values, wrong) | {"schema_version": 1}))
    render([run], tmp_path / "report.html")
    assert "unfinished" in Page(tmp_path / "report.html").text
    curves_png([run], tmp_path / "curves.png")
