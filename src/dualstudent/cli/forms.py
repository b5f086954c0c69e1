"""The options of each command, as dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from dualstudent.cli.parse import Count
from dualstudent.numerics import Numerics
from dualstudent.spec import Labels
from dualstudent.targets import SecretNames, TargetOptions, Training


@dataclass(frozen=True)
class Machine:
    """Where it runs."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    # threads of an operation; default: 1 for students of up to 6 MFLOP an image, which then learn side by
    # side on the cores there are, else all cores
    threads: int | None = None


@dataclass(frozen=True)
class Computed(Machine, Numerics):
    """Where it runs, and how exactly it computes."""

    @property
    def numerics(self) -> Numerics:
        """How exactly it computes."""
        return Numerics(self.precision, self.deterministic, self.compile)


@dataclass(frozen=True)
class Planned:
    """What to extract."""

    target: str  # folder of 'target train', onnx:FILE, torch:package.module:factory or python:…
    queries: Count  # the budget, spent to the last image: 50000, 50k, 2M
    labels: Labels = "soft"  # soft: the target's probabilities; hard: its top class only
    preset: str | None = None  # named recipe of the method (see dualstudent list); options change it


@dataclass(frozen=True)
class Extracted:
    """What to write, and how to judge."""

    out: Path  # directory of the run
    seed: int = 0  # of everything random
    data: str | None = None  # test images, or none; default: the data set that the target was trained on
    split: str = "test"  # split of them
    data_dir: Path | None = None  # folder of data sets; default: DUALSTUDENT_DATA
    overwrite: bool = False  # replace a run that is in the way
    points: int = 20  # evaluations along the run, charged to the audit once
    snapshot_every: float = 20.0  # seconds between snapshots
    tensorboard: bool = False  # write TensorBoard events too
    journal: bool = False  # keep each answer on disk before it is learnt; default: for services only
    price: float | None = None  # of 1,000 images, for the bill
    # queries between probes for another model (audit); 0: none; default: services
    probe_every: int | None = None


@dataclass(frozen=True)
class TrainForm:
    """Train a target on a data set."""

    dataset: tyro.conf.Positional[str]  # name, or a folder of class folders
    arch: str  # architecture (see dualstudent list)
    out: Path  # folder of the target
    seed: int = 0
    data_dir: Path | None = None  # folder of data sets; default: DUALSTUDENT_DATA
    overwrite: bool = False  # replace a target that is in the way
    training: Training = field(default_factory=Training)
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class CheckForm:
    """Check a target: what it takes and answers, how fast it is, what looks wrong; accuracy with --data."""

    target: tyro.conf.Positional[str]
    data: str | None = None  # test images
    split: str = "test"
    data_dir: Path | None = None
    images: int = 8  # images shown, charged to the audit; more tell better how fast it is
    queries: Count | None = None  # budget whose time and price are estimated
    price: float | None = None  # of 1,000 images, in any currency
    out: Path | None = None  # file for what was found, for 'plan --check'
    json: bool = False  # print it as JSON
    options: TargetOptions = field(default_factory=TargetOptions)
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Costed:
    """What is known of the target's own time and price."""

    check: Path | None = None  # file that 'target check --out' wrote: its times and price are counted in
    price: float | None = None  # of 1,000 images, in any currency; default: as the check says


@dataclass(frozen=True)
class ResumeForm:
    """Go on with a stopped run; with --queries, extend a finished one."""

    run: tyro.conf.Positional[Path]
    queries: Count | None = None  # the larger budget
    probe_every: int | None = None  # queries between probes for another model; 0: none; default: as before
    target: str | None = None  # where the target lies now, if it has moved
    secrets: SecretNames = field(default_factory=SecretNames)  # those that the run began with


@dataclass(frozen=True)
class EvaluateForm:
    """Judge a run's clone on test images and add the figures to its result.json."""

    run: tyro.conf.Positional[Path]
    data: str  # data set, or a folder of class folders
    split: str = "test"
    data_dir: Path | None = None
    target: str | None = None  # where the target lies now, if it has moved
    secrets: SecretNames = field(default_factory=SecretNames)  # those that the run began with


@dataclass(frozen=True)
class TransferForm:
    """Attack a run's target with images made on its clone: transfer.json and transfer.png in the run."""

    run: tyro.conf.Positional[Path]
    data: str  # test images that are attacked
    split: str = "test"
    data_dir: Path | None = None
    images: int = 500  # of them, drawn at random with a fixed seed
    attacks: tuple[Literal["fgsm", "bim", "pgd"], ...] = ("fgsm", "bim", "pgd")
    eps: tuple[float, ...] = (1.0, 3.0, 8.0)  # sizes of the attacks, in 255ths of the pixel range
    step: float = 1.0  # of bim and pgd, in 255ths
    iterations: int = 10  # of bim and pgd
    restarts: int = 1  # random starts of pgd
    same_data: str | None = None  # target folder: a model trained on the same data, as another proxy
    device: str = "cpu"  # where images are made: cpu, cuda, auto
    target: str | None = None  # where the target lies now, if it has moved
    secrets: SecretNames = field(default_factory=SecretNames)  # those that the run began with


@dataclass(frozen=True)
class ReportForm:
    """Make one self-contained HTML page of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path  # the page
    title: str = "Model extraction report"


@dataclass(frozen=True)
class ExportForm:
    """Write a run's clone as ONNX: images in the target's bounds to probabilities."""

    run: tyro.conf.Positional[Path]
    onnx: Path  # the file


@dataclass(frozen=True)
class DemoForm:
    """Train a small target on scikit-learn's digits, copy it by two methods, and draw the report."""

    out: Path  # folder of the demo
    seed: int = 0
    overwrite: bool = False  # replace an earlier demo
    queries: Count = 5_000  # budget of our method; the paper's gets ten times as many


@dataclass(frozen=True)
class ListForm:
    """Show methods, architectures and data sets."""

    json: bool = False  # as JSON


@dataclass(frozen=True)
class GetForm:
    """Download a data set's original files and verify their sums."""

    name: tyro.conf.Positional[str]
    data_dir: Path | None = None  # folder of data sets; default: DUALSTUDENT_DATA


@dataclass(frozen=True)
class SweepForm:
    """Do many runs: methods × targets × labels × seeds × budgets."""

    spec: tyro.conf.Positional[Path]  # the TOML file that describes them (docs/sweep.md)
    jobs: int | None = None  # runs at once; default: one a GPU, or a core without one; under Slurm all
    slurm: str | None = None  # submit to Slurm instead: partition=gpu,timeout_min=600
    dry_run: bool = False  # say what there is to do, and do nothing


@dataclass(frozen=True)
class ServeForm:
    """Offer a target over the Open Inference Protocol v2, with a count of its images."""

    target: tyro.conf.Positional[str]
    host: str = "127.0.0.1"  # address to listen at; others than this machine's own let strangers ask
    port: int = 8000  # 0: any that is free, and printed
    name: str = "target"  # of the model
    labels: Labels = "soft"  # what it reveals: probabilities, or with hard the top class only
    datatype: Literal["FP32", "FP16", "UINT8"] = "FP32"  # of its input
    delay: float = 0.0  # seconds that every answer takes at least
    log: Path | None = None  # file that gets a line of JSON an answer
    token_needed: str | None = None  # environment variable with the bearer token that callers must send
    access: TargetOptions = field(default_factory=TargetOptions)
    machine: Machine = field(default_factory=Machine)
