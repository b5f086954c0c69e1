"""Probes along a run: a model that changes under it ends it in one clear line, and what was paid is kept."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent.errors import Stopped
from dualstudent.experiment.folder import RunFolder
from dualstudent.experiment.probes import IMAGES, Probes, cadence, probe_images
from dualstudent.ledger import Account
from dualstudent.methods import find
from dualstudent.report import render

SPEC = ds.Spec((1, 8, 8), 4)
METHOD = replace(ds.DualStudent.preset("small"), batch=16, width=8, noise_size=16)
QUERIES, EVERY = 480, 96
Make = Callable[..., Linear]


class Changing(Linear):
    """A target whose weights are others after so many images."""

    def __init__(self, after: int = 10**9, spec: ds.Spec = SPEC) -> None:
        super().__init__(spec)
        self.after, self.old = after, self.weight

    def __call__(self, x: Tensor, /) -> Tensor:
        self.weight = self.old if self.seen < self.after else -self.old
        return super().__call__(x)


class Paid(Changing):
    """The same as a service."""

    def __init__(self, after: int = 10**9) -> None:
        super().__init__(after)
        self.traffic = ds.Traffic()

    def requests(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        self.traffic.requests += 1
        yield torch.arange(len(x)), self(x)


class Random(Linear):
    """A target that adds noise to what it answers."""

    def __call__(self, x: Tensor, /) -> Tensor:
        p = super().__call__(x) + 0.1 * torch.rand(len(x), 4)
        return p / p.sum(1, keepdim=True)


def extract(target: ds.Target, out: Path, **more: Any) -> ds.Run:
    settings: dict[str, Any] = {"queries": QUERIES, "points": 2, "device": "cpu", "snapshot_every": 0.0}
    return ds.extract(METHOD, target, out=out, **{**settings, **more})


def kept(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "probes.json").read_text()))


def without_times(run: ds.Run) -> dict[str, Any]:
    return {k: v for k, v in run.result.items() if k not in ("timing", "bill", "flags")}


class TestBill:
    def test_charged_to_the_audit_and_shown(self, tmp_path: Path) -> None:
        target = Changing()
        run = extract(target, tmp_path / "run", probe_every=EVERY)
        images = run.result["bill"]["probes"]
        assert images % IMAGES == 0
        assert IMAGES * (2 + QUERIES // EVERY) >= images >= IMAGES * (1 + QUERIES // EVERY)
        assert run.result["bill"]["audit"] == images == kept(tmp_path / "run")["asked"]
        assert run.result["bill"]["asked"] == run.result["spent"] == QUERIES
        assert target.seen == QUERIES + images
        assert kept(tmp_path / "run")["alike_at"] == QUERIES  # after the last query too
        flags = {flag["name"]: flag["ok"] for flag in run.result["flags"]}
        assert flags["same target"]
        render([tmp_path / "run"], tmp_path / "report.html")
        assert "Probe images" in (tmp_path / "report.html").read_text()

    def test_they_change_nothing_of_the_run(self, tmp_path: Path) -> None:
        plain = extract(Changing(), tmp_path / "plain")
        probed = extract(Changing(), tmp_path / "probed", probe_every=EVERY)
        assert not (tmp_path / "plain" / "probes.json").exists()
        assert plain.result["bill"]["probes"] == 0
        assert without_times(plain) == without_times(probed)
        for name in ("metrics.jsonl", "shown.bin", "student/model.safetensors"):
            assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "probed" / name).read_bytes()

    def test_hard_labels_are_probed_by_what_the_target_says(self, tmp_path: Path) -> None:
        extract(Changing(), tmp_path / "run", labels="hard", probe_every=EVERY)
        [row, *_] = kept(tmp_path / "run")["answers"]
        assert 0 < max(row) < 1


class TestCadence:
    @pytest.mark.parametrize(
        ("asked_for", "service", "queries", "every"),
        [
            (None, False, 10**6, 0),
            (None, True, 10_000, 1000),
            (None, True, 10**6, 50_000),
            (0, True, 10**6, 0),
            (7, True, 10**6, 7),
            (7, False, 10**6, 7),
        ],
    )
    def test_of_a_service_by_itself(
        self, asked_for: int | None, service: bool, queries: int, every: int
    ) -> None:
        target: ds.Target = Paid() if service else Changing()
        assert cadence(asked_for, target, queries) == every

    def test_a_service_is_probed_unasked(self, tmp_path: Path) -> None:
        run = extract(Paid(), tmp_path / "run")
        assert run.result["bill"]["probes"] == 3 * IMAGES  # twice before the first query, once after the last
        assert run.result["flags"][-1]["name"] == "same target"
        assert extract(Paid(), tmp_path / "none", probe_every=0).result["bill"]["probes"] == 0

    def test_fewer_than_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match="--probe-every -1"):
            extract(Changing(), tmp_path / "run", probe_every=-1)
        assert not (tmp_path / "run").exists()


class TestChange:
    def test_ends_in_one_line_and_keeps_what_was_paid(self, tmp_path: Path) -> None:
        quiet = extract(Changing(), tmp_path / "quiet", probe_every=EVERY)
        target = Changing(after=254)
        with pytest.raises(
            ds.TargetError, match=r"the target has changed between query 240 and query 320"
        ) as caught:
            extract(target, tmp_path / "run", probe_every=EVERY)
        assert "\n" not in str(caught.value)
        assert f"resume {tmp_path / 'run'}" in str(caught.value)
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert (result["spent"], result["complete"]) == (320, False)
        assert result["bill"]["asked"] == 320
        before = (tmp_path / "run" / "attack.account").read_bytes()
        with pytest.raises(ds.TargetError, match=r"changed between query 240 and query 320"):
            ds.resume(tmp_path / "run", Changing(after=0))  # not back yet: nothing is asked
        assert (tmp_path / "run" / "attack.account").read_bytes() == before
        back = ds.resume(tmp_path / "run", Changing())
        assert back.result["complete"]
        assert back.result["bill"]["asked"] == QUERIES
        assert back.result["histogram"] != quiet.result["histogram"]  # what the other model said is in it

    def test_after_the_last_query(self, tmp_path: Path) -> None:
        with pytest.raises(ds.TargetError, match=r"between query 400 and query 480"):
            extract(Changing(after=422), tmp_path / "run", probe_every=EVERY)
        with pytest.raises(ds.UserError, match="no result"):
            ds.evaluate(tmp_path / "run", ds.load_data("digits")[:50])
        done = ds.resume(tmp_path / "run", Changing())
        assert done.result["complete"]
        assert done.result["bill"]["asked"] == QUERIES

    def test_of_a_method_that_learns_on(self, tmp_path: Path) -> None:
        """The last answers are probed before what follows them is learnt."""
        kind: Any = find("frugal")
        method = kind(batch=16, compute_least=40)
        settings: dict[str, Any] = {"queries": 200, "out": tmp_path / "run", "device": "cpu", "points": 1}
        with pytest.raises(ds.TargetError, match="between query 112 and query 200"):
            ds.extract(method, Changing(after=150), probe_every=100, **settings)
        assert not json.loads((tmp_path / "run" / "result.json").read_text())["complete"]
        assert ds.resume(tmp_path / "run", Changing()).result["complete"]

    def test_going_on_whatever_it_answers(self, tmp_path: Path) -> None:
        with pytest.raises(ds.TargetError):
            extract(Changing(after=300), tmp_path / "run", probe_every=EVERY)
        done = ds.resume(tmp_path / "run", Changing(after=0), probe_every=0)
        assert done.result["complete"]
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["probe_every"] == 0
        assert "same target" not in [flag["name"] for flag in done.result["flags"]]

    def test_while_the_run_was_stopped(self, tmp_path: Path) -> None:
        steps = iter([False] * 3 + [True] * 99)
        with pytest.raises(Stopped):
            extract(Changing(), tmp_path / "run", probe_every=EVERY, stop=lambda: next(steps))
        with pytest.raises(ds.TargetError, match="the target has changed"):
            ds.resume(tmp_path / "run", Changing(after=0))
        quiet, done = extract(Changing(), tmp_path / "quiet"), ds.resume(tmp_path / "run", Changing())
        assert without_times(done) == without_times(quiet)

    def test_a_service_that_is_gone_stops_with_its_state_saved(self, tmp_path: Path) -> None:
        class Gone(Changing):
            def __call__(self, x: Tensor, /) -> Tensor:
                if self.seen > 300 and len(x) == IMAGES:
                    raise ds.TargetError("nobody is there")
                return super().__call__(x)

        with pytest.raises(ds.TargetError, match=r"nobody is there; go on with: dualstudent resume"):
            extract(Gone(), tmp_path / "run", probe_every=EVERY, snapshot_every=1000.0)
        done = ds.resume(tmp_path / "run", Changing())
        assert done.result["bill"]["asked_again"] == 0


class TestRandom:
    def test_is_refused_where_probes_are_wanted(self, tmp_path: Path) -> None:
        target = Random(SPEC)
        with pytest.raises(ds.UserError, match=r"randomised defence.*--probe-every 0"):
            extract(target, tmp_path / "run", probe_every=EVERY)
        assert target.seen == 2 * IMAGES
        assert ds.resume(tmp_path / "run", target, probe_every=0).result["complete"]

    def test_goes_without_where_nobody_asked(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class Both(Random):
            traffic = ds.Traffic()

            def requests(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
                yield torch.arange(len(x)), self(x)

        run = extract(Both(SPEC), tmp_path / "run")
        assert "the run goes without them" in caplog.text
        assert run.result["bill"]["probes"] == 2 * IMAGES
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["probe_every"] == 0


class TestImages:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 20), (2, 1, 1)])
    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
    def test_are_the_same_always_and_inside(
        self, shape: tuple[int, int, int], bounds: tuple[float, float]
    ) -> None:
        spec = ds.Spec(shape, 3, bounds, levels=256)
        torch.manual_seed(3)
        first, state = probe_images(spec), torch.get_rng_state()
        assert torch.equal(first, probe_images(spec))
        assert torch.equal(state, torch.get_rng_state())
        assert first.shape == (IMAGES, *shape)
        assert bounds[0] <= first.min() <= first.max() <= bounds[1] + 1e-4
        assert len(torch.unique(first.flatten(1), dim=0)) == IMAGES

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            "{}",
            '{"answers": 3, "asked": 4, "alike_at": 0}',
            '{"answers": [[1]], "asked": 4, "alike_at": 0}',
        ],
    )
    def test_answers_that_cannot_be_read(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "probes.json").write_text(content)
        with pytest.raises(ds.UserError, match=r"probes\.json"):
            Probes(RunFolder(tmp_path), Changing(), Account("audit"), EVERY, QUERIES)

    def test_labels_of_an_unknown_number_of_classes(self, tmp_path: Path) -> None:
        spec = ds.Spec((1, 8, 8), None)
        wide = [5]
        target = ds.CallableTarget(lambda x: torch.arange(len(x)).numpy() % wide[0], spec, output="labels")
        probes = Probes(RunFolder(tmp_path), target, Account("audit"), EVERY, QUERIES)
        assert probes.begin(0, insist=True)
        assert not probes(EVERY)
        wide[0] = 3
        assert probes(2 * EVERY)
        assert probes.trouble is not None
