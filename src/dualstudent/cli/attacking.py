"""What `dualstudent transfer` shows."""

from rich.table import Table

from dualstudent import experiment
from dualstudent.cli.forms import TransferForm
from dualstudent.cli.show import Bars, console, percent
from dualstudent.data import load_data
from dualstudent.errors import UserError
from dualstudent.report import transfer_png


def attack(form: TransferForm) -> int:
    """Attack a run's target, print the successes, write transfer.json and transfer.png. Raises UserError."""
    if not form.eps or not form.attacks:
        raise UserError("give at least one attack and one size: --attacks, --eps")
    for flag, sizes in (("eps", form.eps), ("step", (form.step,))):
        if not all(0 < size <= 255 for size in sizes):
            raise UserError(f"--{flag} {' '.join(f'{v:g}' for v in sizes)}: 255ths, above 0 and at most 255")
    data = load_data(form.data, form.split, folder=form.data_dir)
    attacks = experiment.sweep_over(
        form.attacks,
        [size / 255 for size in form.eps],
        step=form.step / 255,
        iterations=form.iterations,
        restarts=form.restarts,
    )
    with Bars(transfer="attacks") as bars:
        found = experiment.attack_run(
            form.run,
            data,
            attacks,
            images=form.images,
            same_data=form.same_data,
            place=form.target,
            secrets=form.secrets,
            device=experiment.choose_device(form.device),
            progress=lambda done, total: bars.update("transfer", done, total),
        )
    table = Table(title=f"success on {found['rows'][0]['right']:,} images classified rightly")
    for column in ("proxy", "attack", "targeted", *(f"{size:g}/255" for size in form.eps)):
        table.add_column(column, justify="left" if column in ("proxy", "attack", "targeted") else "right")
    rows = found["rows"]
    for at in range(0, len(rows), len(form.eps)):
        first, shares = rows[at], [row["success"] for row in rows[at : at + len(form.eps)]]
        table.add_row(
            first["proxy"], first["kind"], "yes" if first["targeted"] else "no", *map(percent, shares)
        )
    console.print(table)
    transfer_png(found, form.run / "transfer.png")
    console.print(
        f"{form.run / 'transfer.json'}, transfer.png; {found['asked']:,} images asked (transfer account)"
    )
    return 0
