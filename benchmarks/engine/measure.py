"""Time one side of one case in a process of its own: prints one line of JSON.

measure.py engine|plain a|b|c ITERATIONS BATCH [--operations] [--free: memory is not kept]
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import dualstudent as ds
from dualstudent import engine
from dualstudent.ledger import Account, Shown
from dualstudent.machine import keep_memory
from dualstudent.methods import game
from dualstudent.methods.base import modules
from dualstudent.networks import classifier, doubled, folded, pooled, winograd
from dualstudent.oracle import Oracle
from dualstudent.targets import ModuleTarget

sys.path.insert(0, str(Path(__file__).parent))
from plain import Plain, PlainGenerator, plain_classifier

CASES: dict[str, tuple[str, str, tuple[int, int, int]]] = {  # target, students, shape; 10 classes
    "a": ("resnet34", "resnet18", (3, 32, 32)),
    "b": ("lenet5", "lenet5-half", (1, 32, 32)),
    "c": ("digits-cnn", "digits-cnn", (1, 8, 8)),
}
STEPS = 5
Clock = tuple[float, float]


def clock() -> Clock:
    return time.process_time(), time.perf_counter()


def since(start: Clock) -> dict[str, float]:
    return {"cpu_s": time.process_time() - start[0], "wall_s": time.perf_counter() - start[1]}


def side(kind: str, case: str, batch: int) -> Any:
    """Return the plain loop, or the method, its state and its target."""
    arch, student, shape = CASES[case]
    torch.manual_seed(0)
    if kind == "plain":
        students = [plain_classifier(student, shape, 10) for _ in range(2)]
        return Plain(plain_classifier(arch, shape, 10).eval(), students, PlainGenerator(256, shape))
    network = classifier(arch, shape, 10).eval()
    spec = ds.Spec(shape, 10)
    channels_last = folded(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = ModuleTarget(channels_last, spec, output="logits")
    return ds.DualStudent(student=student, batch=batch, student_steps=STEPS), target


def whole(kind: str, case: str, iterations: int, batch: int) -> dict[str, float]:
    """Time whole iterations, after one to warm up."""
    if kind == "plain":
        plain = side(kind, case, batch)
        plain.iterate(batch, STEPS)
        start = clock()
        for _ in range(iterations):
            plain.iterate(batch, STEPS)
        return since(start)
    method, target = side(kind, case, batch)
    marks: list[Clock] = []
    budget = (1 + iterations) * STEPS * batch

    def watch(moment: Any) -> bool:
        if moment.step == 1:
            marks.append(clock())
        return False

    engine.run(method, target, Account("attack", budget), budgets=[budget], shown=Shown(), watch=watch)
    return since(marks[0])


def operations(kind: str, case: str, batch: int) -> dict[str, float]:
    """Time each operation by itself and return the time of the iteration that they make up."""
    if kind == "plain":
        plain = side(kind, case, batch)
        parts: list[tuple[int, Callable[[], Any]]] = [
            (1, lambda: plain.generator_step(torch.randn(batch, 256))),
            (STEPS, lambda: plain.student_step(torch.randn(batch, 256))),
        ]
    else:
        method, target = side(kind, case, batch)
        state = method.init(target.spec)
        for module in modules(state):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        oracle = Oracle(target, Account("attack"), Shown())
        [(x, answer)] = game.ask(state, oracle, game.make(state, oracle, [batch]))
        parts = [
            (1, lambda: method.climb(state)),
            (STEPS, lambda: game.ask(state, oracle, game.make(state, oracle, [batch]))),
            (STEPS, lambda: game.learn(state, game.usual(target.spec), x, answer)),
        ]
    total = {"cpu_s": 0.0, "wall_s": 0.0}
    for times, part in parts:
        part()
        start = clock()
        part()
        for name, value in since(start).items():
            total[name] += times * value
    return total


def flops(case: str) -> float:
    """Return the FLOPs of the engine's iteration for each query, all convolutions taken directly."""
    winograd.WIDE = winograd.SMALL = doubled.WIDE = 1 << 30
    pooled.FEW = 0
    method, target = side("engine", case, 8)
    state = method.init(target.spec)
    with FlopCounterMode(display=False) as count:
        method.iterate(state, Oracle(target, Account("attack")), [8] * STEPS)
    return float(count.get_total_flops()) / (8 * STEPS)


def peak() -> float:
    """Return the FLOP/s of a wide convolution here and now."""
    x = torch.randn(64, 64, 32, 32).to(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        F.conv2d(x, w, padding=1)
        times = []
        for _ in range(10):
            start = time.process_time()
            F.conv2d(x, w, padding=1)
            times.append(time.process_time() - start)
    return 2 * x.numel() * 64 * 9 / min(times)


def main() -> None:
    kind, case, iterations, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    if kind == "engine" and "--free" not in sys.argv:
        keep_memory()
    per_operation = "--operations" in sys.argv
    took = operations(kind, case, batch) if per_operation else whole(kind, case, iterations, batch)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line: dict[str, Any] = {"queries": iterations * STEPS * batch, **took, "peak_mb": memory}
    if kind == "engine":
        line |= {"peak_flops": peak(), "flops_per_query": flops(case)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
