"""Which rate of Muon learns most from so many batches: writes rates.json.

One LeNet-5 learns a fixed pool of images of the prior, answered once by the LeNet-5 on MNIST (probabilities),
as the students of frugal do: batches of 128, ℓ1 of logits, rate along half a cosine. Judged
by the divergence of its probabilities on the test images of MNIST, where agreement is at its end.
"""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from summary import write

import dualstudent as ds
from dualstudent import priors
from dualstudent.losses import l1, recover_logits
from dualstudent.methods.base import cosine, descend
from dualstudent.muon import Muon
from dualstudent.networks import classifier
from dualstudent.targets import open_target


def main(
    target: Path = Path("runs/frugal/targets/mnist"),
    batches: tuple[int, ...] = (1000, 4000, 16_000),
    rates: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04),
    pool: int = 60_000,
    seeds: tuple[int, ...] = (0,),
    results: Path = Path(__file__).parent / "rates.json",
) -> None:
    """Learn with each rate for each number of batches."""
    torch.set_num_threads(1)
    asked, real = open_target(str(target)).target, ds.load_data("mnist", "test").pixels()
    torch.manual_seed(0)
    x = (torch.cat([priors.broad(500, (1, 28, 28)) for _ in range(pool // 500)]) * 255).round().byte()
    with torch.no_grad():
        logits = recover_logits(torch.cat([asked(part / 255) for part in x.split(500)]))
        truth = torch.cat([asked(part) for part in real.split(500)])
    rows: list[dict[str, Any]] = []
    for count in batches:
        for rate in rates:
            for seed in seeds:
                torch.manual_seed(seed)
                began = time.perf_counter()
                guess = learnt(x, logits, count, rate, real)
                apart = F.kl_div(guess, truth, reduction="batchmean").item()
                same = (guess.argmax(1) == truth.argmax(1)).double().mean().item()
                seconds = round(time.perf_counter() - began, 1)
                row = {"batches": count, "rate": rate, "seed": seed, "divergence": apart, "agreement": same}
                rows.append({**row, "seconds": seconds})
                print(rows[-1], flush=True)
    write(results, "benchmarks/frugal/rates.py", {"pool": pool, "rows": rows})


def learnt(
    x: torch.Tensor, logits: torch.Tensor, batches: int, rate: float, real: torch.Tensor
) -> torch.Tensor:
    """Return a student's logarithms of probabilities (b, k) for real images, learnt at a rate."""
    network = classifier("lenet5", (1, 28, 28), logits.shape[1])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = Muon([network], rate, 0.3)
    for i in range(batches):
        for group in optimiser.param_groups:
            group["lr"] = rate * cosine(i / batches)
        rows = torch.randint(len(x), (128,))
        descend(optimiser, l1(network(x[rows] / 255)[None], logits[rows]).mean())
    with torch.no_grad():
        return torch.cat([network.eval()(part) for part in real.split(500)]).log_softmax(1)


if __name__ == "__main__":
    tyro.cli(main)
