"""The benchmarks' programs run: the paper's path at toy size, the yardstick on its smallest case."""

import dataclasses
import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import dualstudent as ds
from conftest import Linear
from dualstudent import engine
from dualstudent.ledger import Account

ROOT = Path(__file__).parent.parent


def call(script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join(str(ROOT / part) for part in ("benchmarks", "src", "tests"))
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_paper_run_stops_goes_on_and_reports(tmp_path: Path) -> None:
    words = ["--dry", "--out", str(tmp_path), "--data-dir", str(tmp_path)]
    first = call("paper/run.py", *words, "--minutes", "0.001")
    assert first.returncode == 3, first.stderr
    assert "to be continued" in first.stdout
    [unfinished] = json.loads((tmp_path / "results.json").read_text())["unfinished"].values()
    assert unfinished["spent"] < 120
    second = call("paper/run.py", *words)
    assert second.returncode == 0, second.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["unfinished"] == {}
    [(name, cell)] = found["cells"].items()
    assert name == "cifar10/DS/soft/120/seed0"
    assert cell["spent"] == cell["budget"] == 120
    assert cell["timing"]["sessions"] == 2
    assert cell["paper"] == {"accuracy": 91.34, "tolerance": 3.0, "reached": cell["accuracy"] >= 0.8834}
    [attacks] = found["attacks"].values()
    assert {row["proxy"] for row in attacks["rows"]} == {"clone", "same data", "the target itself"}
    assert attacks["paper"]["fgsm"] == [62.35, 21.58]
    found["cells"][name] |= {"device": "another GPU", "commit": "abc"}
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert call("paper/run.py", *words).stdout.splitlines()[-1] == "done", "a third call has nothing to do"
    kept = json.loads((tmp_path / "results.json").read_text())["cells"][name]
    assert (kept["device"], kept["commit"]) == ("another GPU", "abc"), "nor was it measured here and now"


def test_cells_are_named_by_their_parts(tmp_path: Path) -> None:
    words = ["--dry", "--out", str(tmp_path)]
    none = call("paper/run.py", *words, "--only", "cifar1")
    assert none.returncode == 2
    assert "--only cifar1 --seeds 0: none of the cells" in none.stderr
    done = call("paper/run.py", *words, "--only", "cifar10, classes unknown", "cifar10/DS 2 M*")
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    rows = {tuple(name.split("/")[:2]) for name in cells}
    alone = {("cifar10", f"DS 2 M, {precision}") for precision in ("bf16", "tf32", "fp32")}
    assert rows == alone | {("cifar10, classes unknown", "DS, classes unknown")}
    shown = call("paper/run.py", "--list").stdout
    assert "cifar10/DS/soft/20000000/seed0: expected 91.34 ± 3 %, about 14 min" in shown


@pytest.mark.slow
def test_every_cell_of_the_papers_tables_runs(tmp_path: Path) -> None:
    done = call("paper/run.py", "--dry", "--only", "all", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "not possible" not in done.stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["cells"]) == 43
    with_paper = {name.rsplit("/", 2)[0] for name, cell in found["cells"].items() if "paper" in cell}
    assert len(with_paper) == 38, "24 of DS and DFME, 8 of DFMS, classes unknown, cross-entropy, 4 ratios"
    assert len(found["attacks"]) == 8
    for name, cell in found["cells"].items():
        assert cell["spent"] == (40 if " + DS" in name else 120)
    [on_top] = (tmp_path / "runs" / "cifar10" / "DFMS-SL + DS").rglob("manifest.json")
    start = Path(json.loads(on_top.read_text())["recipe"]["start"])
    assert start.is_relative_to(tmp_path / "runs" / "cifar10" / "DFMS-SL")


def test_paper_speed_is_measured_beside_the_plain_loop(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    known = {
        "command": "earlier",
        "device": "GPU",
        "variants": {"plain": {"ms": 1}, "tf32-eager": {"ms": 7.0}},
    }
    out.write_text(json.dumps(known))
    done = call(
        "paper/speed.py", "--dry", "--steps", "2", "--variants", "fp32-eager", "plain", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    plain, other, ours = json.loads(out.read_text())["variants"].values()
    told = {"command": "earlier", "commit": None, "machine": None}  # what is not known is said
    assert other == {**told, "device": "GPU", "ms": 7.0}, "what is not measured stays"
    assert plain["ms"] != 1
    assert "--variants fp32-eager plain" in plain["command"]
    assert sum(ours["parts_ms"].values()) < 20 * ours["ms"], "parts of an iteration, in the same unit"
    assert set(ours["parts_ms"]) == {"climb", "ask", "imitate"}
    assert all(ms > 0 for ms in ours["parts_ms"].values())


def test_the_yardstick_keeps_the_cases_that_it_does_not_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", "engine"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
    compare = importlib.import_module("compare")
    made = dict.fromkeys(("queries", "cpu_s", "wall_s", "peak_mb", "flops_per_query", "peak_flops"), 1.0)
    monkeypatch.setattr(compare, "measure", lambda *words, operations: made)
    out = tmp_path / "results.json"
    for words in (["--cases", "cb"], ["--cases", "a", "--pairs", "3"]):
        monkeypatch.setattr(sys, "argv", ["compare.py", *words, "--out", str(out)])
        compare.main()
    cases = json.loads(out.read_text())["cases"]
    assert [(name, case["n"]) for name, case in cases.items()] == [("a", 3), ("b", 5), ("c", 5)]
    assert "--cases a --pairs 3" in cases["a"]["command"]
    assert "--cases cb" in cases["b"]["command"]
    assert all({"commit", "machine"} < set(case) for case in cases.values())


def test_results_name_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summary = importlib.import_module("summary")
    monkeypatch.setattr(summary, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert summary.commit() is None, "not under git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    (tmp_path / "results.json").write_text("no program")
    summary.write(tmp_path / "results.json", "command", {"rows": 1})
    found = json.loads((tmp_path / "results.json").read_text())
    assert re.fullmatch("[0-9a-f]{7,}", found["commit"])
    (tmp_path / "src" / "a.py").write_text("2")
    assert summary.commit() == found["commit"] + "+"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert summary.commit() is None, "no git"


def test_parts_too_short_to_train_a_target_are_refused(tmp_path: Path) -> None:
    short = call("paper/run.py", "--minutes", "5", "--out", str(tmp_path))
    assert short.returncode == 2
    assert short.stderr.splitlines() == ["--minutes 5: more than 6, or no target is ever begun"]


def test_made_up_signs_show_their_digit_and_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "frugal")
    import signs  # type: ignore[import-not-found]

    kinds = torch.arange(4).repeat(50)
    blank, full = torch.zeros(200, 1, 28, 28), torch.ones(200, 1, 28, 28)
    drawn = []
    for digit in (blank, full):
        torch.manual_seed(0)
        drawn.append(signs.signs(digit, kinds))
    assert drawn[0].shape == (200, 3, 32, 32)
    assert 0 <= drawn[0].min() <= drawn[0].max() <= 1
    changed = (drawn[0] - drawn[1]).abs().mean((0, 1))
    assert changed[12:20, 12:20].mean() > 5 * changed[:3].mean(), "a digit lies on the sign, not beside it"
    red, blue = (drawn[0][kinds == kind][:, :, 14:18, 14:18].mean((0, 2, 3)) for kind in (0, 2))
    assert blue[2] > 1.5 * blue[0]
    assert abs(red[2] - red[0]) < 0.1, "white inside"


def test_figures_of_the_journals_page_are_those_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "faults" / "results.json").read_text())
    page = (ROOT / "docs" / "journal.md").read_text()
    for line in (
        f"| kills, tool and server | {found['killed']['tool']} + {found['killed']['server']} |",
        f"| queries | {found['queries']:,} |",
        f"| images charged again | {found['asked_again']:,} |",
        f"| answers taken from the journal | {found['from_journal']:,} |",
        f"| answers lost | {found['lost']} |",
        f"bit for bit | {'yes' if found['hash_equal'] else 'no'} |",
        f"| time | {found['seconds']:.0f} s |",
    ):
        assert line in page


def test_figures_of_the_services_page_are_those_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "http" / "results.json").read_text())
    services, journal = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("services", "journal"))
    for rate in found["images_per_s"].values():
        words = " | ".join(f"{rate[name]:,.0f}" for name in ("median", "min", "max"))
        assert f"| {rate['n']} | {words} |" in services
    assert f"spends {100 * found['run']['share_outside']['median']:.1f} % of its time" in services
    plain, kept = (found["images_per_s"][name]["median"] for name in ("binary", "binary, journal"))
    assert f"{kept:,.0f} images a second instead of {plain:,.0f}" in journal


@pytest.mark.slow
def test_kills_lose_nothing_over_real_sockets(tmp_path: Path) -> None:
    """kill -9 of the tool and of the server by turns, at random points, with failing requests."""
    out, seed = tmp_path / "results.json", str(random.SystemRandom().randrange(10**6))
    print("seed", seed)
    words = ["--kills", "5", "--queries", "1200", "--seed", seed, "--out", str(out)]
    done = call("faults/run.py", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert (found["kills"], found["killed"]) == (5, {"tool": 3, "server": 2})
    assert (found["lost"], found["hash_equal"], found["journal_whole"]) == (0, True, True)
    assert found["asked"] == 1200 + found["asked_again"]
    assert found["asked_again"] <= 3 * 2 * found["most_in_flight"]
    assert found["answered"] <= found["asked"] + found["failed"] + 3 * found["most_in_flight"]


@pytest.mark.slow
def test_yardstick_measures_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = call("engine/compare.py", "--quick", "--cases", "c", "--out", str(out))
    assert done.returncode == 0, done.stderr
    case = json.loads(out.read_text())["cases"]["c"]
    assert case["ratio"]["min"] == case["ratio"]["median"] == case["ratio"]["max"] > 1
    assert 0 < case["share_of_floor"]["median"] < 1
    assert "queries/CPU-s" in done.stdout


def test_mistakes_of_what_to_measure_are_one_line() -> None:
    for script, words, said in (
        ("engine/compare.py", ["--cases", "cd"], "--cases cd: letters of abc"),
        ("paper/speed.py", ["--variants", "bf16-capturd"], "invalid choice: 'bf16-capturd'"),
    ):
        done = call(script, *words)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_http_is_measured_with_and_without_a_journal(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    words = ["--repeats", "1", "--images", "1280", "--queries", "320", "--out", str(out)]
    done = call("http/measure.py", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found["images_per_s"]) == {"binary", "binary, journal", "json"}
    assert all(kind["median"] > 0 for kind in found["images_per_s"].values())
    assert all(0 < run["training_s"] < run["wall_s"] for run in found["run"]["each"])


@pytest.mark.slow
def test_every_variant_of_frugal_runs_and_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on small images and for a few batches: it spends its budget and ends in other weights."""
    for folder in ("", "frugal"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
    import variants  # type: ignore[import-not-found]

    ends: dict[tuple[str, str], float] = {}
    alone = {"student": "digits-cnn", "students": 1}
    large = {name: dataclasses.replace(method, **alone) for name, method in variants.LARGE.items()}
    for name, method in [*variants.VARIANTS.items(), *((f"alone, {name}", m) for name, m in large.items())]:
        for label, access in (("soft", ds.Access.PROBS), ("hard", ds.Access.LABEL)):
            if variants.ALONE.get(name.removeprefix("alone, "), label) != label:
                continue
            target = Linear(ds.Spec((1, 12, 12), 4, access=access), 4)
            account = Account("attack", 160)
            least = method.compute_least // 125
            small = dataclasses.replace(method, batch=16, learnt=16, compute=0.0, compute_least=least)
            state = engine.run(small, target, account, budgets=[160], seed=1)
            assert account.spent == 160
            ends[name, label] = sum(float(w.detach().abs().sum()) for w in state.clone.parameters())
    for label in ("soft", "hard"):
        mine = [end for key, end in ends.items() if key[1] == label]
        assert len(set(mine)) == len(mine) > 15


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What collects frugal's figures."""
    for folder in ("", "claims", "frugal"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
    return importlib.import_module("table")


def test_frugals_page_shows_the_figures_that_were_measured(table: ModuleType) -> None:
    text = (ROOT / "docs" / "methods" / "frugal.md").read_text()
    rows = json.loads((ROOT / "benchmarks" / "frugal" / "results.json").read_text())["rows"]
    assert table.page(text, rows) == text
    rows[0]["agreement"]["mean"] -= 0.01
    assert table.page(text, rows) != text


def test_rows_whose_runs_are_gone_are_kept(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with where it came from, if the sweep has it yet; those whose runs are there, as many as there
    were, are made anew.
    """
    names = {"target": "digits", "labels": "soft", "budget": 1000}
    kinds = ("gone", "there", "more", "no longer")
    gone, there, more, past = ({**names, "method": method, "n": 2} for method in kinds)
    known = {"command": "old", "commit": "abc", "rows": [gone, there, more, past]}
    (tmp_path / "results.json").write_text(json.dumps(known))
    monkeypatch.setattr(table, "listed", lambda: {table.key(row) for row in (gone, there, more)})
    monkeypatch.setattr(table, "gather", lambda spec: [there | {"n": 3}, more | {"n": 1}])
    rows = table.measured(tmp_path / "results.json", "new", False)
    found = [(row["method"], row["n"], row["command"]) for row in rows]
    assert found == [("gone", 2, "old"), ("there", 3, "new"), ("more", 2, "old")]
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows


def test_seeds_that_were_measured_apart_are_joined(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(seeds: list[int], values: list[float], seconds: float) -> dict[str, Any]:
        figures = dict.fromkeys(("agreement", "accuracy", "balance"), table.interval(values))
        curve = [[10 + len(seeds), 0.1], [100, values[0]]]
        names = {"target": "digits", "method": "frugal", "labels": "soft", "budget": 100, "device": "cpu"}
        more = {"n": len(seeds), "seeds": seeds, "seconds": seconds, "curve": curve, "data_free": True}
        return {**names, **figures, **more}

    here = [row([2], [0.6], 40.0)]
    monkeypatch.setattr(table, "listed", lambda: {table.key(here[0])})
    monkeypatch.setattr(table, "gather", lambda spec: here)
    path = tmp_path / "results.json"
    for untimed, seconds, timed in ((False, 20.0, 3), (True, 10.0, 2)):
        known = {"command": "c", "commit": "abc", "machine": {}, "rows": [row([0, 1], [0.9, 0.7], 10.0)]}
        path.write_text(json.dumps(known))
        [found] = table.measured(path, "new", untimed)
        assert found["agreement"]["values"] == [0.9, 0.7, 0.6]
        assert found["agreement"] == table.interval([0.9, 0.7, 0.6])
        assert (found["n"], found["seeds"], found["timed"]) == (3, [0, 1, 2], timed)
        assert found["seconds"] == pytest.approx(seconds)
        assert found["curve"] == [[100, pytest.approx((2 * 0.9 + 0.6) / 3)]]
        assert found["commit"].startswith("abc, ")
        assert table.measured(path, "new", untimed) == [found], "once"
    here[0]["device"], here[0]["seeds"] = "cuda", [3]
    with pytest.raises(SystemExit, match="cpu and cuda are not joined"):
        table.measured(path, "new", False)
