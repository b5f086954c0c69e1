"""Run by test_whole_graph in a process of its own, without the hooks that check shapes."""

from typing import Any

import torch

import dualstudent as ds
from conftest import Linear
from dualstudent import engine, methods
from dualstudent.ledger import Account
from dualstudent.methods.base import modules
from dualstudent.numerics import Numerics
from dualstudent.oracle import Oracle
from test_contract import LAST, quick


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # forward differences make much of rounding
    several: dict[str, int] = {}
    [alone] = [(*case, {"students": 1}) for case in LAST if case[0] == "frugal"]
    for name, preset, more in (*((*case, several) for case in LAST), alone):
        for access, classes in ((ds.Access.PROBS, 4), (ds.Access.LABEL, 4), (ds.Access.LABEL, None)):
            if access < methods.find(name).needs:
                continue
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            method = quick(name, preset, **more)
            target = Linear(ds.Spec((1, 8, 8), classes, access=access), 4)
            plain, traced = (engine.fresh(method, target.spec) for _ in range(2))
            compiled = [m for m in modules(traced) if type(m).forward is not torch.nn.Module.forward]
            for module in compiled:
                module.compile(fullgraph=True, backend="aot_eager", dynamic=False)
            oracle = Oracle(target, Account("attack"))
            for phase in engine.plan(method, [max(method.queries_per_step, 8) * 20]):
                counts: list[int] = []
                for step in range(min(phase.steps, 3)):
                    with torch._dynamo.config.patch(error_on_recompile=step > 0):
                        for state in (plain, traced):
                            torch.manual_seed(step)
                            phase.step(state, oracle)
                    counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
                assert counts == [counts[0]] * len(counts), (phase.name, counts)
            assert counts[-1] >= len(compiled), counts
            x = torch.rand(4, 1, 8, 8)
            ours, theirs = (state.clone.eval()(x) for state in (plain, traced))
            assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2), (ours - theirs).abs().max()
            print(name, preset, access.name, classes, "graphs", counts[0])
    torch.set_default_dtype(torch.float32)
    long_phases_alone_are_compiled()


def long_phases_alone_are_compiled() -> None:
    """The last, smaller step and who watches call the networks as they are: nothing is compiled for them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile, graphs = torch.nn.Module.compile, []

    def traced(self: torch.nn.Module) -> None:
        compile(self, backend="aot_eager")

    torch.nn.Module.compile = traced  # type: ignore[method-assign]

    def watch(moment: engine.Moment[Any]) -> bool:
        moment.state.clone.eval()(torch.rand(7, 1, 8, 8))
        moment.state.students.train()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return False

    method = quick("dual-student", "paper")
    budget = 3 * method.queries_per_step + 5
    target = Linear(ds.Spec((1, 8, 8), 4), 4)
    numerics = Numerics(compile="on")
    engine.run(method, target, Account("attack", budget), budgets=[budget], numerics=numerics, watch=watch)
    assert graphs == [graphs[0]] * 4, graphs
    assert graphs[0] > 0, graphs


if __name__ == "__main__":
    main()
