"""The same few images, asked along a run: they tell whether the target is still the one it began with."""

import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dualstudent.defences import bare
from dualstudent.errors import TargetError, UserError
from dualstudent.evaluation import ask_all
from dualstudent.experiment.again import going_on
from dualstudent.experiment.folder import SCHEMA_VERSION, RunFolder
from dualstudent.files import read_json, write_json
from dualstudent.ledger import Account
from dualstudent.spec import Service, Spec, Target

IMAGES = 4  # of a probe: two smooth ones, two of noise
TOLERANCE = 1e-3  # of a probability: services in half precision and in batches of other sizes round so far
SEED = 0
LEAST, SHARE = 1000, 20  # of a service: every 1,000 queries, or twenty times in the run
log = logging.getLogger(__name__)


def cadence(asked_for: int | None, target: Target, queries: int) -> int:
    """Return how many queries lie between probes, 0 for none: a service's model may change, ours does not.

    Raises UserError.
    """
    if asked_for is not None:
        if asked_for < 0:
            raise UserError(f"--probe-every {asked_for}: queries, 0 for no probes")
        return asked_for
    return max(LEAST, queries // SHARE) if isinstance(bare(target), Service) else 0


class Probes:
    """Asks a run's probe images, charged to the audit, and compares the answers with the first ones.

    They are kept in the run's probes.json, so that a later session knows them. What has changed, or could
    not be asked, is `trouble`: the run stops with its state saved, and the error is raised then.
    """

    def __init__(self, run: RunFolder, target: Target, account: Account, every: int, planned: int) -> None:
        self.run, self.target, self.account, self.every, self.planned = run, target, account, every, planned
        self.images = probe_images(target.spec)
        self.trouble: str | None = None
        self._kept = _read(run)
        self._next = 0

    @property
    def asked(self) -> int:
        """Images asked in all sessions of the run."""
        return int(self._kept["asked"])

    def begin(self, spent: int, *, insist: bool) -> bool:
        """Ask before a session's first query; return whether probes can tell anything.

        The first time twice: from a target that answers at random they cannot, which is an error where
        one insists. Raises TargetError where the target has changed since the last session.
        """
        self._next = (spent // max(1, self.every) + 1) * self.every
        if not self.every:
            return True
        if self._kept["answers"] is not None:
            changed = self._differs(spent)
            if changed is not None:
                raise TargetError(changed)
            return True
        first, again = self._ask(), self._ask()
        apart = _apart(first, again)
        if apart > TOLERANCE:
            said = (
                f"the same image is answered differently each time (by up to {apart:.2g}): a randomised"
                " defence, or an unstable model, so that probes cannot tell whether the target has changed"
            )
            if insist:
                raise UserError(f"{said}: --probe-every 0 goes without them")
            log.warning("%s: the run goes without them", said)
            self.every = 0
            return False
        self._kept |= {"answers": first.tolist(), "alike_at": spent}
        self._write()
        return True

    def __call__(self, spent: int) -> bool:
        """Probe where it is time to, and after the last query; return whether to stop."""
        last = spent == self.planned and self._kept["alike_at"] != spent
        if not self.every or not (spent >= self._next or last):
            return False
        self._next = (spent // self.every + 1) * self.every
        try:
            self.trouble = self._differs(spent)
        except TargetError as error:
            self.trouble = f"{error}; go on with: {going_on(self.run.path, self.target)}"
        return self.trouble is not None

    def _differs(self, spent: int) -> str | None:
        """Ask, and return what is to say where the answers are others than the first ones."""
        altered = getattr(bare(self.target), "altered", lambda: None)()
        first, now = torch.tensor(self._kept["answers"]), self._ask()
        apart = _apart(first, now)
        before, self._kept["alike_at"] = self._kept["alike_at"], spent
        if apart <= TOLERANCE and altered is None:
            self._write()
            return None
        self._kept["alike_at"] = before
        self._write()
        when = f"between query {before:,} and query {spent:,}" if spent > before else f"after query {spent:,}"
        probed = f"the same {IMAGES} probe images are answered otherwise than at first (by up to {apart:.2g})"
        unless = "" if altered else " (with --probe-every 0 whatever it answers)"
        return (
            f"the target has changed {when}: {altered or probed}. What was paid is kept: once the old model"
            f" is back{unless}, go on with: {going_on(self.run.path, self.target)}"
        )

    def _ask(self) -> Float[Tensor, "b k"]:
        self._kept["asked"] += len(self.images)
        return ask_all(self.target, [self.images], self.account).float()

    def _write(self) -> None:
        write_json(self.run.probes, {"schema_version": SCHEMA_VERSION, **self._kept})


def probe_images(spec: Spec) -> Float[Tensor, "b c h w"]:
    """Return a spec's probe images, the same ones always."""
    dice = torch.Generator().manual_seed(SEED)
    c, h, w = spec.shape
    smooth = interpolate(torch.rand(IMAGES // 2, c, 4, 4, generator=dice), size=(h, w), mode="bilinear")
    rough = torch.rand(IMAGES - len(smooth), c, h, w, generator=dice)
    low, high = spec.bounds
    return spec.quantise(low + (high - low) * torch.cat([smooth, rough]))


def _apart(a: Tensor, b: Tensor) -> float:
    """Return by how much answers differ at most; those of an unknown number of classes may be narrower."""
    wide = max(a.shape[1], b.shape[1])
    a, b = (pad(each, (0, wide - each.shape[1])) for each in (a, b))
    return (a - b).abs().max().item()


def _read(run: RunFolder) -> dict[str, Any]:
    """Return what earlier sessions kept. Raises UserError."""
    fresh: dict[str, Any] = {"asked": 0, "alike_at": None, "answers": None}
    if not run.probes.exists():
        return fresh
    values = read_json(run.probes)
    try:
        rows = values["answers"]
        if torch.tensor(rows).ndim != 2 or len(rows) != IMAGES:
            raise ValueError("answers of another shape")
        return {"asked": int(values["asked"]), "alike_at": int(values["alike_at"]), "answers": rows}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{run.probes} holds no answers to probes ({error}): restore it from a copy"
        ) from error
