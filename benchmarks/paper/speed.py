"""Time and profile iterations of the paper's recipe on this machine's GPU, against the plain loop.

No data: the target is an untrained ResNet-34, which costs what a trained one does. Writes each variant
into speed.json, whose others stay: milliseconds an iteration, whole and by part, memory, FLOP/s, where
the GPU's time goes. --dry: the same path at toy size, on a CPU, into runs/.
"""

import argparse
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from summary import kept, origin, write
from torch.profiler import ProfilerActivity, profile

import dualstudent as ds
from dualstudent import engine
from dualstudent.experiment import choose_device
from dualstudent.ledger import Account, Shown
from dualstudent.methods import DualStudent
from dualstudent.networks import classifier, folded
from dualstudent.numerics import Numerics
from dualstudent.programs import Graphs
from dualstudent.targets import ModuleTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from measure import flops
from plain import Plain, PlainGenerator, plain_classifier

PARTS = ("climb", "ask", "imitate")
# precision, and how networks are called: captured as CUDA graphs (as a run does), compiled, as they are
VARIANTS = ["bf16-captured", "bf16-compiled", "bf16-eager", "tf32-captured", "tf32-eager", "plain"]
WAYS = [f"{exact}-{how}" for exact in ("bf16", "tf32", "fp32") for how in ("captured", "compiled", "eager")]
KINDS = {
    "convolution, matrix product": ("conv", "cudnn", "xmma", "cutlass", "gemm", "nvjet", "wgrad", "dgrad"),
    "fused by the compiler": ("triton",),
    "batch normalisation": ("bn_", "batch_norm"),
    "copy": ("memcpy", "memset", "copy_"),
    "optimiser": ("multi_tensor",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=[*WAYS, "plain"])
    parser.add_argument("--steps", type=int, default=20, help="iterations timed, after as many to warm up")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out or Path("runs/speed-dry.json" if args.dry else "benchmarks/paper/speed.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["benchmarks/paper/speed.sh", *sys.argv[1:]])
    device = choose_device("auto")
    case, batch = ("c", 32) if args.dry else ("a", 256)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    about: dict[str, Any] = {"device": name, "batch": batch, "flops_per_query": flops(case)}
    about |= {"peak_flops": matrix_peak(device)}
    known = kept(out, "variants", *about)
    for variant in args.variants:
        torch._dynamo.reset()
        values = (
            plain(case, batch, args.steps, device)
            if variant == "plain"
            else ours(case, batch, variant, args, device)
        )
        values["queries_per_s"] = 5e3 * batch / values["ms"]
        values["share_of_peak"] = values["queries_per_s"] * about["flops_per_query"] / about["peak_flops"]
        known[variant] = {**origin(command), **about, **values}
        with redirect_stdout(None):
            write(out, command, {**about, "variants": known})
        print(variant, {k: v for k, v in values.items() if k != "kernels"}, flush=True)
        for kernel in values.get("kernels", []):
            print("   ", kernel, flush=True)


def networks(case: str, device: str) -> tuple[str, str, tuple[int, int, int]]:
    return ("digits-cnn", "digits-cnn", (1, 8, 8)) if case == "c" else ("resnet34", "resnet18", (3, 32, 32))


class Parts:
    """The time of each part of an iteration, with a wait before and after: more in sum than the whole."""

    def __init__(self) -> None:
        self.ms = dict.fromkeys(PARTS, 0.0)

    def timed(self, name: str, method: Any) -> Any:
        def call(*given: Any) -> Any:
            wait()
            start = time.perf_counter()
            value = method(*given)
            wait()
            self.ms[name] += 1e3 * (time.perf_counter() - start)
            return value

        return call


def ours(case: str, batch: int, variant: str, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Time whole iterations, then parts, then profile: three stretches of one run."""
    precision, how = variant.split("-")
    captured = how == "captured" and device == "cuda"
    engine.Graphs = Graphs if captured else lambda device: None  # type: ignore[assignment,misc]
    arch, student, shape = networks(case, device)
    torch.manual_seed(0)
    network = folded(classifier(arch, shape, 10).eval())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = ModuleTarget(network, ds.Spec(shape, 10), output="labels", device=device)
    method = DualStudent(student=student, batch=batch)
    n = args.steps
    marks: dict[int, float] = {}
    parts, profiler = Parts(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    first = time.perf_counter()

    def watch(moment: Any) -> bool:
        if moment.step in (1, n, 2 * n, 2 * n + 5, 2 * n + 10):
            wait()
            marks[moment.step] = time.perf_counter()
        if moment.step == 2 * n:
            for part in PARTS:
                object.__setattr__(method, part, parts.timed(part, getattr(method, part)))
        if moment.step == 2 * n + 5:
            for part in PARTS:
                object.__delattr__(method, part)
            profiler.__enter__()
        if moment.step == 2 * n + 10:
            profiler.__exit__(None, None, None)
        return False

    budget = (2 * n + 10) * method.queries_per_step
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    numerics = Numerics(precision, compile="off" if how == "eager" else "on")  # type: ignore[arg-type]
    account, shown = Account("attack", budget), Shown()
    engine.run(
        method, target, account, budgets=[budget], device=device, numerics=numerics, shown=shown, watch=watch
    )
    wall = 1e3 * (marks[2 * n + 10] - marks[2 * n + 5]) / 5
    values = {
        "ms": 1e3 * (marks[2 * n] - marks[n]) / n,
        "first_step_s": marks[1] - first,
        "parts_ms": {part: ms / 5 for part, ms in parts.ms.items()},
        "profiled_ms": wall,
    }
    return values | memory(device) | kernels(profiler, 5)


def plain(case: str, batch: int, steps: int, device: str) -> dict[str, Any]:
    """Time the loop that a newcomer would write, on the same device."""
    arch, student, shape = networks(case, device)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True  # torch's defaults
    torch.backends.cudnn.benchmark = False
    with torch.device(device):
        students = [plain_classifier(student, shape, 10) for _ in range(2)]
        loop = Plain(
            plain_classifier(arch, shape, 10).eval(), students, PlainGenerator(256, shape), hard=True
        )
        for _ in range(3):
            loop.iterate(batch)
        wait()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(steps):
            loop.iterate(batch)
        wait()
    return {"ms": 1e3 * (time.perf_counter() - start) / steps} | memory(device)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory(device: str) -> dict[str, float]:
    return {"peak_mb": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {}


def kernels(profiler: Any, steps: int) -> dict[str, Any]:
    """Return the GPU's time an iteration by kind of kernel, and the kernels that take most of it."""
    rows = sorted(
        (
            (event.self_device_time_total / 1e3 / steps, event.count / steps, event.key)
            for event in profiler.key_averages()
            if event.device_type.name == "CUDA" and event.self_device_time_total > 0
        ),
        reverse=True,
    )
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for ms, _, name in rows:
        found = (kind for kind, words in KINDS.items() if any(word in name.lower() for word in words))
        kinds[next(found, "other")] += ms
    return {
        "gpu_ms": sum(ms for ms, _, _ in rows),
        "launches": sum(count for _, count, _ in rows),
        "kinds_ms": kinds,
        "kernels": [f"{ms:7.3f} ms {count:6.1f} {name[:100]}" for ms, count, name in rows[:25]],
    }


def matrix_peak(device: str) -> float:
    """Return the FLOP/s of a large matrix product in bfloat16, here and now."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(10):
        wait()
        start = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


if __name__ == "__main__":
    main()
