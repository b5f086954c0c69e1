"""What was tried for frugal, one change at a time: writes variants.json.

    python benchmarks/frugal/variants.py [--only NAME …] [--labels hard] [--seeds 1] [--queries 5k]

Each is frugal with an option or one method replaced; what paid has moved into it. LeNet-5 on MNIST, 5,000
queries, agreement of the final model on the test images; runs that are there already are not made again.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from summary import read, write
from torch import Tensor

import dualstudent as ds
from dualstudent import priors
from dualstudent.errors import UserError
from dualstudent.losses import distillation, spread
from dualstudent.methods import Frugal
from dualstudent.methods.base import Metrics, descend
from dualstudent.methods.frugal import CHUNK
from dualstudent.methods.game import learn, usual
from dualstudent.methods.procedural import Learners, inside
from dualstudent.networks import Average, Clone
from dualstudent.oracle import Oracle
from dualstudent.spec import Access, Spec, parse_count


@contextmanager
def drawing(prior: Callable[..., Tensor]) -> Iterator[None]:
    """Let candidates come from another prior."""
    broad = priors.broad
    priors.broad = prior  # type: ignore[assignment]
    try:
        yield
    finally:
        priors.broad = broad


@dataclass(frozen=True)
class Climbing(Frugal):
    """Where labels are answered, too, a half of what is asked climbs."""

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        return super().chosen(state, replace(spec, access=Access.PROBS), images, candidates)


@dataclass(frozen=True)
class Breeding(Frugal):
    """A half of the candidates are bred from two images that were answered, of all classes alike: one
    inside shapes of a scene on the other, or a blend, moved, turned and in another size.
    """

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        if candidates == 1 or not len(state.memory):
            return super().chosen(state, spec, images, candidates)
        broad = priors.broad

        def bred(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
            half = count // 2
            one, other = (spec.decode(state.memory.draw_even(half)[0]) for _ in range(2))
            share = torch.rand(half, 1, 1, 1)
            mask = priors._mask(half, shape, device)
            child = one.lerp(other, torch.where(torch.rand(half, 1, 1, 1) < 0.5, share, mask))
            turn, size = 0.3 * torch.randn(half), torch.exp(0.2 * torch.randn(half))
            rows = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1) * size[:, None]
            where = torch.cat([rows.view(half, 2, 2), 0.15 * torch.randn(half, 2, 1)], 2)
            grid = F.affine_grid(where, list(child.shape), align_corners=False)
            child = F.grid_sample(child, grid, padding_mode="border", align_corners=False)
            return torch.cat([broad(count - half, shape, device), child])

        with drawing(bred):
            return super().chosen(state, spec, images, candidates)


@dataclass(frozen=True)
class Blending(Frugal):
    """A third of the candidates are blends of two images that were answered: some lie near a boundary."""

    even: bool = False  # parents of all classes alike

    def chosen(self, state: Learners, spec: Spec, images: int, candidates: int) -> Tensor:
        if candidates == 1 or not len(state.memory):
            return super().chosen(state, spec, images, candidates)
        draw, broad = state.memory.draw_even if self.even else state.memory.draw, priors.broad

        def blended(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
            x = broad(count, shape, device)
            part = x[: count // 3]
            pair = [spec.decode(draw(len(part))[0]) for _ in range(2)]
            part.copy_(pair[0].lerp(pair[1], torch.rand(len(part), 1, 1, 1)))
            return x

        with drawing(blended):
            return super().chosen(state, spec, images, candidates)


@dataclass
class Averaged(Learners):
    """Learners and their running average, which is the clone."""

    average: Average

    @property
    def clone(self) -> Clone:
        return Clone(self.average.or_else(self.students))


@dataclass(frozen=True)
class Averaging(Frugal):
    """The clone is a running average of the students' weights."""

    def init(self, spec: Spec) -> Averaged:
        state = super().init(spec)
        return Averaged(
            state.students, state.student_descent, state.memory, Average(state.students, 0.99, 10)
        )

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK, last: bool = False) -> Metrics:
        losses = []
        for _ in range(batches):
            losses.append(
                learn(state, usual(oracle.spec, self.temperature), *state.memory.draw(self.learnt))[0]
            )
            state.average.update(state.students)  # type: ignore[attr-defined]
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Distant(Frugal):
    """What is learnt of probabilities is the distance of logits, ℓ1, as in the paper."""

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK, last: bool = False) -> Metrics:
        loss = usual(oracle.spec)
        losses = [learn(state, loss, *state.memory.draw(self.learnt))[0] for _ in range(batches)]
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Smoothing(Frugal):
    """A tenth of each label is spread over all classes."""

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK, last: bool = False) -> Metrics:
        def loss(logits: Tensor, answer: Tensor) -> Tensor:
            smooth = 0.9 * answer + 0.1 / answer.shape[1]
            return -(smooth * logits.log_softmax(2)).sum(2)

        losses = [learn(state, loss, *state.memory.draw(self.learnt))[0] for _ in range(batches)]
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Consistent(Frugal):
    """On as many images that are not asked each student follows the mean of all."""

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK, last: bool = False) -> Metrics:
        spec, losses = oracle.spec, []
        loss = usual(spec, self.temperature)
        for _ in range(batches):
            x, answer = state.memory.draw(self.learnt)
            free = inside(spec.encode(priors.broad(self.learnt, spec.shape)), spec)
            with torch.no_grad():
                mean = state.students(free).mean(0)
            both = []
            for member in state.students.members:
                logits = member(torch.cat([x, free]))
                told, follows = logits[: len(x)], logits[len(x) :]
                heat = 1.0 if spec.access == Access.LABEL else self.temperature
                apart = distillation(follows[None], mean, heat)
                both.append(loss(told[None], answer).mean() + apart.mean())
            descend(state.student_descent, sum(both))  # type: ignore[arg-type]
            losses.append(torch.stack([each.detach() for each in both]).mean())
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Noisy(Frugal):
    """What is learnt again is learnt with a little noise."""

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK, last: bool = False) -> Metrics:
        losses = []
        for _ in range(batches):
            x, answer = state.memory.draw(self.learnt)
            losses.append(
                learn(state, usual(oracle.spec, self.temperature), x + 0.03 * torch.randn_like(x), answer)[0]
            )
        return {"loss": torch.stack(losses).mean()}


@dataclass(frozen=True)
class Doubting(Frugal):
    """Of twice as many remembered, those are learnt on which the students disagree."""

    def learn(self, state: Learners, oracle: Oracle, batches: int = CHUNK, last: bool = False) -> Metrics:
        losses = []
        for _ in range(batches):
            x, answer = state.memory.draw(2 * self.learnt)
            with torch.no_grad():
                doubt = spread(state.students(x)).clamp_min(1e-4).log()
            luck = -torch.log(-torch.log(torch.rand(len(x))))
            rows = (doubt + luck).topk(self.learnt).indices
            losses.append(learn(state, usual(oracle.spec, self.temperature), x[rows], answer[rows])[0])
        return {"loss": torch.stack(losses).mean()}


VARIANTS: dict[str, Frugal] = {
    "as it is": Frugal(student="lenet5"),
    "ℓ1 of logits": Distant(student="lenet5"),
    "ℓ1 of logits, rate 0.003": Distant(student="lenet5", rate_soft=3e-3),
    "temperature 1": Frugal(student="lenet5", temperature=1.0),
    "temperature 2": Frugal(student="lenet5", temperature=2.0),
    "rate 0.003": Frugal(student="lenet5", rate_soft=3e-3),
    "rate 0.01": Frugal(student="lenet5", rate_soft=1e-2),
    "rate 0.006": Frugal(student="lenet5", rate_hard=6e-3),
    "nothing climbs": Frugal(student="lenet5", climbs=0),
    "a half climbs": Climbing(student="lenet5"),
    "a half of the candidates bred from answered images": Breeding(student="lenet5"),
    "candidates blend answered images": Blending(student="lenet5"),
    "candidates blend answered images, all classes alike": Blending(student="lenet5", even=True),
    "the clone is a running average of weights": Averaging(student="lenet5"),
    "label smoothing 0.1": Smoothing(student="lenet5"),
    "students follow their mean on images not asked": Consistent(student="lenet5"),
    "noise of 0.03 on what is learnt": Noisy(student="lenet5"),
    "replay by disagreement": Doubting(student="lenet5"),
    "half as much learning": Frugal(student="lenet5", compute_least=1500, compute=0.25),
    "twice as much learning": Frugal(student="lenet5", compute_least=6000, compute=1.0),
    "half of the learning after the last query": Frugal(student="lenet5", after=0.5),
    "decay 0.0005": Frugal(student="lenet5", weight_decay=5e-4),
    "decay 1": Frugal(student="lenet5", weight_decay=1.0),
    "looks count for nothing (sure 0)": Frugal(student="lenet5", sure=0.0),
    "disagreement counts for nothing (doubtful 0)": Frugal(student="lenet5", doubtful=0.0),
    "disagreement counts twice (doubtful 2)": Frugal(student="lenet5", doubtful=2.0),
    "20 candidates for each that is asked": Frugal(student="lenet5", candidates=20),
    "nothing chosen": Frugal(student="lenet5", candidates=1),
    "4 students": Frugal(student="lenet5", students=4),
}
ALONE = {  # what makes a difference for one kind of answer only
    **dict.fromkeys(("label smoothing 0.1", "a half climbs", "rate 0.006"), "hard"),
    **dict.fromkeys([name for name in VARIANTS if "ℓ1" in name or "temperature" in name], "soft"),
    **dict.fromkeys(("rate 0.003", "rate 0.01", "nothing climbs"), "soft"),
}


def main(
    target: Path = Path("runs/frugal/targets/mnist"),
    only: tuple[str, ...] = (),
    labels: tuple[str, ...] = ("soft", "hard"),
    seeds: tuple[int, ...] = (1,),
    queries: str = "5k",
    out: Path = Path("runs/frugal-variants"),
    data: str = "mnist",
    results: Path = Path(__file__).parent / "variants.json",
    command: str = "benchmarks/frugal/variants.py",
) -> None:
    """Make the runs that are missing, and write what all gave."""
    torch.set_num_threads(1)
    images, opened = ds.load_data(data), ds.open_target(str(target))
    rows: list[dict[str, Any]] = []
    if missing := set(only) - set(VARIANTS):
        raise SystemExit(f"no variant {', '.join(missing)}: {', '.join(VARIANTS)}")
    if only and results == Path(__file__).parent / "variants.json":
        raise SystemExit("--only is not all of variants.json: name another file with --results")
    for label in labels:
        for name, method in VARIANTS.items():
            if (only and name not in only) or ALONE.get(name, label) != label:
                continue
            for seed in seeds:
                folder = out / label / re.sub(r"\W+", "-", name) / f"seed{seed}"
                manifest = folder / "manifest.json"
                if manifest.exists() and read(manifest)["recipe"] != asdict(method):
                    raise UserError(f"{folder} was run with another recipe: delete it")
                if not (folder / "result.json").exists():
                    budget = parse_count(queries)
                    ds.extract(
                        method,
                        opened,
                        queries=budget,
                        labels=label,  # type: ignore[arg-type]
                        seed=seed,
                        out=folder,
                        data=images,
                        points=1,
                        overwrite=True,
                    )
                result = read(folder / "result.json")
                if not result["complete"]:
                    raise UserError(f"{folder} was stopped: delete it")
                rows.append(
                    {
                        "variant": name,
                        "labels": label,
                        "seed": seed,
                        "agreement": result["agreement"],
                        "seconds": result["timing"]["wall_s"],
                    }
                )
                print(rows[-1], flush=True)
    write(results, command, {"rows": rows})


if __name__ == "__main__":
    tyro.cli(main)
