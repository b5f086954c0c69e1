"""What `dualstudent serve` does."""

import os

from dualstudent import experiment, targets
from dualstudent.cli.commands import set_threads
from dualstudent.cli.forms import ServeForm
from dualstudent.errors import UserError
from dualstudent.serve import Served, serve

SMALL = 16 * 16  # pixels of an image: a target of such images is light


def start(form: ServeForm) -> int:
    """Serve a target until SIGTERM or Ctrl-C. Raises UserError."""
    device = experiment.choose_device(form.machine.device)
    opened = targets.open_target(form.target, form.access, device=device)
    _, height, width = opened.target.spec.shape
    set_threads(form.machine.threads, light=height * width <= SMALL)
    token = None
    if form.token_needed is not None:
        token = os.environ.get(form.token_needed, "").strip()
        if not token:
            raise UserError(f"--token-needed {form.token_needed}: there is no such environment variable")
    served = Served(
        experiment.facing(opened.target, form.labels),
        name=form.name,
        datatype=form.datatype,
        delay=form.delay,
        token=token,
        log=form.log,
    )

    def ready(address: str) -> None:
        low, high = opened.target.spec.bounds
        print(f"serving {opened.name} at {address} (inputs from {low:g} to {high:g})", flush=True)

    serve(served, host=form.host, port=form.port, ready=ready)
    print(f"served {served.images:,} images in {served.requests:,} requests", flush=True)
    return 0
