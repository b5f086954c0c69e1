"""The benchmarks' programs run: the paper's path at toy size, the yardstick on its smallest case."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

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
    assert call("paper/run.py", *words).stdout.splitlines()[-1] == "done", "a third call has nothing to do"


def test_cells_are_named_by_their_parts(tmp_path: Path) -> None:
    words = ["--dry", "--out", str(tmp_path)]
    none = call("paper/run.py", *words, "--only", "cifar1")
    assert none.returncode == 2
    assert "none of the cells" in none.stderr
    done = call("paper/run.py", *words, "--only", "cifar10, classes unknown", "cifar10/DS 2 M*")
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    rows = {tuple(name.split("/")[:2]) for name in cells}
    alone = {("cifar10", f"DS 2 M, {precision}") for precision in ("bf16", "tf32", "fp32")}
    assert rows == alone | {("cifar10, classes unknown", "DS, classes unknown")}
    shown = call("paper/run.py", "--list").stdout
    assert "cifar10/DS/soft/20000000/seed0: expected 91.34 ± 3 %, about 14 min" in shown


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
    done = call(
        "paper/speed.py", "--dry", "--steps", "2", "--variants", "fp32-eager", "plain", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    ours, plain = json.loads(out.read_text())["variants"].values()
    assert plain["ms"] > 0
    assert sum(ours["parts_ms"].values()) < 20 * ours["ms"], "parts of an iteration, in the same unit"
    assert set(ours["parts_ms"]) == {"climb", "ask", "imitate"}
    assert all(ms > 0 for ms in ours["parts_ms"].values())


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


def test_every_variant_of_frugal_runs_and_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on small images and for a few batches: it spends its budget and ends in other weights."""
    for folder in ("", "frugal"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
    import variants  # type: ignore[import-not-found]

    ends: dict[tuple[str, str], float] = {}
    for name, method in variants.VARIANTS.items():
        for label, access in (("soft", ds.Access.PROBS), ("hard", ds.Access.LABEL)):
            if variants.ALONE.get(name, label) != label:
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
