"""Twenty seeded steps of every method end in the same numbers: a refactor must not change them.

`python tests/test_trace.py` writes them anew, where a change of the numbers is meant.
"""

import json
from pathlib import Path

import pytest
import torch

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, methods
from dualstudent.ledger import Account
from test_contract import ALL, quick

CASES = [
    (name, preset, access)
    for name, preset in ALL
    for access in (ds.Access.PROBS, ds.Access.LABEL)
    if access >= methods.find(name).needs
]
FILE = Path(__file__).parent / "traces.json"
STEPS = 20


def trace(name: str, preset: str, access: ds.Access) -> list[float]:
    """Return what the students answer after twenty steps in float64, and what their weights come to."""
    torch.set_default_dtype(torch.float64)
    try:
        target = Linear(ds.Spec((1, 8, 8), 4, access=access))
        method = quick(name, preset)
        budget = STEPS * method.queries_per_step
        state = engine.run(method, target, Account("attack", budget), budgets=[budget], seed=3)
        with torch.no_grad():
            x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
            logits = state.clone.eval()(torch.cat([x, x.flip(3), 1 - x * x]))
        weights = torch.cat([w.flatten() for w in state.clone.parameters()])
        return [*logits.flatten().tolist(), weights.abs().mean().item(), weights.std().item()]
    finally:
        torch.set_default_dtype(torch.float32)


def key(name: str, preset: str, access: ds.Access) -> str:
    return f"{name}/{preset}/{access.name}"


@pytest.mark.parametrize(("name", "preset", "access"), CASES)
def test_numbers_stay(name: str, preset: str, access: ds.Access) -> None:
    expected = json.loads(FILE.read_text())[key(name, preset, access)]
    assert trace(name, preset, access) == pytest.approx(expected, rel=1e-6, abs=1e-8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({key(*case): trace(*case) for case in CASES}, indent=1) + "\n")
