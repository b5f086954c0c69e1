"""Transfer attacks against closed forms and ART's own count; gradients; curves to levels."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.data import Images
from dualstudent.evaluation.gradients import gradient_quality
from dualstudent.evaluation.transfer import Attack, attacked, better_student, chosen, transfer
from dualstudent.experiment.result import balance, reached
from dualstudent.ledger import Account
from dualstudent.networks import Students
from dualstudent.targets import ModuleTarget
from fault_server import Faulty

SPEC = ds.Spec((1, 4, 4), 3)


class Flat(nn.Module):
    """A linear classifier of pixels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.t()


@pytest.fixture
def linear() -> Flat:
    torch.manual_seed(0)
    return Flat(torch.randn(3, 16))


@pytest.fixture
def images(linear: Flat) -> Images:
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8)
    labels = linear(pixels / 255).argmax(1)
    labels[:10] = (labels[:10] + 1) % 3  # ten that the target has wrong
    return Images("made", "test", pixels, labels, ("a", "b", "c"))


def test_fgsm_on_a_linear_model_is_its_closed_form(linear: Flat, images: Images) -> None:
    """x + ε sign((softmax(Wx) − onehot) W), cut off at the bounds."""
    x = images.pixels()
    for targeted in (False, True):
        attack = Attack("fgsm", eps=8 / 255, targeted=targeted)
        goal = chosen(images.labels, 3, attack)
        made = attacked(attack, linear, SPEC, x, goal)
        slope = (linear(x).softmax(1) - nn.functional.one_hot(goal, 3)) @ linear.weight
        towards = -slope.sign() if targeted else slope.sign()
        wanted = (x + 8 / 255 * towards.view_as(x)).clamp(0, 1)
        assert torch.allclose(made, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["fgsm", "bim", "pgd"])
@pytest.mark.parametrize("targeted", [False, True])
def test_success_is_what_art_counts(kind: str, targeted: bool, linear: Flat, images: Images) -> None:
    from art.estimators.classification import PyTorchClassifier
    from art.utils import compute_success

    attack = Attack(kind, 20 / 255, targeted, 5 / 255, 5, 2)  # type: ignore[arg-type]
    target = ModuleTarget(linear, SPEC, output="logits")
    account = Account("transfer")
    [row] = transfer([attack], {"itself": linear}, target, images, account)
    goal = chosen(images.labels, 3, attack)
    made = attacked(attack, linear, SPEC, images.pixels(), goal)
    estimator = PyTorchClassifier(linear, nn.CrossEntropyLoss(), (1, 4, 4), 3, device_type="cpu")
    right = (linear(images.pixels()).argmax(1) == images.labels).numpy()
    assert row["right"] == right.sum() == 50
    clean, rows = images.pixels().numpy(), nn.functional.one_hot(goal, 3).numpy()
    theirs = compute_success(estimator, clean[right], rows[right], made.numpy()[right], targeted)
    assert row["success"] == pytest.approx(theirs)
    if targeted:  # of images that are wrong already, ART counts those whose class changes
        assert row["success_all"] == pytest.approx(
            compute_success(estimator, clean, rows, made.numpy(), True)
        )
    named = linear(made).argmax(1).numpy()
    hit = named == goal.numpy() if targeted else named != images.labels.numpy()
    assert row["success"] == pytest.approx((hit & right).sum() / right.sum())
    assert account.asked == 2 * len(images)
    assert (made - images.pixels()).abs().max() <= 20 / 255 + 1e-6
    assert row["rule"] == ("next class" if targeted else None)


def test_larger_attacks_succeed_more_and_white_box_most(linear: Flat, images: Images) -> None:
    torch.manual_seed(3)
    near = Flat(linear.weight.detach() + 0.8 * torch.randn(3, 16))
    attacks = [Attack("bim", eps / 255, step=2 / 255, iterations=20) for eps in (2, 10, 40)]
    target = ModuleTarget(linear, SPEC, output="logits")
    rows = transfer(attacks, {"near": near, "itself": linear}, target, images, Account("transfer"))
    near_, own = [r["success"] for r in rows[:3]], [r["success"] for r in rows[3:]]
    assert near_ == sorted(near_)
    assert own == sorted(own)
    assert all(a <= b for a, b in zip(near_, own, strict=True))
    assert own[-1] > 0.9


def test_eps_is_measured_in_pixels_whatever_the_inputs(linear: Flat, images: Images) -> None:
    spec = ds.Spec((1, 4, 4), 3, bounds=(-1.0, 1.0), mean=(0.5,), std=(0.5,))
    x, inputs = images.pixels(), []

    class Watched(Flat):
        def forward(self, x: Tensor) -> Tensor:
            inputs.append(x)
            return super().forward(x)

    made = attacked(Attack("fgsm", 8 / 255), Watched(linear.weight.detach()), spec, x, images.labels)
    assert (made - x).abs().max().item() == pytest.approx(8 / 255, rel=1e-4)
    assert ((made >= 0) & (made <= 1)).all()
    assert torch.allclose(inputs[-1], (x[-len(inputs[-1]) :] - 0.5) / 0.5, atol=1e-6), "the proxy's own space"
    by_channel = ds.Spec((2, 2, 4), 3, mean=(0.1, 0.4), std=(0.2, 0.5))
    colour = Images("made", "test", images.images.view(60, 2, 2, 4), images.labels, images.classes)
    target = ModuleTarget(Flat(linear.weight.detach()), by_channel, output="logits")
    [row] = transfer([Attack("bim", 8 / 255)], {"itself": linear}, target, colour, Account("transfer"))
    assert row["success"] is not None


def test_bad_attacks_are_refused() -> None:
    for values in ({"eps": 0.0}, {"eps": 2.0}, {"iterations": 0}, {"restarts": 0}):
        with pytest.raises(ds.UserError):
            Attack(**values)


def test_better_student_is_chosen_without_test_images(linear: Flat) -> None:
    torch.manual_seed(5)
    bad = Flat(torch.randn(3, 16))
    good = Flat(linear.weight.detach() * 3)
    account = Account("transfer")
    target = ModuleTarget(linear, SPEC, output="logits")
    assert better_student(nn.ModuleList([bad, good]), target, torch.rand(200, 1, 4, 4), account) == 1
    assert better_student(nn.ModuleList([good, bad]), target, torch.rand(200, 1, 4, 4), account) == 0
    assert account.asked == 400


def pair(first: nn.Module, second: nn.Module) -> Students:
    students = Students("digits-cnn", (1, 4, 4), 3, 2)
    students.members = nn.ModuleList([first, second])
    return students


def test_gradient_of_disagreement_is_true_where_the_target_is_in_the_middle() -> None:
    """S2 = 2 T − S1: then S1 − S2 = 2 (S1 − T) = 2 (T − S2), and all three gradients have one direction."""
    torch.manual_seed(0)
    one, middle = torch.randn(2, 3, 16).double()
    one, middle = one - one.mean(0), middle - middle.mean(0)
    students, x = pair(Flat(one), Flat(2 * middle - one)), torch.rand(20, 1, 4, 4).double()
    found = gradient_quality(students, Flat(middle), x, directions=(1, 400))
    assert found["disagreement"]["eq6"] == pytest.approx(0, abs=1e-6)
    assert found["disagreement"]["cosine"] == pytest.approx(1)
    single, many = found["forward differences, m = 1"], found["forward differences, m = 400"]
    assert (found["disagreement"]["asked"], single["asked"], many["asked"]) == (0, 40, 401 * 20)
    assert many["eq6"] < 0.4 < single["eq6"]
    assert many["cosine"] > 0.9 > single["cosine"]


def test_eq6_and_cosine_are_two_views_of_one_angle(linear: Flat) -> None:
    torch.manual_seed(2)
    students = pair(Flat(torch.randn(3, 16)), Flat(torch.randn(3, 16)))
    for hard in (False, True):
        found = gradient_quality(students, linear, torch.rand(1, 1, 4, 4), hard=hard, directions=(3,))
        for values in found.values():
            assert 0 <= values["eq6"] <= 2
            assert -1 <= values["cosine"] <= 1
    assert students.training


def test_queries_to_reach_are_interpolated_or_none() -> None:
    curve = [{"queries": q, "agreement": a} for q, a in ((100, 0.5), (200, 0.7), (300, 0.8), (400, 0.78))]
    assert reached(curve, "agreement") == {"0.75": 250.0, "0.80": 300.0, "0.85": None, "0.90": None}
    assert reached(curve, "accuracy") == dict.fromkeys(("0.75", "0.80", "0.85", "0.90"))
    assert reached([{"queries": 50, "agreement": 1.0}], "agreement")["0.80"] == 50.0


def test_balance_is_one_for_all_alike_and_zero_for_one() -> None:
    assert balance({0: 5, 1: 5, 2: 5, 3: 5}, 4) == pytest.approx(1)
    assert balance({2: 50}, 4) == pytest.approx(0)
    assert balance({}, 4) is None
    assert balance({3: 5, 7: 5}, None) is None, "of how many?"
    assert 0.4 < (balance({0: 5, 1: 5}, 4) or 0) < 0.6


def test_command_attacks_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, other, run = (str(tmp_path / name) for name in ("t", "o", "r"))
    for out, seed in ((target, "0"), (other, "1")):
        words = ["--arch", "digits-cnn", "--epochs", "2", "--seed", seed, "--out", out]
        assert main(["target", "train", "digits", *words]) == 0
    assert main(["extract", "procedural", "--target", target, "--queries", "400", "--out", run]) == 0
    words = ["--data", "digits", "--images", "60", "--eps", "8", "40", "--iterations", "3"]
    assert main(["transfer", run, *words, "--same-data", other]) == 0
    assert "the target itself" in capsys.readouterr().out
    found = json.loads((tmp_path / "r" / "transfer.json").read_text())
    assert len(found["rows"]) == 3 * 3 * 2 * 2
    assert found["asked"] == found["asked_in_all"] == 500 + 60 * (1 + len(found["rows"]))
    assert (tmp_path / "r" / "transfer.png").stat().st_size > 10_000
    own = [r["success"] for r in found["rows"] if r["proxy"] == "the target itself" and not r["targeted"]]
    assert own[1] > own[0]
    assert main(["transfer", run, *words, "--same-data", str(tmp_path / "nothing")]) == 2
    capsys.readouterr()
    assert main(["transfer", run, "--data", "digits", "--eps", "999"]) == 2
    assert "--eps 999" in capsys.readouterr().err
    assert main(["transfer", run, "--data", "digits", "--images", "0"]) == 2
    assert main(["transfer", run, *words, "--attacks", "fgsm"]) == 0
    again = json.loads((tmp_path / "r" / "transfer.json").read_text())
    assert again["asked_in_all"] > found["asked_in_all"] + again["asked"] - 1, "no call's bill is lost"


def test_of_a_service_no_answer_is_paid_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An attack that fails on its way goes on where it was; one that is repeated asks nothing."""
    out = tmp_path / "r"
    quick = ["--batch", "16", "--width", "8", "--noise-size", "16", "--points", "1", "--probe-every", "0"]
    words = ["--data", "digits", "--images", "20", "--attacks", "fgsm", "--eps", "8", "40"]
    with Faulty(model={"classes": 10}) as server:
        command = ["extract", "dual-student", "--target", server.url, "--queries", "50", "--out", str(out)]
        assert main([*command, *quick, "--price", "2"]) == 0
        server.change({"6": {"status": 400}})
        assert main(["transfer", str(out), *words]) == 2
        paid = server.count()["images"]
        assert 0 < paid < 500
        server.change()
        assert main(["transfer", str(out), *words]) == 0
        found = json.loads((out / "transfer.json").read_text())
        wanted = 500 + 20 * (1 + len(found["rows"]))
        assert paid + server.count()["images"] == wanted
        assert found["asked_in_all"] - wanted <= 4 * 64, "in flight at the failure"
        assert found["price"] == round(2 * found["asked_in_all"] / 1000, 6)
        bill = json.loads((out / "result.json").read_text())["bill"]
        assert bill["transfer"] == found["asked_in_all"]
        charged = bill["asked"] + bill["audit"] + bill["transfer"]
        assert bill["price"] == bill["price_at_most"] == round(2 * charged / 1000, 6)
        server.change()
        assert main(["transfer", str(out), *words]) == 0
        again = json.loads((out / "transfer.json").read_text())
        assert (server.count()["images"], again["asked"], again["rows"]) == (0, 0, found["rows"])
        assert main(["transfer", str(out), *words, "--eps", "8"]) == 0
        assert server.count()["images"] == 0, "known by their values, whatever else is asked for"
        capsys.readouterr()
        assert main(["journal", "verify", str(out)]) == 0
        assert f"{wanted} of {found['asked_in_all']} images charged" in capsys.readouterr().out
