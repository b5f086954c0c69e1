"""Reports: every figure on the page, nothing from outside, nothing hidden, nothing executed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualstudent.report import curves_png, render
from report_fixture import Page, edit, make_run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}$x^"
Report = Callable[..., Page]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    def make(*runs: Path, **options: Any) -> Page:
        out = tmp_path / "report.html"
        render(runs, out, **options)
        assert not list(tmp_path.glob("*.tmp"))
        page = Page(out)
        assert page.open == []
        return page

    return make


def test_page_shows_what_a_run_found(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo", best=0.8214))
    for words in (
        "copied from probabilities: 82.1 % agreement [79.5, 84.5] with the target after 50,000 queries",
        "ok budget : spent 50,000 of 50,000 planned",
        "Unique images 50,000 Asked again 0 Audit images 900",
        "Wall time 33.1 s Queries a second 1,510",
        "Target accuracy 98.9 %",
        "Accuracy, each student 80.1 %, 79.0 %",
        "Cohen's κ 0.8014",
        "ℓ1 of probabilities 0.4123",
        "KL divergence 0.3051 nats",
        "Tightness of the bound 0.7",
        "dualstudent extract runs/demo/target --queries 50000",
        "drops 0.1, 0.3, 0.5",
        "torch 2.13.0+cpu",
        "0123456789abcdef",
        "For models you own or may test",
        "What the figures mean",
    ):
        assert words in page.text
    assert "not ok" not in page.text
    assert "unfinished" not in page.text


def test_page_needs_nothing_from_outside(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo"))
    assert not re.search(r"https?:", page.raw.replace('http-equiv="', ""))
    assert not {"script", "link", "iframe", "object", "embed", "form"} & page.tags
    assert all(uri.startswith("data:image/png;base64,") for uri in page.of("src"))
    assert all(uri.startswith("#") for uri in [*page.of("href"), *page.of("xlink:href")])
    assert "@import" not in page.raw
    assert set(re.findall(r"url\((.)", page.raw)) <= {"#"}
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.of("content")
    assert str(tmp_path) not in page.raw


def test_references_inside_the_page_lead_somewhere(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "a"), make_run(tmp_path / "b", classes=43))
    ids = page.of("id")
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r"url\(#([\w.-]+)\)", page.raw)) | {uri[1:] for uri in page.of("href")}
    assert used == set(ids)


def test_pictures_and_plots_are_described(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo"))
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(pictures) == len(page.of("src")) == 8
    assert pictures[0] == "Row of images that demo asked after 781 queries"
    assert pictures[-1] == "Row of images that demo asked after 50,000 queries"
    plots = [label for label in page.of("aria-label") if "queries" in label]
    assert any("demo: 15.4 % at 781 queries, 82.0 % at 50,000" in label for label in plots)
    assert page.raw.count("<svg ") == page.of("role").count("img") == 6
    assert {"col", "row"} <= set(page.of("scope"))


def test_failed_checks_come_first_and_loud(tmp_path: Path, report: Report) -> None:
    flags = [
        {"name": "budget", "ok": True, "text": "fine"},
        {"name": "collapse", "ok": False, "text": "one class holds 93 % of the answers"},
        {"name": "strange", "ok": "yes", "text": "only true is ok"},
    ]
    page = report(make_run(tmp_path / "demo", flags=flags))
    assert "✗ 2 checks not ok: read them before the figures" in page.text
    assert page.text.index("2 checks not ok") < page.text.index("82.0 %")
    assert "✗ not ok collapse : one class holds 93 % of the answers" in page.text
    assert page.text.index("collapse") < page.text.index("strange") < page.text.index("budget : fine")


def test_faults_of_the_bound_are_shown(tmp_path: Path, report: Report) -> None:
    bound = {"space": "logits", "gap": 3.0, "error": 2.0, "tightness": 1.5, "faults": ["gap above distance"]}
    run = make_run(tmp_path / "faulty")
    edit(run / "result.json", bound=bound)
    assert "Bound: gap above distance" in report(run).text


def test_hostile_text_stays_text(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / HOSTILE.replace("/", "∕"))
    edit(
        run / "result.json",
        flags=[{"name": HOSTILE, "ok": True, "text": HOSTILE}],
        per_class=[{"class": HOSTILE, "images": HOSTILE, "agreement": 1.0, "accuracy": None}],
        histogram={HOSTILE: 1, "1": 1},
        bound={"space": HOSTILE, "faults": [HOSTILE]},
        evaluations=[{"data": HOSTILE, "split": HOSTILE}],
    )
    edit(
        run / "manifest.json",
        method=HOSTILE,
        preset=HOSTILE,
        labels=HOSTILE,
        device=HOSTILE,
        target={"name": HOSTILE, "spec": {"access": HOSTILE, "shape": [HOSTILE]}},
        command=["dualstudent", HOSTILE],
        versions={HOSTILE: HOSTILE},
        recipe={HOSTILE: [HOSTILE, {HOSTILE: 1}]},
    )
    page = report(run, title=HOSTILE)
    assert page.raw.count("&lt;script&gt;alert(1)") > 25
    assert "{{ 7 * 7 }}" in page.raw
    assert "script" not in page.tags
    assert page.raw.count("<img") == len(page.of("src")) == 8
    assert not [attribute for _, attribute, _ in page.attributes if attribute.startswith("on")]
    curves_png([run], tmp_path / "curves.png")


def test_signs_that_hide_or_break_are_replaced(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "demo")
    edit(run / "manifest.json", recipe={"a\u202eb": "bell\x07, lone\ud800 end"}, method="x" * 100_000)
    page = report(run)
    assert "a\ufffdb bell\ufffd, lone\ufffd end" in page.text
    assert "x" * 4000 not in page.raw


def test_figures_that_are_no_numbers_are_not_shown(tmp_path: Path, report: Report) -> None:
    nan = float("nan")
    run = make_run(tmp_path / "demo")
    edit(
        run / "result.json",
        agreement=nan,
        agreement_ci=[nan, 1.0],
        accuracy_each=[nan, 0.5],
        kappa=nan,
        l1=nan,
    )
    page = report(run)
    assert not {"nan", "nan,", "[nan,"} & set(page.text.split())
    assert "Accuracy, each student —, 50.0 %" in page.text


def test_unfinished_run_shows_what_there_is(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo", finished=False))
    spent = re.search(r"unfinished: ([\d,]+) of 50,000 queries", page.text)
    assert spent
    assert f"agreement with the target so far, after {spent[1]} queries" in page.text
    assert "Agreement and accuracy" in page.text
    assert "Images asked" in page.text
    assert "they are made when the run has finished" in page.text


def test_run_that_has_just_begun(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "demo", finished=False, pictures=False)
    (run / "metrics.jsonl").unlink()
    page = report(run)
    assert "unfinished: 0 of 50,000 queries" in page.text
    assert "agreement with the target is unknown: nothing was measured yet" in page.text


def test_stopped_run_keeps_its_checks(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo", complete=False, agreement=None, agreement_ci=None))
    assert "ok budget :" in page.text
    assert "unfinished: 50,000 of 50,000 queries" in page.text


def test_run_being_extended_says_what_is_old(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "demo")
    edit(run / "manifest.json", budgets=[50_000, 100_000])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"event": "evaluation", "step": 99, "queries": 60000, "accuracy": 0.8, "agreement": 0.85}\n'
        )
    page = report(run)
    assert "unfinished: 60,000 of 100,000 queries" in page.text
    assert "85.0 % agreement with the target so far, after 60,000 queries" in page.text
    assert "those at 50,000 queries, before the run was extended" in page.text
    assert "[79.4, 84.4]" not in page.text


def test_no_data_no_bound_no_pictures(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "demo", data=False, bound=False, pictures=False, labels="hard", classes=None)
    page = report(run)
    assert "copied from labels alone with 50,000 queries" in page.text
    assert "unknown: no test images were given" in page.text
    assert "unknown to the attacker" in page.text
    assert "7 were answered" in page.text
    for heading in (
        "Agreement and accuracy",
        "Tightness of the bound ‖",
        "Images asked",
        "Agreement by class",
    ):
        assert heading not in page.text.replace("What the figures mean", "")


@pytest.mark.parametrize("classes", [2, 12, 43, 1000])
def test_any_number_of_classes(classes: int, tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo", classes=classes))
    assert page.raw.count("<svg ") == 6
    assert ("classes with the least agreement" in page.text) == (classes > 12)
    assert (f"All {classes} classes as a table" in page.text) == (classes <= 200)
    assert len(page.raw) < 1_000_000


def test_classes_never_answered_are_counted(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "demo", histogram={"3": 49_000, "7": 1_000, "x": 5})
    page = report(run)
    assert "8 of 10 classes were never answered" in page.text
    assert any("class 3 most often, 98.0 %" in label for label in page.of("aria-label"))


def test_several_runs_side_by_side(tmp_path: Path, report: Report) -> None:
    runs = [make_run(tmp_path / "soft"), make_run(tmp_path / "hard", labels="hard", best=0.61, seed=1)]
    page = report(*runs, title="Soft or hard?")
    assert "Soft or hard?" in page.text
    assert "Agreement 82.0 % 61.0 %" in page.text
    assert "Rows marked ≠ differ" in page.text
    assert page.of("class").count("differs") == 4  # labels, seed, command, what the target reveals
    assert "Soft and hard labels have different losses" in page.text
    assert page.raw.count("<svg ") == 4 + 2 * 2  # shared plots, and two charts a run


def test_what_is_learnt_after_the_last_query_is_told(tmp_path: Path, report: Report) -> None:
    """It stands on end above the last query, as a fault would."""
    run, words = make_run(tmp_path / "run", budget=5_000), "Above the last query: what is learnt after it."
    assert words not in report(run).text
    later = [{"event": "step", "step": 10**6 + i, "queries": 5_000, "loss": 0.1} for i in range(2)]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(step) + "\n" for step in later)
    assert words in report(run).text


def test_more_runs_than_colours(tmp_path: Path, report: Report) -> None:
    page = report(*[make_run(tmp_path / f"run{i}", points=3, pictures=False) for i in range(9)])
    assert "mark c0 m1" in page.of("class")


def test_runs_of_one_name_are_told_apart(tmp_path: Path, report: Report) -> None:
    a, b = make_run(tmp_path / "x/run"), make_run(tmp_path / "y/run")
    page = report(a, b, a)
    assert all(name in page.text for name in ("x/run", "y/run", "x/run (2)"))


def test_runs_of_a_sweep_are_named_by_what_differs(tmp_path: Path, report: Report) -> None:
    cells = [f"{way}/soft/50000/seed{seed}" for way in ("noise", "dfme") for seed in (0, 1)]
    runs = [make_run(tmp_path / "s" / cell) for cell in cells]
    page = report(*runs)
    assert all(cell in page.text for cell in cells)
    page = report(*runs[::2])
    assert "seed0" not in page.text
    assert all(way in page.text for way in ("noise", "dfme"))


def test_later_evaluations_are_listed(tmp_path: Path, report: Report) -> None:
    other = {"data": "mnist", "split": "test", "images": 10_000, "agreement": 0.5, "agreement_ci": [0.4, 0.6]}
    page = report(make_run(tmp_path / "demo", evaluations=[other]))
    assert "mnist test 10,000 50.0 % [40.0, 60.0]" in page.text


def test_broken_picture_is_left_out(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "demo", points=4)
    pictures = sorted((run / "figures").iterdir())
    pictures[0].write_bytes(pictures[0].read_bytes()[:40])
    pictures[1].write_bytes(b"GIF89a")
    (run / "figures/asked-none.png").write_bytes(b"")
    assert len(report(run).of("src")) <= len(pictures) - 2
    curves_png([run], tmp_path / "curves.png")


def test_one_point_of_large_images(tmp_path: Path, report: Report) -> None:
    page = report(make_run(tmp_path / "demo", side=224, channels=3, points=1))
    assert "82.0 % agreement" in page.text
    assert len(page.raw) < 3_000_000


@pytest.mark.parametrize("write", [render, curves_png])
def test_same_files_same_output(write: Callable[..., None], tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", classes=43, budget=200_000)]
    write(runs, tmp_path / "one")
    write(runs, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("runs", [1, 2, 4])
def test_curves_png(runs: int, tmp_path: Path) -> None:
    known = [make_run(tmp_path / f"_run{i}", best=0.9 - i / 10) for i in range(runs)]
    curves_png(known, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1600
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_bill_of_a_service_is_told(tmp_path: Path, report: Report) -> None:
    bill: dict[str, Any] = {
        "asked": 50_064,
        "asked_again": 64,
        "audit": 900,
        "from_journal": 1_280,
        "failed": 192,
    }
    bill |= {
        "from_journal": 1_280,
        "requests": 799,
        "retried": 3,
        "statuses": {"200": 796, "503": 2, "timeout": 1},
    }
    bill |= {"bytes_sent": 614_400_000, "bytes_received": 2_038_000, "waiting_s": 754.2, "price": 76.446}
    bill |= {"broken_off": 128, "price_at_most": 76.73}
    run = make_run(tmp_path / "demo")
    edit(run / "result.json", bill=bill)
    page = report(run)
    for words in (
        "Unique images 50,000 Charged 50,064 Asked again 64 Audit images 900 From the journal 1,280",
        "Requests 799 Retried requests 3 Answers by status 200: 796, 503: 2, timeout: 1",
        "Sent 614 MB Received 2.04 MB Waited for answers 13 min Price 76.45 … 76.73",
        "Failed images 192 Broken off 128",
        "only those that were in flight",
    ):
        assert words in page.text
    edit(run / "result.json", bill={**bill, "statuses": HOSTILE, "bytes_sent": -1, "price": [HOSTILE]})
    page = report(run)
    assert "Answers by status 2" not in page.text
    assert "Received 2.04 MB" in page.text
