"""What was tried for frugal, one change at a time: writes variants.json.

    python benchmarks/frugal/variants.py [--only NAME …] [--labels hard] [--seeds 1] [--queries 5k]

Each is frugal with an option or one method replaced; what paid has moved into it. LeNet-5 on MNIST, 5,000
queries, agreement of the final model on the test images; runs that are there already are not made again.
Of a large `--student`, which is alone, the variants are those of LARGE (large.sh).
"""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from changes import (
    Adapting,
    Averaging,
    Blending,
    Breeding,
    Climbing,
    Consistent,
    Distilling,
    Doubting,
    Painting,
    Plain,
    Smoothing,
)
from summary import read, write

import dualstudent as ds
from dualstudent.errors import UserError
from dualstudent.methods import Frugal
from dualstudent.networks import lighter
from dualstudent.numerics import Numerics, Precision
from dualstudent.spec import parse_count

VARIANTS: dict[str, Frugal] = {
    "as it is": Frugal(student="lenet5"),
    "AdamW, rate 0.003": Adapting(student="lenet5", rate=3e-3),
    "AdamW, rate 0.006": Adapting(student="lenet5", rate=6e-3),
    "SGD, rate 0.05": Plain(student="lenet5", rate=0.05),
    "a generator paints over a half of the candidates": Painting(student="lenet5"),
    "distilled at temperature 1": Distilling(student="lenet5", temperature=1.0),
    "distilled at temperature 4": Distilling(student="lenet5"),
    "distilled at temperature 12": Distilling(student="lenet5", temperature=12.0),
    "rate 0.006": Frugal(student="lenet5", rate=6e-3),
    "rate 0.03": Frugal(student="lenet5", rate=3e-2),
    "nothing climbs": Frugal(student="lenet5", climbs=0),
    "a half climbs": Climbing(student="lenet5"),
    "a half of the candidates bred from answered images": Breeding(student="lenet5"),
    "candidates blend answered images": Blending(student="lenet5"),
    "the clone is a running average of weights": Averaging(student="lenet5"),
    "label smoothing 0.1": Smoothing(student="lenet5"),
    "students follow their mean on images not asked": Consistent(student="lenet5"),
    "no noise on what is learnt": Frugal(student="lenet5", grain=0.0),
    "noise of 0.06 on what is learnt": Frugal(student="lenet5", grain=0.06),
    "replay by disagreement": Doubting(student="lenet5"),
    "half as much learning": Frugal(student="lenet5", compute_least=1500, compute=0.175),
    "twice as much learning": Frugal(student="lenet5", compute_least=6000, compute=0.7),
    "decay 0.1": Frugal(student="lenet5", weight_decay=0.1),
    "decay 1": Frugal(student="lenet5", weight_decay=1.0),
    "looks count for nothing (sure 0)": Frugal(student="lenet5", sure=0.0),
    "disagreement counts for nothing (doubtful 0)": Frugal(student="lenet5", doubtful=0.0),
    "20 candidates for each that is asked": Frugal(student="lenet5", candidates=20),
    "nothing chosen": Frugal(student="lenet5", candidates=1),
    "4 students": Frugal(student="lenet5", students=4),
}
LARGE = {  # of a large student, which is alone
    "as it is": Frugal(),
    "it chooses": Frugal(candidates=6, climbs=0),
    "it chooses, and a half climbs": Frugal(candidates=6),
}
ALONE = {  # what makes a difference for one kind of answer only
    **dict.fromkeys(("label smoothing 0.1", "a half climbs", "no noise on what is learnt"), "hard"),
    "noise of 0.06 on what is learnt": "hard",
    **dict.fromkeys((f"distilled at temperature {t}" for t in (1, 4, 12)), "soft"),
    **dict.fromkeys(("nothing climbs", "it chooses, and a half climbs"), "soft"),
}


def main(
    target: Path = Path("runs/frugal/targets/mnist"),
    only: tuple[str, ...] = (),
    labels: tuple[str, ...] = ("soft", "hard"),
    seeds: tuple[int, ...] = (1,),
    queries: str = "5k",
    out: Path = Path("runs/frugal-variants"),
    data: str = "mnist",
    student: str = "lenet5",
    precision: Precision = "fp32",
    results: Path = Path(__file__).parent / "variants.json",
    command: str = "benchmarks/frugal/variants.py",
    collect: bool = False,
) -> None:
    """Make the runs that are missing, unless told to `collect` what is there, and write what all gave."""
    torch.set_num_threads(1)
    images, opened = ds.load_data(data), ds.open_target(str(target))
    rows: list[dict[str, Any]] = []
    variants = VARIANTS if lighter(student, opened.target.spec.shape) == 1 else LARGE
    if missing := set(only) - set(variants):
        raise SystemExit(f"no variant {', '.join(missing)}: {', '.join(variants)}")
    if (only or student != "lenet5") and results == Path(__file__).parent / "variants.json":
        raise SystemExit("this is not what variants.json has: name another file with --results")
    for label in labels:
        for name, variant in variants.items():
            if (only and name not in only) or ALONE.get(name, label) != label:
                continue
            method = replace(variant, student=student)
            for seed in seeds:
                folder = out / label / re.sub(r"\W+", "-", name) / f"seed{seed}"
                manifest = folder / "manifest.json"
                if manifest.exists() and read(manifest)["recipe"] != asdict(method):
                    raise UserError(f"{folder} was run with another recipe: delete it")
                if manifest.exists() and read(manifest)["numerics"]["precision"] != precision:
                    raise UserError(f"{folder} was run in another precision: delete it")
                if collect and not (folder / "result.json").exists():
                    continue
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
                        numerics=Numerics(precision),
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
