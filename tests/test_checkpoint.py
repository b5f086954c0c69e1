"""Snapshots are exact, and whatever befell the newest file, the run goes on from one that is whole."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dualstudent as ds
from conftest import Linear
from dualstudent import engine
from dualstudent.checkpoint import FORMAT, Snapshots
from dualstudent.ledger import Account
from dualstudent.methods.base import optimisers

METHOD = ds.DualStudent(
    batch=4, student_steps=2, width=1, noise_size=2, student="digits-cnn", average_every=1, drops=(0.4,)
)
SPEC = ds.Spec((1, 8, 8), 4)
STEP = METHOD.queries_per_step


def fresh(seed: int = 99, method: ds.DualStudent = METHOD) -> Any:
    torch.manual_seed(seed)
    return method.init(SPEC)


def values(state: Any) -> list[Any]:
    """Everything that a state holds, tensors as bytes: equal lists are bit-identical states."""
    found: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append((value.dtype, tuple(value.shape), value.numpy().tobytes()))
        elif isinstance(value, dict):
            for key in value:
                found.append(key)
                walk(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part)
        else:
            found.append(value)

    walk({name: part.state_dict() for name, part in vars(state).items()})
    return found


@dataclass
class History:
    """Two steps of a run: the bytes of each snapshot, and the state that it was taken of."""

    first: bytes
    second: bytes
    states: dict[int, list[Any]]

    def put(self, folder: Path, *, newest: bytes | None = None, previous: bytes | None = None) -> Snapshots:
        snapshots = Snapshots(folder / "snapshot.pt", "run 1")
        for path, content in ((snapshots.path, newest), (snapshots.previous, previous)):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        return snapshots


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    snapshots = Snapshots(tmp_path_factory.mktemp("history") / "snapshot.pt", "run 1", seconds=0.0)
    states: dict[int, list[Any]] = {}

    def keep(moment: engine.Moment[Any]) -> bool:
        states[moment.step] = values(moment.state)
        return False

    target = Linear(SPEC)
    engine.run(METHOD, target, Account("attack"), budgets=[2 * STEP], snapshots=snapshots, watch=keep)
    return History(snapshots.previous.read_bytes(), snapshots.path.read_bytes(), states)


def bill() -> Account:
    account = Account("attack")
    account.charge(5 * STEP)
    return account


class TestRoundTrip:
    def test_state_and_bill_are_restored_to_the_bit(self, history: History, tmp_path: Path) -> None:
        state, account = fresh(), bill()
        assert values(state) != history.states[2]
        assert history.put(tmp_path, newest=history.second, previous=history.first).load(state, account) == 2
        assert values(state) == history.states[2]
        assert (account.spent, account.asked_again) == (2 * STEP, 3 * STEP)
        rates = [(g["lr"], g["initial_lr"]) for o in optimisers(state) for g in o.param_groups]
        assert rates == [(pytest.approx(0.09), 0.3), (pytest.approx(3e-5), 1e-4)]
        assert state.average.or_else(state.students) is not state.students

    def test_the_previous_one_is_kept(self, history: History, tmp_path: Path) -> None:
        snapshots, state, account = Snapshots(tmp_path / "snapshot.pt", "run 1"), fresh(1), bill()
        for step in (3, 4, 5):
            snapshots.save(step, state, account)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["snapshot.previous.pt", "snapshot.pt"]
        assert snapshots.load(fresh(), bill()) == 5
        snapshots.path.unlink()
        assert snapshots.load(fresh(), bill()) == 4

    def test_none_yet(self, tmp_path: Path) -> None:
        state, account = fresh(), Account("attack")
        before = values(state)
        assert Snapshots(tmp_path / "snapshot.pt", "run 1").load(state, account) is None
        assert values(state) == before

    def test_none_although_images_are_paid(self, tmp_path: Path) -> None:
        """Beginning again in silence would pay for all of them twice."""
        with pytest.raises(ds.UserError, match=f"{5 * STEP} images are paid"):
            Snapshots(tmp_path / "snapshot.pt", "run 1").load(fresh(), bill())

    def test_what_it_counts_on_is_flushed_first(self, tmp_path: Path) -> None:
        path = tmp_path / "snapshot.pt"
        order: list[bool] = []
        Snapshots(path, "run 1", flush=lambda: order.append(path.exists())).save(1, fresh(), bill())
        assert order == [False]

    def test_due_after_its_time_and_not_before(self, tmp_path: Path) -> None:
        assert Snapshots(tmp_path / "s.pt", "run 1", seconds=0.0).due
        patient = Snapshots(tmp_path / "s.pt", "run 1", seconds=1000.0)
        assert not patient.due
        patient.save(1, fresh(), bill())
        assert not patient.due

    def test_where_it_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match="cannot write the snapshot"):
            Snapshots(tmp_path / "none" / "snapshot.pt", "run 1").save(1, fresh(), bill())


def is_previous(
    snapshots: Snapshots, history: History, caplog: pytest.LogCaptureFixture | None = None
) -> None:
    """Check that the first snapshot is used, and that a warning names the second."""
    state, account = fresh(), bill()
    assert snapshots.load(state, account) == 1
    assert values(state) == history.states[1]
    assert account.spent == STEP
    if caplog is not None:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert str(snapshots.path) in record.getMessage()
        assert snapshots.previous.name in record.getMessage()
        assert "\n" not in record.getMessage()


class Evil:
    """What a pickle can do to whoever opens it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.witness),)


def damage(kind: str, whole: bytes) -> bytes:
    if kind.startswith("cut"):
        at = int(kind.split()[1])
        return whole[: at if at >= 0 else len(whole) + at]
    share = float(kind.split()[1])
    place = int(share * len(whole))
    return whole[:place] + bytes(255 - byte for byte in whole[place : place + 8]) + whole[place + 8 :]


class TestDamage:
    @pytest.mark.parametrize(
        "kind",
        ["cut 0", "cut 1", "cut 64", "cut 5000", "cut 100000", "cut -1", "cut -22", "cut -1000"]
        + [f"flip {share}" for share in (0.1, 0.3, 0.5, 0.7, 0.9)],
    )
    def test_the_previous_one_is_used_and_the_log_says_so(
        self, kind: str, history: History, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        newest = damage(kind, history.second)
        is_previous(history.put(tmp_path, newest=newest, previous=history.first), history, caplog)

    @settings(max_examples=25, deadline=None)
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_cut_anywhere(
        self, share: float, history: History, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        newest = history.second[: int(share * len(history.second))]
        folder = tmp_path_factory.getbasetemp()
        is_previous(history.put(folder, newest=newest, previous=history.first), history)

    def test_both_broken(self, history: History, tmp_path: Path) -> None:
        snapshots = history.put(tmp_path, newest=history.second[:99], previous=history.first[:999])
        with pytest.raises(ds.UserError, match="no usable snapshot") as caught:
            snapshots.load(fresh(), bill())
        assert str(snapshots.path) in str(caught.value)
        assert str(snapshots.previous) in str(caught.value)
        names = sorted(file.name for file in tmp_path.iterdir())
        assert names == ["snapshot.previous.pt", "snapshot.pt"], (
            "nothing is set aside where nothing replaces it"
        )
        with pytest.raises(ds.UserError, match="no usable snapshot"):
            snapshots.load(fresh(), bill())

    def test_a_damaged_one_is_not_kept_as_the_previous(self, history: History, tmp_path: Path) -> None:
        """The next save must not push the good one out."""
        snapshots = history.put(tmp_path, newest=history.second[:-5], previous=history.first)
        state, account = fresh(), bill()
        step = snapshots.load(state, account)
        assert step is not None
        snapshots.save(step + 1, state, account)
        snapshots.path.write_bytes(b"torn again")
        is_previous(snapshots, history)

    def test_crash_between_the_two_renames(self, history: History, tmp_path: Path) -> None:
        snapshots = history.put(tmp_path, previous=history.first)
        snapshots.path.with_name("snapshot.pt.tmp").write_bytes(history.second)
        is_previous(snapshots, history)

    @pytest.mark.parametrize("keep", [0, 1000, None])
    def test_crash_while_the_new_one_is_written(
        self, keep: int | None, history: History, tmp_path: Path
    ) -> None:
        snapshots = history.put(tmp_path, newest=history.first)
        snapshots.path.with_name("snapshot.pt.tmp").write_bytes(history.second[:keep])
        is_previous(snapshots, history)
        snapshots.path.unlink()
        assert snapshots.load(fresh(), Account("attack")) is None


class TestForeign:
    @pytest.mark.parametrize("content", [{"step": 2}, [1, 2], 7, {"format": "another", "state": {}}])
    def test_another_torch_file(
        self, content: Any, history: History, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        snapshots = history.put(tmp_path, previous=history.first)
        torch.save(content, snapshots.path)
        is_previous(snapshots, history, caplog)

    def test_a_pickle_is_refused_and_never_run(
        self, history: History, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        snapshots = history.put(tmp_path, previous=history.first)
        evil = Evil(tmp_path / "owned")
        torch.save(
            {"format": FORMAT, "identity": "run 1", "step": 2, "spent": 1, "state": evil}, snapshots.path
        )
        is_previous(snapshots, history, caplog)
        assert not (tmp_path / "owned").exists()

    def test_another_run(self, history: History, tmp_path: Path) -> None:
        history.put(tmp_path, newest=history.second)
        state = fresh()
        before = values(state)
        with pytest.raises(ds.UserError, match="another run"):
            Snapshots(tmp_path / "snapshot.pt", "run 2").load(state, bill())
        assert values(state) == before
        assert Snapshots(tmp_path / "snapshot.pt", "run 1").load(state, bill()) == 2

    @pytest.mark.parametrize(
        "changes",
        [{"width": 2}, {"students": 3}, {"average": 0.0}, {"student": "resnet8"}, {"learn_range": True}],
    )
    def test_another_recipe(self, changes: dict[str, Any], history: History, tmp_path: Path) -> None:
        snapshots = history.put(tmp_path, newest=history.second)
        with pytest.raises(ds.UserError, match="another recipe") as caught:
            snapshots.load(fresh(method=replace(METHOD, **changes)), bill())
        assert "\n" not in str(caught.value)

    def test_a_bill_that_is_lower_than_the_snapshot_says(self, history: History, tmp_path: Path) -> None:
        account = Account("attack")
        account.charge(STEP)
        with pytest.raises(ds.UserError, match=f"the snapshot has {2 * STEP} images, the account {STEP}"):
            history.put(tmp_path, newest=history.second).load(fresh(), account)
