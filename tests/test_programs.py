"""Programs captured as CUDA graphs compute what they compute uncaptured; the rest of a GPU's own ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, programs
from dualstudent.ledger import Account
from dualstudent.methods import Method
from dualstudent.methods.base import modules
from dualstudent.muon import Muon
from dualstudent.networks import classifier, folded
from dualstudent.numerics import Numerics
from dualstudent.programs import WARM, Graphs, Program, known
from dualstudent.targets import ModuleTarget, Training
from test_contract import LAST, every_case, quick

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 30


def weights(method: Method[Any], *, captured: bool, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    target = ModuleTarget(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)),
        ds.Spec((1, 8, 8), 4),
        output="logits",
        device="cuda",
    )
    budget = STEPS * method.queries_per_step
    made: list[Graphs] = []

    def graphs(device: str | torch.device) -> Graphs:
        made.append(Graphs(device))
        return made[0]

    monkeypatch.setattr(engine, "Graphs", graphs if captured else lambda device: None)
    state = engine.run(
        method,
        target,
        Account("attack", budget),
        budgets=[budget],
        device="cuda",
        numerics=Numerics("fp32", deterministic=True, compile="on"),
    )
    if captured and known(modules(state)):
        assert any(program.calls > WARM for program in made[0].programs.values())
    return [
        value.clone()
        for module in modules(state)
        for value in module.state_dict().values()
        if isinstance(value, torch.Tensor)
    ]


@cuda
@pytest.mark.parametrize(
    ("name", "preset", "more"),
    [*((*method, {}) for method in LAST), ("frugal", "default", {"students": 1})],
)
def test_captured_run_is_the_same_bit_for_bit(
    name: str, preset: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "dual-student":
        more = {"drops": (0.5,), "average": 0.9, "average_every": 2}
    ours = weights(quick(name, preset, **more), captured=True, monkeypatch=monkeypatch)
    theirs = weights(quick(name, preset, **more), captured=False, monkeypatch=monkeypatch)
    assert all(value.isfinite().all() for value in ours)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


UNCAPTURED = {  # a value looked at, one made of Python's numbers, a size that depends on values
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


class Strict(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a CUDA graph cannot hold, on any device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [i for a in args if isinstance(a, (list, tuple)) for i in a if isinstance(i, torch.Tensor)]
        assert func not in UNCAPTURED, func
        assert all(mask.dtype != torch.bool for mask in masks), func
        return func(*args, **(kwargs or {}))


def strictly(name: str, program: Program, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    with Strict():  # type: ignore[no-untyped-call]
        return program(*inputs)


@every_case
def test_programs_can_be_captured(
    name: str,
    preset: str,
    access: ds.Access,
    linear: Callable[..., Linear],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: set[str] = set()

    def captured(name: str, program: Program, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        called.add(name)
        kept = tuple(x.clone() for x in inputs)  # what is compiled for one must do for the other
        assert [x.stride() for x in kept] == [x.stride() for x in inputs], name
        return strictly(name, program, kept)

    monkeypatch.setattr(programs, "_graphs", captured)
    for more in ({}, {"students": 1}) if name == "frugal" else ({},):  # alone nobody disagrees
        method = quick(name, preset, **more)
        budget = 4 * method.queries_per_step
        engine.run(method, linear(access=access), Account("attack", budget), budgets=[budget])
    assert any(name.startswith("learn") for name in called)
    assert ("uphill" in called) == (name == "frugal" and access == ds.Access.PROBS)


def test_a_step_of_training_can_be_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a target is trained by such steps: its weights are those of the same steps, called as they are."""
    called: list[str] = []

    def captured(name: str, program: Program, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        called.append(name)
        return strictly(name, program, tuple(x.clone() for x in inputs))

    sums = []
    for folder in ("plain", "captured"):
        ds.train_target("digits", "digits-cnn", tmp_path / folder, training=Training(epochs=1))
        sums.append((tmp_path / folder / "model.safetensors").read_bytes())
        monkeypatch.setattr(programs, "_graphs", captured)
    assert set(called) == {"train"}
    assert sums[0] == sums[1]


def test_a_step_of_muon_can_be_captured() -> None:
    network = classifier("lenet5", (1, 12, 12), 4)
    optimiser = Muon([network], 0.01, 0.3)
    for group in optimiser.param_groups:
        group["lr"] = torch.tensor(0.01)
    with Strict():  # type: ignore[no-untyped-call]
        for _ in range(2):
            for weight in network.parameters():
                weight.grad = torch.ones_like(weight)
            optimiser.step()


@pytest.mark.parametrize(
    "bad", [lambda x: x[x > 0], lambda x: x + torch.tensor(1.0), lambda x: x * float(x.sum())]
)
def test_what_cannot_be_captured_is_noticed(bad: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        strictly("bad", lambda x: (bad(x),), (torch.ones(3),))


class Looks(torch.nn.Module):
    """A user's student that looks at a value: it cannot be captured."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x.flatten(1))
        return y if y.mean().item() > -1e9 else -y


def test_networks_of_users_are_not_captured() -> None:
    method, spec = ds.DualStudent(student="digits-cnn"), ds.Spec((1, 8, 8), 4)
    assert known(modules(method.init(spec)))
    assert not known([Looks((1, 8, 8), 4)])
    assert not known([torch.nn.Sequential(torch.nn.Flatten(), Looks((1, 8, 8), 4))])


@cuda
def test_student_that_looks_at_a_value_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    method = ds.DualStudent(batch=8, width=4, student="torch:test_programs:Looks")
    ours = weights(method, captured=True, monkeypatch=monkeypatch)
    assert all(value.isfinite().all() for value in ours)


@cuda
def test_fused_target_answers_the_same() -> None:
    torch.manual_seed(0)
    network = classifier("resnet8", (3, 32, 32), 10)
    with torch.no_grad():
        network(torch.randn(64, 3, 32, 32))
    x = torch.rand(32, 3, 32, 32)
    theirs = network.eval()(x)
    with torch.inference_mode():
        ours = folded(network).to("cuda", memory_format=torch.channels_last)(x.cuda())  # type: ignore[call-overload]
    assert torch.allclose(ours.cpu(), theirs, rtol=1e-2, atol=1e-3)
