"""What the peers are made of: forward differences, memory, DCGAN; what they promise."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, methods
from dualstudent.ledger import Account, Shown
from dualstudent.losses import imbalance, kl, multi_margin, spread
from dualstudent.memory import Memory
from dualstudent.methods import game
from dualstudent.methods.game import classes_of
from dualstudent.networks import Classes, Students
from dualstudent.networks.dcgan import Critic, DCGenerator
from dualstudent.numerics import Numerics
from dualstudent.zeroth import forward_differences
from test_contract import quick, spent_by

SHAPES = [(1, 8, 64), (1, 33, 8), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 33), (4, 64, 16)]


def test_forward_differences_of_a_plane_are_its_gradient_on_average() -> None:
    """f(x) = a · x: the estimate is the projection of a on random directions, times D; its mean is a."""
    torch.manual_seed(0)
    a, x = torch.randn(1, 2, 3).double(), torch.randn(4, 1, 2, 3).double()
    asked: list[int] = []

    def values(points: Tensor) -> Tensor:
        asked.append(len(points))
        return (points * a).sum((1, 2, 3))

    found = forward_differences(values, x, directions=4000, radius=1e-3)
    assert asked == [4 * 4001], "one question"
    assert torch.allclose(found, a.expand_as(found), atol=0.2)
    one = forward_differences(values, x, directions=1, radius=1e-3)
    projected = (one * a).sum((1, 2, 3)) / one.flatten(1).norm(dim=1)
    assert (projected > 0).all(), "uphill, whatever the direction"


def test_forward_differences_of_many_directions_match_autograd() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 3, 3).double().requires_grad_()
    w = torch.randn(9, 9).double()

    def values(points: Tensor) -> Tensor:
        return (points.flatten(1) @ w).tanh().pow(2).sum(1)

    [true] = torch.autograd.grad(values(x).sum(), x)
    found = forward_differences(values, x.detach(), directions=20_000, radius=1e-5)
    assert torch.nn.functional.cosine_similarity(found.flatten(1), true.flatten(1)).min() > 0.99


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(7, 20))
def test_memory_keeps_the_last_and_only_the_last(batches: list[int], capacity: int) -> None:
    spec = ds.Spec((1, 2, 2), 3, bounds=(-1.0, 1.0))
    memory, shown = Memory(capacity, spec), []
    for size in batches:
        x = memory.rounded(torch.rand(size, 1, 2, 2) * 2 - 1)
        answer = torch.rand(size, 3)
        memory.add(x, answer)
        shown += list(zip(x, answer, strict=True))
    kept = shown[-capacity:]
    assert len(memory) == len(kept)
    x, answer = memory.at(torch.arange(len(memory)))
    for image, row in kept:
        match = [
            torch.equal(image, other) and torch.equal(row, r) for other, r in zip(x, answer, strict=True)
        ]
        assert any(match)
    again = Memory(capacity, spec)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.at(torch.arange(len(kept)))[0], x)
    assert again.added == memory.added


def test_memory_goes_on_after_it_was_restored() -> None:
    spec = ds.Spec((1, 2, 2), 3)
    one, other = Memory(5, spec), Memory(5, spec)
    batches = [(one.rounded(torch.rand(2, 1, 2, 2)), torch.rand(2, 3)) for _ in range(6)]
    for i, batch in enumerate(batches):
        one.add(*batch)
        other.add(*batch)
        fresh = Memory(5, spec)
        fresh.load_state_dict(other.state_dict())
        other = fresh
        torch.manual_seed(i)
        first = one.draw(4)
        torch.manual_seed(i)
        assert all(torch.equal(a, b) for a, b in zip(first, other.draw(4), strict=True))


def test_memory_rounds_to_what_it_keeps() -> None:
    memory = Memory(10, ds.Spec((1, 4, 4), 2, bounds=(-2.0, 3.0)))
    x = memory.rounded(torch.rand(10, 1, 4, 4) * 5 - 2)
    assert torch.equal(memory.rounded(x), x)
    memory.add(x, torch.rand(10, 2))
    assert torch.equal(memory.at(torch.arange(10))[0], x)
    with pytest.raises(ds.UserError, match="too small"):
        memory.add(torch.zeros(11, 1, 4, 4), torch.rand(11, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_dcgan_makes_and_judges_any_shape(shape: tuple[int, int, int]) -> None:
    x = DCGenerator(10, shape, (-1.0, 2.0), width=4)(torch.randn(3, 10))
    assert x.shape == (3, *shape)
    assert ((x >= -1) & (x <= 2)).all()
    assert Critic(shape, width=4)(x).shape == (3,)


def test_dcgan_refuses_other_sizes() -> None:
    with pytest.raises(ds.UserError, match="8 to 64"):
        DCGenerator(10, (1, 4, 8), (0.0, 1.0))


def test_losses_have_the_values_of_their_formulas() -> None:
    s = torch.tensor([[[2.0, 0.5, -1.0]], [[0.0, 0.0, 0.0]]])
    t = torch.tensor([[0.7, 0.2, 0.1]])
    p = s.softmax(2)
    assert torch.allclose(kl(s, t), (t * (t / p).log()).sum(2))
    assert torch.allclose(kl(t.log()[None], t), torch.zeros(1, 1), atol=1e-6)
    label = torch.tensor([[0.0, 1.0, 0.0]])
    wanted = torch.nn.functional.multi_margin_loss(s[0], torch.tensor([1]))
    assert torch.allclose(multi_margin(s, label)[0, 0], wanted)
    assert torch.allclose(spread(s), p.std(0).mean(1))
    mean = p.mean((0, 1))
    assert torch.allclose(imbalance(s), (mean * mean.log()).sum())


def test_losses_of_masked_classes_have_gradients() -> None:
    s = torch.randn(2, 5, 4).masked_fill(torch.tensor([False, False, True, True]), -1e4).requires_grad_()
    [gradient] = torch.autograd.grad(imbalance(s) - spread(s).mean(), s)
    assert gradient.isfinite().all()
    assert (gradient[:, :, :2] != 0).any()
    same = torch.zeros(2, 5, 4, requires_grad=True)
    [gradient] = torch.autograd.grad(spread(same).mean(), same)
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", ["dfme", "disguide", "dfms-hl", "procedural", "noise", "knockoff"])
def test_unknown_number_of_classes(name: str) -> None:
    """Labels alone, ids handed out as they come: the students stay finite and know what they saw."""
    target = Linear(ds.Spec((1, 8, 8), None, access=ds.Access.LABEL), width=5)
    method = quick(name, next(iter(methods.find(name).presets)), max_classes=9)
    state, _ = spent_by(method, target, 150)
    seen = state.clone.seen
    assert seen is not None
    assert 1 <= int((seen.ids >= 0).sum()) <= 5
    assert all(weight.isfinite().all() for weight in state.students.parameters())


def test_forward_differences_are_refused_where_rounding_swallows_them(linear: Callable[..., Linear]) -> None:
    for name in ("dfme", "maze"):
        target = linear(levels=256)
        with pytest.raises(ds.UserError, match="drown"):
            spent_by(quick(name, "paper"), target, 100)
        assert target.seen == 0
        wide = quick(name, "paper", radius=0.05)
        spent_by(wide, linear(levels=256), 100)
    spent_by(quick("dfme", "paper", allow_coarse=True), linear(levels=256), 100)


@pytest.mark.parametrize("name", ["maze", "dfms-sl"])
def test_methods_that_need_probabilities_refuse_labels(name: str, linear: Callable[..., Linear]) -> None:
    target = linear(access=ds.Access.LABEL)
    with pytest.raises(ds.UserError, match="needs PROBS"):
        spent_by(quick(name, "paper"), target, 100)
    assert target.seen == 0


def test_queries_of_an_iteration_are_those_of_the_papers() -> None:
    assert methods.DFME.preset("paper").queries_per_step == 1792
    assert methods.MAZE.preset("paper").queries_per_step == 2048
    assert methods.DualStudent.preset("paper").queries_per_step == 1280


def test_disguide_weighs_balance_as_published() -> None:
    method = methods.DisGUIDE()
    assert float(method.weight(torch.tensor(10.0))) == pytest.approx(0.2)
    assert float(method.weight(torch.tensor(100.0))) == pytest.approx(0.04)
    assert replace(method, diversity=3.0).weight(torch.tensor(10.0)) == 3


def test_balance_is_weighed_by_the_classes_seen() -> None:
    """The head is as wide as --max-classes, the target has two."""
    students = Students("digits-cnn", (1, 8, 8), 50, 2, seen=Classes(50))
    assert float(classes_of(students, torch.zeros(2, 3, 50))) == 2
    students.seen.learn(torch.eye(7))  # type: ignore[union-attr]
    assert float(classes_of(students, torch.zeros(2, 3, 50))) == 7
    assert float(classes_of(Students("digits-cnn", (1, 8, 8), 5, 2), torch.zeros(2, 3, 5))) == 5


@pytest.mark.parametrize("name", ["disguide", "maze", "dfme", "dual-student"])
def test_a_generator_that_diverged_asks_nothing(name: str, linear: Callable[..., Linear]) -> None:
    """Its images are refused before they are charged, also where a memory would round them."""
    target = linear()
    with pytest.raises(ds.UserError):
        spent_by(quick(name, "paper", generator_rate=1e38), target, 2000)
    assert target.seen < 2 * quick(name, "paper").queries_per_step


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dfme", {"drops": (3.0,)}),
        ("dfme", {"momentum": 2.0}),
        ("dfme", {"radius": float("inf")}),
        ("maze", {"radius": 0.0}),
        ("maze", {"momentum": 1.0}),
        ("disguide", {"grey": 7.0}),
        ("disguide", {"diversity": float("nan")}),
        ("disguide", {"memory": 8}),
        ("dfms-hl", {"first": 1.0}),
        ("dfms-hl", {"diversity": -5.0}),
        ("procedural", {"momentum": 1.5}),
    ],
)
def test_values_that_no_recipe_can_mean_are_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ds.UserError, match="--"):
        quick(name, next(iter(methods.find(name).presets)), **change)


@pytest.mark.parametrize("levels", [2, 16, 64, 256, 1000])
@pytest.mark.parametrize("name", ["procedural", "disguide", "dfms-hl"])
def test_what_is_learnt_again_is_what_was_answered(
    name: str, levels: int, linear: Callable[..., Linear]
) -> None:
    asked: list[Tensor] = []
    target = linear(levels=levels)

    def watch(moment: engine.Moment[Any]) -> bool:
        memory = moment.state.memory
        if moment.asked and memory.added > len(asked) * 8:
            asked.append(moment.asked[-1][0])
            kept, _ = memory.at(torch.arange(memory.added - len(asked[-1]), memory.added))
            assert torch.allclose(kept, asked[-1], atol=1e-6)
        return False

    spent_by(quick(name, next(iter(methods.find(name).presets))), target, 64, watch=watch)
    assert asked


def test_differences_are_taken_in_true_float32(
    linear: Callable[..., Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 1e-3 is lost in tf32 and bf16: whatever the run's precision, neither is used there."""
    seen: list[tuple[bool, bool]] = []
    honest = forward_differences

    def spy(values: Any, x: Tensor, **more: Any) -> Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
        return honest(values, x, **more)

    monkeypatch.setattr(game, "forward_differences", spy)
    before = torch.backends.cudnn.allow_tf32
    spent_by(quick("dfme", "paper"), linear(), 100, numerics=Numerics("bf16"))
    assert seen == [(False, False)] * len(seen) != []
    assert torch.backends.cudnn.allow_tf32 == before


def test_disguide_asks_an_eighth_in_grey() -> None:
    torch.manual_seed(0)
    x = methods.DisGUIDE().some_grey(torch.rand(800, 3, 4, 4))
    assert (x.std(1).amax((1, 2)) < 1e-6).float().mean() == pytest.approx(0.125, abs=0.04)


def test_knockoff_asks_each_image_once_before_any_again(linear: Callable[..., Linear]) -> None:
    target = linear()
    seen: list[Tensor] = []

    def watch(moment: engine.Moment[Any]) -> bool:
        seen.extend(x.flatten() for images, _ in moment.asked for x in images)
        return False

    method = quick("knockoff", "default", proxy="digits")
    pool = method.outside(target.spec)
    assert pool is not None
    account = Account("attack", len(pool) + 100)
    engine.run(method, target, account, budgets=[len(pool) + 100], watch=watch)
    first, alike = torch.stack(seen[: len(pool)]), len(torch.unique(pool.images.flatten(1), dim=0))
    assert len(torch.unique(first, dim=0)) == alike
    later = torch.stack(seen[len(pool) :])
    assert not (later[:, None] == first[None]).all(2).any(), "shifted"


def test_knockoff_asks_none_twice_in_a_last_step_of_two_batches(linear: Callable[..., Linear]) -> None:
    shown = Shown()
    spent_by(quick("knockoff", "default"), linear(), 8 * 20 + 1, shown=shown)
    assert shown.unique == 161


def test_a_proxy_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run records does not depend on where its command was given; names stay names."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert methods.Knockoff(proxy="mine", proxy_dir="mine").proxy == str(tmp_path / "mine")
    assert methods.Knockoff(proxy="digits", proxy_dir="mine").proxy_dir == str(tmp_path / "mine")
    assert methods.Knockoff(proxy="digits").proxy == "digits"
    assert methods.DFMSHL().proxy == "shapes"
    assert methods.DFMSHL(proxy="mine").proxy == str(tmp_path / "mine")


def test_proxies_are_fitted_to_the_target(tmp_path: Path) -> None:
    method = methods.Knockoff(proxy="digits")
    fitted = method.outside(ds.Spec((3, 16, 12), 4))
    assert fitted.shape == (3, 16, 12)
    assert len(fitted) == len(ds.load_data("digits", "train"))
    with pytest.raises(ds.UserError):
        methods.Knockoff(proxy="nothing-like-that").init(ds.Spec((1, 8, 8), 4))


def test_run_names_the_images_of_others_that_it_asked(linear: Callable[..., Linear], tmp_path: Path) -> None:
    run = ds.extract(quick("knockoff", "default"), linear(), queries=40, out=tmp_path / "k")
    about = json.loads((tmp_path / "k" / "manifest.json").read_text())
    assert about["data_free"] is False
    assert about["outside"]["name"] == "digits"
    [flag] = [flag for flag in run.result["flags"] if flag["name"] == "data-free"]
    assert not flag["ok"]
    assert "digits train, 897" in flag["text"]
    assert len(about["outside"]["sha256"]) == 64
    assert run.result["spent"] == 40
    free = ds.extract(quick("procedural", "default"), linear(), queries=40, out=tmp_path / "p")
    assert json.loads((free.path / "manifest.json").read_text())["data_free"] is True
    borrowed = quick("dfms-hl", "paper", proxy="digits")
    other = ds.extract(borrowed, linear(), queries=40, out=tmp_path / "d")
    assert json.loads((other.path / "manifest.json").read_text())["data_free"] is False
