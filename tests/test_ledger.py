"""The bill is never too low, on disk before anything is asked, and survives any torn file."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent.ledger import Account, Shown, digest

LIMIT = 60
quick = settings(max_examples=40, deadline=None)
charges = st.lists(st.integers(0, 300), min_size=1, max_size=8)


class Bookkeeping(RuleBasedStateMachine):
    """An account with a file against two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "account"
        self.account = Account("attack", LIMIT, self.path)
        self.spent = self.asked = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(images=st.integers(0, LIMIT + 5))
    def charge(self, images: int) -> None:
        if self.spent + images > LIMIT:
            before = self.path.read_bytes() if self.path.exists() else b""
            with pytest.raises(ds.Overdraft, match="attack"):
                self.account.charge(images)
            assert (self.path.read_bytes() if self.path.exists() else b"") == before
        else:
            self.account.charge(images)
            self.spent, self.asked = self.spent + images, self.asked + images
            assert self.account.spent <= LIMIT

    @rule(images=st.integers(1, 100))
    def charge_less_than_nothing(self, images: int) -> None:
        with pytest.raises(ds.UserError):
            self.account.charge(-images)

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        self.spent = int(share * self.spent)
        self.account.rewind(self.spent)

    @rule(images=st.integers(1, 100))
    def rewind_to_what_never_was(self, images: int) -> None:
        for wrong in (-images, self.asked + images):
            with pytest.raises(ds.UserError):
                self.account.rewind(wrong)

    @rule(torn=st.sampled_from([b"", b"1", b"99999"]), spent=st.floats(0, 1))
    def reopen(self, torn: bytes, spent: float) -> None:
        """After a crash, maybe while a line was written; a snapshot says what is history."""
        if self.path.exists():
            with self.path.open("ab") as file:
                file.write(torn)
        self.account = Account("attack", LIMIT, self.path)
        assert self.account.asked == self.account.spent == self.asked
        self.spent = min(LIMIT, int(spent * self.asked))
        self.account.rewind(self.spent)

    @invariant()
    def agrees(self) -> None:
        assert (self.account.spent, self.account.asked) == (self.spent, self.asked)
        assert self.account.asked_again == self.asked - self.spent >= 0
        assert self.account.spent <= LIMIT


Bookkeeping.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestBookkeeping = Bookkeeping.TestCase


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger")


class TestAccountFile:
    @quick
    @given(charges, st.data())
    def test_a_cut_file_keeps_every_whole_line(self, images: list[int], data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "account"
            account, after = Account("attack", path=path), {0: 0}
            for n in images:
                account.charge(n)
                after[path.stat().st_size] = account.asked
            cut = data.draw(st.integers(0, path.stat().st_size))
            with path.open("r+b") as file:
                file.truncate(cut)
            kept = after[max(size for size in after if size <= cut)]
            assert Account("attack", path=path).asked == kept
            Account("attack", path=path).charge(5)
            assert Account("attack", path=path).asked == kept + 5

    @quick
    @given(content=st.from_regex(rb"([0-9]{0,3}[\n\na-]?){1,5}", fullmatch=True))
    def test_any_file_is_an_account_or_a_user_error(self, content: bytes, scratch: Path) -> None:
        path = scratch / "any"
        path.write_bytes(content)
        lines = content.split(b"\n")[:-1]
        assume(any(lines))
        if lines[-1].isdigit():
            assert Account("attack", path=path).asked == int(lines[-1])
        else:
            with pytest.raises(ds.UserError):
                Account("attack", path=path)
            assert path.read_bytes() == content

    @pytest.mark.parametrize("content", [b'{\n "a": 1\n}\n', b"12\n-3\n", b"12\n1.5\n", b"12\n\n", b"ten\n"])
    def test_another_file_is_refused_and_left_alone(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "account").write_bytes(content)
        with pytest.raises(ds.UserError, match="no account"):
            Account("attack", path=tmp_path / "account")
        assert (tmp_path / "account").read_bytes() == content

    def test_the_count_is_on_disk_before_the_target_is_asked(
        self, linear: Callable[..., Linear], tmp_path: Path
    ) -> None:
        inner, path, counts = linear(), tmp_path / "account", []

        class Auditor:
            spec = inner.spec

            def __call__(self, x: Tensor, /) -> Tensor:
                counts.append(Account("what the file says", path=path).asked)
                return inner(x)

        oracle = ds.Oracle(Auditor(), Account("attack", path=path))
        for images in (3, 1, 4):
            oracle(torch.rand(images, 1, 8, 8))
        assert counts == [3, 4, 8]

    def test_what_cannot_be_written_is_not_asked(self, linear: Callable[..., Linear], tmp_path: Path) -> None:
        target, account = linear(), Account("attack", path=tmp_path / "no folder" / "account")
        with pytest.raises(ds.UserError, match="no folder"):
            ds.Oracle(target, account)(torch.rand(3, 1, 8, 8))
        assert target.seen == account.spent == account.asked == 0

    def test_without_a_limit_or_a_file(self) -> None:
        account = Account("audit")
        account.charge(10**9)
        assert (account.spent, account.asked) == (10**9, 10**9)


def images(names: list[int]) -> Tensor:
    """Images that are equal where their names are."""
    return torch.tensor(names).view(-1, 1, 1, 1) * torch.full((1, 2, 2), 0.125)


def answers(labels: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 5).float()


shows = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.booleans()), min_size=1, max_size=20)


def show(shown: Shown, rows: list[tuple[int, int, bool]]) -> None:
    """Show rows of (name, label, whether the batch ends here)."""
    batch: list[tuple[int, int]] = []
    for i, (name, label, ends) in enumerate(rows):
        batch.append((name, label))
        if ends or i == len(rows) - 1:
            shown.add(images([n for n, _ in batch]), answers([k for _, k in batch]))
            batch = []


def figures(shown: Shown) -> tuple[int, dict[int, int]]:
    return shown.unique, shown.histogram()


def expected(rows: list[tuple[int, int, bool]]) -> tuple[int, dict[int, int]]:
    return len({name for name, _, _ in rows}), dict(Counter(label for _, label, _ in rows))


class TestShown:
    @quick
    @given(shows, st.randoms(use_true_random=False))
    def test_counts_whatever_the_order_and_the_batches(
        self, rows: list[tuple[int, int, bool]], random: Random
    ) -> None:
        shown, shuffled = Shown(), list(rows)
        show(shown, rows)
        assert figures(shown) == expected(rows)
        random.shuffle(shuffled)
        other = Shown()
        show(other, shuffled)
        assert figures(other) == figures(shown)

    def test_empty(self) -> None:
        assert figures(Shown()) == (0, {})

    @quick
    @given(shows, shows, st.data())
    def test_reopened_and_rewound_it_is_the_history_of_the_snapshot(
        self, first: list[tuple[int, int, bool]], second: list[tuple[int, int, bool]], data: st.DataObject
    ) -> None:
        """The file may end anywhere behind the snapshot, in the middle of a row, too."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shown"
            shown = Shown(path)
            show(shown, first)
            shown.flush()
            row = path.stat().st_size // len(first)
            cut = data.draw(st.integers(0, path.stat().st_size))
            with path.open("r+b") as file:
                file.truncate(cut)
            kept = data.draw(st.integers(0, cut // row))
            again = Shown(path)
            again.rewind(kept)
            show(again, second)
            assert figures(again) == expected(first[:kept] + second)
            assert figures(Shown(path)) == expected(first[:kept] + second)

    @quick
    @given(shows, st.data())
    def test_rewound_while_it_runs(self, rows: list[tuple[int, int, bool]], data: st.DataObject) -> None:
        shown, kept = Shown(), data.draw(st.integers(0, len(rows)))
        show(shown, rows)
        shown.flush()
        shown.rewind(kept)
        assert figures(shown) == expected(rows[:kept])

    def test_a_record_shorter_than_the_snapshot_is_refused(self, tmp_path: Path) -> None:
        shown = Shown(tmp_path / "shown")
        show(shown, [(0, 1, True), (1, 1, True)])
        shown.flush()
        with pytest.raises(ds.UserError, match="has 2, the snapshot 3"):
            Shown(tmp_path / "shown").rewind(3)
        assert figures(Shown(tmp_path / "shown")) == (2, {1: 2})

    def test_nothing_is_written_before_the_flush(self, tmp_path: Path) -> None:
        shown = Shown(tmp_path / "shown")
        show(shown, [(0, 1, True)])
        assert figures(Shown(tmp_path / "shown")) == (0, {})
        shown.flush()
        shown.flush()
        assert figures(Shown(tmp_path / "shown")) == (1, {1: 1})


class TestDigest:
    def batch(self, seed: int = 0, n: int = 4) -> Tensor:
        return torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(seed))

    @quick
    @given(st.integers(0, 59), st.integers(0, 30), st.integers(0, 2**32))
    def test_one_bit_makes_another_image(self, place: int, bit: int, seed: int) -> None:
        x = self.batch(seed, 1)
        y = x.clone()
        y.view(torch.int32).view(-1)[place] ^= 1 << bit
        assert digest(x).item() != digest(y).item()
        assert digest(x).item() == digest(x.clone()).item()

    @quick
    @given(st.permutations(range(60)), st.integers(0, 2**32))
    def test_moved_pixels_make_another_image(self, order: list[int], seed: int) -> None:
        x = self.batch(seed, 1)
        y = x.view(1, -1)[:, order].view_as(x)
        assert (digest(x).item() == digest(y).item()) == torch.equal(x, y)

    @quick
    @given(st.permutations(range(6)), st.integers(1, 5))
    def test_it_is_of_the_image_alone(self, order: list[int], cut: int) -> None:
        x = self.batch(n=6)
        alone = torch.cat([digest(one[None]) for one in x])
        assert torch.equal(digest(x), alone)
        assert torch.equal(digest(x[order]), alone[order])
        assert torch.equal(torch.cat([digest(x[:cut]), digest(x[cut:])]), alone)
        assert torch.equal(digest(x.contiguous(memory_format=torch.channels_last)), alone)

    def test_all_black_and_white_pictures_differ(self) -> None:
        """The hardest for a sum of products: 2^12 images that share their few values."""
        names = torch.arange(2**12)
        x = ((names[:, None] >> torch.arange(12)) & 1).float().view(-1, 1, 3, 4)
        assert len(set(digest(x).tolist())) == 2**12
        assert len(set(digest(x * 2 - 1).tolist())) == 2**12
