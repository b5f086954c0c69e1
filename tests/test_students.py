"""Students as one network, their average, classes met one by one, and models on disk."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dualstudent as ds
from dualstudent.networks import Average, Classes, Clone, Students, load_student, save_student

quick = settings(max_examples=30, deadline=None)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def of_seed(seed: int, count: int = 2, outputs: int = 3, **more: nn.Module | None) -> Students:
    torch.manual_seed(seed)
    return Students("digits-cnn", (1, 8, 8), outputs, count, **more)  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestStudents:
    def test_each_has_weights_of_its_own(self) -> None:
        students, x = of_seed(0, count=3), images(4)
        logits = students(x)
        assert logits.shape == (3, 4, 3)
        for i, member in enumerate(students.members):
            assert torch.equal(logits[i], member(x))
        assert not torch.equal(logits[0], logits[1])

    def test_the_clone_is_their_mean(self) -> None:
        students, x = of_seed(0, count=3).eval(), images(4)
        clone = Clone(students).eval()
        assert torch.equal(clone.each(x), students(x))
        assert torch.allclose(clone(x), students(x).mean(0))
        assert clone(x).shape == (4, 3)
        assert clone.ids is None

    def test_a_trained_first_member_is_judged_alone(self) -> None:
        first, x = of_seed(5).members[0].eval(), images(4)
        students = of_seed(0, first=first).eval()
        assert students(x).shape == (2, 4, 3)
        assert torch.equal(students(x)[0], first(x))
        clone = Clone(students).eval()
        assert len(clone.students) == 1
        assert torch.equal(clone(x), first(x))


class TestAverage:
    def moved(self, students: Students, seed: int) -> Students:
        """Give students the weights and buffers of others."""
        other = of_seed(seed)
        other(images(seed))  # so that buffers, integers too, differ
        students.load_state_dict(other.state_dict())
        return students

    def test_never_stands_in_before_its_first_move_and_copies_then(self) -> None:
        students = of_seed(0)
        average = Average(students, decay=0.9, every=3)
        for call in (2, 3):
            assert average.or_else(students) is students
            average.update(self.moved(students, call))
        assert average.or_else(students) is students
        average.update(self.moved(students, 4))
        assert average.or_else(students) is not students
        assert same(average.or_else(students), students)
        assert not same(average.or_else(students), self.moved(students, 5))

    def test_then_it_moves_by_one_minus_decay(self) -> None:
        students = of_seed(0)
        average = Average(students, decay=0.75, every=2)
        expected: dict[str, Tensor] = {}
        for call in range(2, 10):
            average.update(self.moved(students, call))
            if call % 2:
                theirs = {name: t.clone() for name, t in students.state_dict().items()}
                for name, now in theirs.items():
                    old = expected.get(name, now)
                    expected[name] = 0.75 * old + 0.25 * now if now.is_floating_point() else now
        mine = average.or_else(students).state_dict()
        assert mine.keys() == expected.keys()
        assert all(torch.allclose(mine[name], expected[name], atol=1e-6) for name in mine)
        assert not any(p.requires_grad for p in average.parameters())

    def test_round_trip_with_its_calls(self, tmp_path: Path) -> None:
        students = of_seed(0)
        average, again = Average(students, 0.5, 2), Average(of_seed(1), 0.5, 2)
        for call in (2, 3, 4):
            average.update(self.moved(students, call))
        torch.save(average.state_dict(), tmp_path / "average.pt")
        again.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
        assert same(again.or_else(students), average.or_else(students))
        self.moved(students, 5)
        average.update(students)
        again.update(students)  # the fourth call of both: a move
        assert same(again.or_else(students), average.or_else(students))
        assert again.or_else(students) is again.students


class TestClasses:
    @quick
    @given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=6), st.integers(2, 12))
    def test_indices_in_order_of_first_appearance(self, batches: list[list[int]], most: int) -> None:
        classes, order = Classes(most), list[int]()
        for labels in batches:
            answer = nn.functional.one_hot(torch.tensor(labels), max(labels) + 1).float()
            known = list(dict.fromkeys(order + labels))
            if len(known) > most:
                with pytest.raises(ds.UserError, match="--max-classes"):
                    classes.learn(answer)
            else:
                order = known
                ours = classes.learn(answer)
                assert ours.shape == (len(labels), most)
                assert ours.sum(1).tolist() == [1.0] * len(labels)
                assert [order[i] for i in ours.argmax(1).tolist()] == labels
            assert classes.ids.tolist() == order + [-1] * (most - len(order))

    def test_a_class_not_seen_has_no_probability(self) -> None:
        students, x = of_seed(0, outputs=5, seen=Classes(5)), images(4)
        assert students.seen is not None
        students.seen.learn(nn.functional.one_hot(torch.tensor([7, 3])).float())
        for logits in (students(x), Clone(students).each(x)):
            assert (logits.softmax(2)[:, :, 2:] == 0).all()
            assert (logits.softmax(2)[:, :, :2] > 0).all()
            assert torch.equal(logits[0, :, 2:], logits[1, :, 2:])  # no disagreement there
        ids = Clone(students).ids
        assert ids is not None
        assert ids.tolist() == [7, 3, -1, -1, -1]
        students(x).sum().backward()
        head = students.members[0].head
        assert head.weight.grad[2:].abs().sum() == 0  # type: ignore[union-attr, index]


class TestStore:
    def saved(self, folder: Path, seen: bool = False) -> Clone:
        students = of_seed(3, seen=Classes(3) if seen else None)
        students(images(9))
        if students.seen is not None:
            students.seen.learn(nn.functional.one_hot(torch.tensor([5, 1])).float())
        clone = Clone(students).eval()
        spec = ds.Spec((1, 8, 8), None if seen else 3, (-1.0, 1.0))
        save_student(folder, clone, spec=spec, seed=3)
        return clone

    @pytest.mark.parametrize("seen", [False, True])
    def test_round_trip(self, tmp_path: Path, seen: bool) -> None:
        clone, x = self.saved(tmp_path / "run" / "student", seen), images(7, seed=1)
        for path in (tmp_path / "run", tmp_path / "run" / "student", str(tmp_path / "run")):
            again = load_student(path)
            assert same(again, clone)
            assert torch.equal(again(x), clone(x))
            assert torch.equal(again.each(x), clone.each(x))
            assert not any(module.training for module in again.modules())
            assert (again.ids is None) == (not seen)
        if again.ids is not None:
            assert again.ids.tolist() == [5, 1, -1]

    @pytest.mark.parametrize("file", ["student.json", "model.safetensors"])
    def test_a_missing_or_damaged_file_is_refused(self, tmp_path: Path, file: str) -> None:
        self.saved(tmp_path)
        whole = (tmp_path / file).read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"\0" * len(whole), whole[1:], None):
            (tmp_path / file).unlink()
            if content is not None:
                (tmp_path / file).write_bytes(content)
                assert (tmp_path / file).exists()
            with pytest.raises(ds.UserError, match=file) as caught:
                load_student(tmp_path)
            assert "\n" not in str(caught.value)
            (tmp_path / file).write_bytes(whole)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"outputs": 4}, "another network"),
            ({"students": 3}, "another network"),
            ({"arch": "resnet8"}, "another network"),
            ({"arch": "resnet9"}, "did you mean 'resnet8'"),
            ({"ids": [0, 1, 2]}, "another network"),
            ({"spec": {}}, "spec"),
        ],
    )
    def test_a_description_of_another_one_is_refused(
        self, tmp_path: Path, changes: dict[str, object], word: str
    ) -> None:
        self.saved(tmp_path)
        about = json.loads((tmp_path / "student.json").read_text())
        (tmp_path / "student.json").write_text(json.dumps(about | changes))
        with pytest.raises(ds.UserError, match=word):
            load_student(tmp_path)
        for name in changes:
            del about[name]
        (tmp_path / "student.json").write_text(json.dumps(about))
        with pytest.raises(ds.UserError, match="describes no student"):
            load_student(tmp_path)

    def test_a_pickle_is_never_opened(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (tmp_path / "owned",)

        self.saved(tmp_path)
        torch.save({"students.0.head.weight": Evil()}, tmp_path / "model.safetensors")
        with pytest.raises(ds.UserError):
            load_student(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ds.UserError):
            load_student(tmp_path)
        assert not (tmp_path / "owned").exists()
