"""Many runs from one file: what it says, what is done, what failed, what it comes to."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

import dualstudent as ds
from dualstudent import sweep as sweeps
from dualstudent.cli import main
from dualstudent.errors import Stopped, UserError
from dualstudent.sweep import work as working
from dualstudent.sweep.summary import over_seeds
from dualstudent.sweep.work import parse_slurm
from sweep_fixture import Executor, Write


def test_the_cells(write: Write) -> None:
    sweep = sweeps.read_sweep(write())
    assert [cell.name for cell in sweep.cells if cell.row == "narrow"] == [
        f"digits/narrow/{labels}/{budget}/seed{seed}"
        for labels in ("soft", "hard")
        for budget in (40, 60)
        for seed in (0, 1)
    ]
    [alone] = [cell for cell in sweep.cells if cell.row == "one seed"]
    assert (alone.seed, alone.budget, alone.labels, alone.preset) == (5, 40, "soft", "paper")
    method = sweep.cells[0].build()
    assert isinstance(method, ds.DualStudent)
    assert (method.batch, method.drops, method.learn_range) == (8, (0.5,), True)


def test_the_example_is_valid() -> None:
    assert len(sweeps.read_sweep(Path(__file__).parent.parent / "examples" / "digits.toml").cells) == 20


@pytest.mark.parametrize("text", ["partition", "partition=", "=gpu", "a=1,,b=2"])
def test_slurm_parameters_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write key=value"):
        parse_slurm(text)


def test_slurm_parameters_reach_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    given: dict[str, Any] = {}

    class Auto:
        def __init__(self, folder: str, cluster: str) -> None:
            given["cluster"] = cluster

        def update_parameters(self, **parameters: Any) -> None:
            if "slurm_typo" in parameters:
                raise NameError("no such parameter\nand more")
            given.update(parameters)

    monkeypatch.setattr(submitit, "AutoExecutor", Auto)
    working._executor(tmp_path, parse_slurm("partition=gpu"))
    assert given.pop("timeout_min") == 24 * 60, "a day, unless told: a year is no partition's"
    working._executor(tmp_path, None)
    assert given.pop("timeout_min") > 300 * 24 * 60
    working._executor(tmp_path, parse_slurm("partition=gpu, timeout_min=600"))
    assert given == {"cluster": "slurm", "timeout_min": 600, "slurm_partition": "gpu"}
    with pytest.raises(UserError, match="--slurm typo: no such parameter"):
        working._executor(tmp_path, {"typo": "1"})


def test_failed_cells_are_listed_and_the_rest_is_done(
    write: Write, at_once: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    path, at_once.fail = write(), "soft/60/seed1"
    assert main(["sweep", str(path), "--jobs", "2"]) == 1
    said = capsys.readouterr()
    assert "failed: digits/narrow/soft/60/seed1: see" in said.err
    assert "log.err" in said.err
    assert "the target is gone" in said.err
    assert at_once.most == 2
    assert len(at_once.jobs) == 9
    out = path.parent / "out"
    lines = (out / "summary.csv").read_text().splitlines()
    summary = {tuple(row[:4]): row for row in csv.reader(lines)}
    assert summary["digits", "narrow", "soft", "60"][4] == "1"
    assert "1 of 2 missing" in summary["digits", "narrow", "soft", "60"][-1]

    at_once.jobs.clear()
    at_once.fail = ""
    assert main(["sweep", str(path), "--jobs", "2"]) == 0
    assert len(at_once.jobs) == 1, "finished cells are skipped"
    check_summary(sweeps.read_sweep(path))


def check_summary(sweep: sweeps.Sweep) -> None:
    """The three files say what the results say."""
    lines = list(csv.DictReader((sweep.out / "summary.csv").read_text().splitlines()))
    markdown, latex = ((sweep.out / f"summary.{kind}").read_text() for kind in ("md", "tex"))
    assert len(lines) == 5
    for line in lines:
        members = [
            json.loads((Path(cell.path) / "result.json").read_text())
            for cell in sweep.cells
            if (cell.row, cell.labels, str(cell.budget)) == (line["method"], line["labels"], line["budget"])
        ]
        values = [member["agreement"] for member in members]
        assert int(line["n"]) == len(values)
        assert line["spent"] == line["budget"]
        mean = sum(values) / len(values)
        assert float(line["agreement_mean"]) == pytest.approx(mean)
        text = f"{100 * mean:.1f}"
        if len(values) == 2:  # Student's t for one degree of freedom: 12.706
            half = 12.7062 * abs(values[0] - values[1]) / 2
            assert float(line["agreement_half_ci95"]) == pytest.approx(half, rel=1e-4, abs=1e-12)
            text += f" ± {100 * half:.1f}"
        else:
            assert line["agreement_half_ci95"] == ""
        assert text in markdown
        assert text.replace("±", r"$\pm$") in latex


@pytest.mark.slow
def test_a_real_job_that_fails_says_why(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """In a line; its trace is in the log."""
    path = write(
        **{
            'path = "': 'split = "test_lossless"\npath = "',
            '[40, "0.06k"]': "[40]",
            "seeds = [0, 1]": "seeds = [0]",
        }
    )
    assert main(["sweep", str(path)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if ": failed: " in line]
    assert len(said) == 3
    assert all(": failed: digits has no split 'test_lossless'" in line for line in said)


def test_over_seeds() -> None:
    three = over_seeds([0.5, 0.6, 0.7])
    assert three is not None
    assert three.mean == pytest.approx(0.6)
    assert three.half == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4)
    one = over_seeds([0.25])
    assert one is not None
    assert (one.half, str(one)) == (None, "25.0")
    assert over_seeds([]) is None


def test_a_stopped_cell_goes_on_and_a_changed_one_is_refused(write: Write, at_once: Executor) -> None:
    path = write(**{"[40": "[400"})
    cell = sweeps.read_sweep(path).cells[0]
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Stopped):
        ds.extract(
            cell.build(), ds.open_target(cell.target.path), queries=400, out=cell.path, points=2, stop=stop
        )
    assert sweeps.state(cell) == "stopped"
    sweeps.start(sweeps.read_sweep(path))
    assert sweeps.state(cell) == "done"
    assert json.loads((Path(cell.path) / "result.json").read_text())["timing"]["sessions"] == 2

    jobs = len(at_once.jobs)
    changed = sweeps.read_sweep(
        write(**{"[40": "[400", "batch = 8, width = 4, noise": "batch = 16, width = 4, noise"})
    )
    with pytest.raises(UserError, match="was run with another recipe"):
        sweeps.start(changed)
    assert len(at_once.jobs) == jobs


def test_what_a_method_cannot_do_is_no_failure(
    write: Write, at_once: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ds.DualStudent, "needs", ds.Access.PROBS)
    sweep = sweeps.read_sweep(write())
    assert {sweeps.state(cell) for cell in sweep.cells if cell.labels == "hard"} == {"n/a"}
    assert sweeps.start(sweep).failed == {}
    assert {row.state for row in sweeps.rows(sweep) if row.labels == "hard"} == {"n/a"}
    assert "n/a" in (sweeps.write_summary(sweep) and (sweep.out / "summary.md").read_text())


def test_a_run_goes_on_from_another_ones_student(write: Write, at_once: Executor) -> None:
    """Even where the one that it starts from is done in the same sweep."""
    path = write(**{"seeds = [5]": 'seeds = [0]\nstart = "narrow"', '[40, "0.06k"]': "[40]"})
    sweep = sweeps.read_sweep(path)
    assert sweeps.start(sweep, jobs=5).failed == {}
    [cell] = [cell for cell in sweep.cells if cell.row == "one seed"]
    manifest = json.loads((Path(cell.path) / "manifest.json").read_text())
    assert cell.start == manifest["recipe"]["start"]
    assert cell.start is not None
    assert cell.start.endswith("runs/digits/narrow/soft/40/seed0")
    order = [job.path for job in at_once.jobs]
    assert order.index(cell.path) > order.index(cell.start)
    kept, base = Path(cell.path) / "start", Path(cell.start) / "student"
    assert (kept / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_run_whose_start_failed_says_so(write: Write, at_once: Executor) -> None:
    at_once.fail = "narrow/soft/40/seed0"
    sweep = sweeps.read_sweep(
        write(**{"seeds = [5]": 'seeds = [0]\nstart = "narrow"', '[40, "0.06k"]': "[40]"})
    )
    told: dict[str, str] = {}
    outcome = sweeps.start(sweep, jobs=5, tell=lambda cell, news: told.update({cell: news}))
    assert set(outcome.failed) == {"digits/narrow/soft/40/seed0", "digits/one seed/soft/40/seed0"}
    assert "narrow/soft/40/seed0" in told["digits/one seed/soft/40/seed0"], (
        "it names what it had to start from"
    )


def test_names_with_signs_of_latex(write: Write, at_once: Executor) -> None:
    sweep = sweeps.read_sweep(write(**{'name = "narrow"': 'name = "a^2 ~b_c & 5 % {#$}"'}))
    sweeps.write_summary(sweep)
    escaped = r"a\textasciicircum{}2 \textasciitilde{}b\_c \& 5 \% \{\#\$\}"
    assert f" & {escaped} & " in (sweep.out / "summary.tex").read_text()


def test_a_sweep_may_move(write: Write, at_once: Executor, tmp_path: Path) -> None:
    """With runs that go on from others, too."""
    path = write(**{"seeds = [5]": 'seeds = [0]\nstart = "narrow"', '[40, "0.06k"]': "[40]"})
    assert sweeps.start(sweeps.read_sweep(path)).failed == {}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").rename(tmp_path / "elsewhere" / "out")
    moved = path.rename(tmp_path / "elsewhere" / "spec.toml")
    assert {sweeps.state(cell) for cell in sweeps.read_sweep(moved).cells} == {"done"}


def test_dry_run_starts_nothing(write: Write, at_once: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write()), "--dry-run"]) == 0
    assert "9 open" in capsys.readouterr().out
    assert at_once.jobs == []


def test_stopped_on_request(write: Write, at_once: Executor) -> None:
    outcome = sweeps.start(sweeps.read_sweep(write()), jobs=1, stop=lambda: len(at_once.jobs) == 1)
    assert outcome.stopped
    assert len(at_once.jobs) == 1


@pytest.mark.slow
def test_targets_are_trained_once_and_real_jobs_run(tmp_path: Path) -> None:
    """Through submitit itself, in processes of their own."""
    spec = tmp_path / "real.toml"
    spec.write_text(
        'seeds = [0, 1]\nbudgets = [24]\npoints = 1\n[[targets]]\nname = "own"\ndata = "digits"\n'
        'arch = "digits-cnn"\nepochs = 1\n[[methods]]\nmethod = "dual-student"\n'
        "options = { batch = 8, width = 4 }\n"
    )
    assert main(["sweep", str(spec)]) == 0
    out = tmp_path / "runs" / "sweeps" / "real"
    assert (out / "targets" / "own" / "target.json").is_file()
    assert "| own | dual-student | soft | 24 | 2 | 24 |" in (out / "summary.md").read_text()
    assert any((out / "logs").iterdir())
