"""What each command does."""

import contextlib
import json
import logging
import os
import sys
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dualstudent import experiment, methods, parallel, targets
from dualstudent.cli import forms
from dualstudent.cli.parse import parse, peek
from dualstudent.cli.show import Bars, console, following, percent, result_table, stopping
from dualstudent.data import DATA_SETS, Images, fetch, load_data
from dualstudent.errors import Missing, UserError, unknown
from dualstudent.networks import ARCHITECTURES, lighter
from dualstudent.threads import side_by_side

log = logging.getLogger(__name__)


def demo_command(args: list[str]) -> int:
    """dualstudent demo."""
    from dualstudent.demo import LEARNING, demo

    form = parse(forms.DemoForm, args, "demo", "Copy a small classifier from its answers.")
    with Bars(target="steps", **LEARNING) as bars:
        page, results = demo(
            form.out, seed=form.seed, queries=form.queries, overwrite=form.overwrite, update=bars.update
        )
    console.print(result_table(results))
    console.print(f"report: {page}")
    return 0


def target_command(args: list[str]) -> int:
    """dualstudent target train|check."""
    verbs = {"train": _train, "check": _check}
    if not args or args[0] in ("-h", "--help"):
        print("usage: dualstudent target train DATASET …\n       dualstudent target check TARGET …")
        return 0
    if args[0] not in verbs:
        raise unknown("target command", args[0], verbs)
    return verbs[args[0]](args[1:])


def _train(args: list[str]) -> int:
    form = parse(forms.TrainForm, args, "target train", "Train a target on a data set's train split.")
    device = experiment.choose_device(form.machine.device)
    set_threads(form.machine.threads)
    with Bars(training="steps") as bars:
        about = targets.train_target(
            form.dataset,
            form.arch,
            form.out,
            seed=form.seed,
            data_dir=form.data_dir,
            training=form.training,
            device=device,
            overwrite=form.overwrite,
            progress=lambda done, total, text: bars.update("training", done, total, text),
        )
    accuracy = percent(about["test_accuracy"])
    console.print(f"{form.out}: {form.arch} on {about['data']}, test accuracy {accuracy}")
    return 0


def _check(args: list[str]) -> int:
    from dualstudent.cli.checking import check

    form = parse(forms.CheckForm, args, "target check", "Look at a target before it is extracted.")
    set_threads(form.machine.threads)
    return check(form)


def _method_args(command: str, args: list[str], **parts: type) -> tuple[Any, str]:
    """Parse the options of a command and of the method that its first word names."""
    if not args or args[0].startswith("-"):
        if args and args[0] in ("-h", "--help"):
            names = "\n  ".join(methods.registry())
            print(f"usage: dualstudent {command} METHOD --target TARGET --queries N …\n\nmethods:\n  {names}")
            raise SystemExit(0)
        raise UserError(f"'{command}' needs a method first: dualstudent {command} dual-student …")
    kind = methods.find(args[0])
    preset = peek(args, "--preset", next(iter(kind.presets)))
    default = kind.preset(preset)
    form = make_dataclass("Options", [*parts.items(), ("method", kind, field(default=default))])
    prog = f"{command} {args[0]}"
    doc = (kind.__doc__ or "").splitlines()[0]
    parsed: Any = parse(form, args[1:], prog, f"{doc} Preset: {preset}.")
    return parsed, preset


def plan_command(args: list[str]) -> int:
    """dualstudent plan."""
    from dualstudent.cli.checking import price_of, read_check, show_plan

    form, _ = _method_args(
        "plan",
        args,
        extraction=forms.Planned,
        costs=forms.Costed,
        access=targets.TargetOptions,
        machine=forms.Computed,
    )
    device = experiment.choose_device(form.machine.device)
    opened = targets.open_target(form.extraction.target, form.access, device=device)
    pace, price = read_check(form.costs.check, opened)
    price = price if form.costs.price is None else price_of(form.costs.price)
    set_threads(form.machine.threads, light(form.method, opened.target.spec.shape))
    data = None
    with contextlib.suppress(UserError):  # what is not at hand, extract would not judge by either
        data = None if opened.data is None else load_data(opened.data)
    found = experiment.estimate(
        form.method,
        opened.target,
        queries=form.extraction.queries,
        labels=form.extraction.labels,
        device=device,
        numerics=form.machine.numerics,
        data=data,
        pace=pace,
    )
    show_plan(form.method.name, opened, found, data, price, device)
    return 0


def extract_command(args: list[str]) -> int:
    """dualstudent extract."""
    form, preset = _method_args(
        "extract",
        args,
        extraction=forms.Planned,
        run=forms.Extracted,
        access=targets.TargetOptions,
        machine=forms.Computed,
    )
    device = experiment.choose_device(form.machine.device)
    opened = targets.open_target(form.extraction.target, form.access, device=device)
    set_threads(form.machine.threads, light(form.method, opened.target.spec.shape))
    e, budget = form.run, form.extraction.queries
    data = _judging(e, opened.data)
    go_on = experiment.going_on(e.out, opened.target)
    with parallel.ranks(device), Bars(learning="steps") as bars, stopping(e.out, go_on) as stop:
        run = experiment.extract(
            form.method,
            opened,
            queries=budget,
            labels=form.extraction.labels,
            seed=e.seed,
            out=e.out,
            data=data,
            preset=preset,
            device=device,
            numerics=form.machine.numerics,
            overwrite=e.overwrite,
            target_options=form.access,
            data_dir=e.data_dir,
            points=e.points,
            snapshot_every=e.snapshot_every,
            tensorboard=e.tensorboard,
            journal=e.journal if {"--journal", "--no-journal"} & set(args) else None,
            price=e.price,
            probe_every=e.probe_every,
            command=["dualstudent", "extract", *args],
            progress=following(bars, budget),
            stop=stop,
        )
    console.print(result_table([(str(e.out), run.result)]))
    return 0


def _judging(form: forms.Extracted, default: str | None) -> Images | None:
    """Return the test images asked for; those of the target's own data set only if they are there."""
    if form.data == "none":
        return None
    if form.data is not None:
        return load_data(form.data, form.split, folder=form.data_dir)
    if default is not None and default not in DATA_SETS and not Path(default).is_dir():
        log.warning("the copy is not judged, its figures will be null: %s is not here (see --data)", default)
        return None
    try:
        return None if default is None else load_data(default, form.split, folder=form.data_dir)
    except Missing as error:
        if form.split != "test" or form.data_dir is not None:  # asked for
            raise
        log.warning("the copy is not judged, its figures will be null: %s", error)
        return None


def resume_command(args: list[str]) -> int:
    """dualstudent resume."""
    form = parse(forms.ResumeForm, args, "resume", "Go on with a stopped run.")
    budget = form.queries or experiment.budget(form.run)
    go_on = experiment.going_on(form.run, said=form.secrets, place=form.target)
    device = experiment.device_of(form.run)
    if not experiment.told_threads(form.run):
        side_by_side()
    with parallel.ranks(device), Bars(learning="steps") as bars, stopping(form.run, go_on) as stop:
        run = experiment.resume(
            form.run,
            queries=form.queries,
            place=form.target,
            secrets=form.secrets,
            probe_every=form.probe_every,
            progress=following(bars, budget),
            stop=stop,
        )
    console.print(result_table([(str(form.run), run.result)]))
    return 0


def evaluate_command(args: list[str]) -> int:
    """dualstudent evaluate."""
    form = parse(forms.EvaluateForm, args, "evaluate", "Judge a run's clone on test images.")
    data = load_data(form.data, form.split, folder=form.data_dir)
    figures = experiment.evaluate(form.run, data, place=form.target, secrets=form.secrets)
    low, high = figures["agreement_ci"]
    console.print(
        f"{figures['data']} ({figures['images']:,} images): agreement {percent(figures['agreement'])}"
        f" [{percent(low)}, {percent(high)}], accuracy {percent(figures['accuracy'])},"
        f" target {percent(figures['target_accuracy'])}"
    )
    return 0


def transfer_command(args: list[str]) -> int:
    """dualstudent transfer."""
    from dualstudent.cli.attacking import attack

    return attack(parse(forms.TransferForm, args, "transfer", "Attack a run's target with its clone."))


def journal_command(args: list[str]) -> int:
    """dualstudent journal verify|export|repair."""
    from dualstudent.cli.journalling import journal

    return journal(args)


def report_command(args: list[str]) -> int:
    """dualstudent report."""
    from dualstudent.report import render

    form = parse(forms.ReportForm, args, "report", "Make one HTML page of runs.")
    if not form.runs:
        raise UserError("'report' needs one run or more")
    render(form.runs, form.out, title=form.title)
    console.print(f"report: {form.out}")
    return 0


def sweep_command(args: list[str]) -> int:
    """dualstudent sweep."""
    from dualstudent.cli.sweeping import run_sweep

    return run_sweep(parse(forms.SweepForm, args, "sweep", "Do many runs that one file describes."))


def serve_command(args: list[str]) -> int:
    """dualstudent serve."""
    from dualstudent.cli.serving import start

    return start(parse(forms.ServeForm, args, "serve", "Offer a target over HTTP (Open Inference Protocol)."))


def export_command(args: list[str]) -> int:
    """dualstudent export."""
    form = parse(forms.ExportForm, args, "export", "Write a run's clone as ONNX.")
    experiment.export_onnx(form.run, form.onnx)
    console.print(f"ONNX: {form.onnx}")
    return 0


def data_command(args: list[str]) -> int:
    """dualstudent data get."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: dualstudent data get NAME [--data-dir DIR]")
        return 0
    if args[0] != "get":
        raise unknown("data command", args[0], ["get"])
    form = parse(forms.GetForm, args[1:], "data get", "Download a data set's original files.")
    folder = form.data_dir or os.environ.get("DUALSTUDENT_DATA")
    if folder is None:
        raise UserError("no data folder: give --data-dir or set DUALSTUDENT_DATA")
    console.print(f"{form.name}: {fetch(form.name, Path(folder))}")
    return 0


NEEDS = {"LABEL": "labels", "TOPK": "the largest probabilities", "PROBS": "probabilities"}


def list_command(args: list[str]) -> int:
    """dualstudent list."""
    form = parse(forms.ListForm, args, "list", "What there is.")
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "needs": method.needs.name,
            "data_free": method.data_free,
            "queries_per_step": {p: method.preset(p).queries_per_step for p in method.presets},
            "presets": list(method.presets),
        }
        for name, method in methods.registry().items()
    ]
    if form.json:
        sets = [{**asdict(s), "classes": len(s.classes)} for s in DATA_SETS.values()]
        values = {"schema_version": 1, "methods": rows, "architectures": list(ARCHITECTURES), "data": sets}
        json.dump(values, sys.stdout, indent=2)
        print()
        return 0
    table = Table(title="methods", title_justify="left")
    for column in ("name", "needs", "queries a step"):
        table.add_column(column)
    for row in rows:
        steps = ", ".join(f"{k} {v:,}" for k, v in row["queries_per_step"].items())
        needs = NEEDS[row["needs"]] + ("" if row["data_free"] else ", images of others")
        table.add_row(row["name"], needs, steps)
    console.print(table)
    console.print("architectures:", ", ".join(ARCHITECTURES), "(or torch:package.module:factory)")
    console.print("data sets:", ", ".join(DATA_SETS), "(or a folder of class folders)")
    return 0


def light(method: methods.Method[Any], shape: tuple[int, int, int]) -> bool:
    """Return whether a method's student is light; networks of others are not measured. Raises UserError."""
    arch = getattr(method, "student", None)
    if arch == "auto":
        arch = method.suits(shape)
    return arch is not None and ":" not in arch and lighter(arch, shape) == 1


def set_threads(threads: int | None, light: bool = False) -> None:
    """Set the threads of an operation: as told, else one for what is light. Raises UserError.

    Two make a light student's run shorter by little or nothing; two students that learn at once win more.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: at least 1")
    if threads is not None or light:
        torch.set_num_threads(threads or 1)
    if threads is None:
        side_by_side()
