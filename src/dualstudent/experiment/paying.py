"""Runs whose answers are paid for: whether a run keeps a journal, who asks through it, the bill."""

import contextlib
import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dualstudent import parallel
from dualstudent.data import Images
from dualstudent.defences import bare, revealed
from dualstudent.desk import Desk, digests
from dualstudent.errors import UserError
from dualstudent.experiment.folder import RunFolder
from dualstudent.experiment.versions import keep_version
from dualstudent.journal import ATTACK, Journal
from dualstudent.ledger import Account
from dualstudent.spec import Service, Target


def journal_for(target: Target, wanted: bool | None) -> dict[str, str] | None:
    """Return what a manifest says of a new run's journal: its name; None where the run keeps none.

    Without a wish, it is kept where answers are paid for. Raises UserError for several ranks.
    """
    service = isinstance(bare(target), Service)
    if parallel.world() > 1 and (service or wanted):
        what = "a service is asked by one process" if service else "--journal is kept by one process"
        raise UserError(f"{what}, here are {parallel.world()} ranks: start without torchrun")
    keep = service if wanted is None else wanted
    return {"run": uuid.uuid4().hex} if keep else None


@dataclass(frozen=True)
class Purse:
    """A run's journal, if it keeps one, and who asks through it."""

    journal: Journal | None = None
    target: Target | None = None

    def attack(self, seen: Target) -> Desk | None:
        """Return where a method's questions are asked; it sees of the answers what `seen` reveals."""
        if self.journal is None or self.target is None:
            return None
        return Desk(self.journal, bare(self.target), ATTACK, partial(revealed, seen))

    def audit(self, data: Images) -> Desk | None:
        """Return where the owner's questions about some test images are asked."""
        return self._owners(f"audit {data.digest()[:16]}")

    def transfer(self, x: Float[Tensor, "n c h w"]) -> Desk | None:
        """Return where the owner's questions about some attacked images are asked, known by their values."""
        return self._owners(f"transfer {hashlib.sha256(b''.join(digests(x))).hexdigest()[:16]}")

    def _owners(self, purpose: str) -> Desk | None:
        if self.journal is None or self.target is None:
            return None
        return Desk(self.journal, bare(self.target), purpose, partial(revealed, self.target))

    def held(self, spent: int) -> int:
        """Return how many of the attack's answers the journal holds beyond so many."""
        return 0 if self.journal is None else self.journal.count(ATTACK, spent)


@contextlib.contextmanager
def purse(run: RunFolder, manifest: dict[str, Any], target: Target) -> Iterator[Purse]:
    """Open the journal that a manifest names, for the length of a command. Raises UserError."""
    about = manifest.get("journal")
    keep_version(run, target)
    if about is None:
        yield Purse()
        return
    if not isinstance(about, dict) or "run" not in about:
        raise UserError(f"{run.manifest_file} names no journal where it should: restore it from a copy")
    with Journal(run.journal, str(about["run"]), paid=sum(run.charged().values())) as journal:
        inner = bare(target)
        if isinstance(inner, Service):
            journal.follow(inner.traffic)
        yield Purse(journal, target)


def bill(
    run: RunFolder, manifest: dict[str, Any], attack: Account, unique: int, journal: Journal | None
) -> dict[str, Any]:
    """Return what a run has cost; what a journal knows is null for a run without one."""
    known = {"asked": attack.asked, "unique": unique, "asked_again": attack.asked_again}
    return known | service(run, manifest, journal)


def service(run: RunFolder, manifest: dict[str, Any], journal: Journal | None) -> dict[str, Any]:
    """Return what the owner has asked, what a journal knows of the requests, and what all images cost.

    At most: with those that a service may have answered on a way that broke off.
    """
    traffic = None if journal is None else journal.traffic()
    charged = run.charged()
    images = sum(charged.values())
    return {
        "audit": charged["audit"],
        "transfer": charged["transfer"],
        "from_journal": None if journal is None else journal.replayed(),
        "failed": None if traffic is None else traffic.failed_images,
        "broken_off": None if traffic is None else traffic.broken_off,
        "requests": None if traffic is None else traffic.requests,
        "retried": None if traffic is None else traffic.retried,
        "statuses": None if traffic is None else dict(sorted(traffic.statuses.items())),
        "bytes_sent": None if traffic is None else traffic.sent,
        "bytes_received": None if traffic is None else traffic.received,
        "waiting_s": None if traffic is None else round(traffic.waiting, 3),
        "price": price(manifest, images),
        "price_at_most": None if traffic is None else price(manifest, images + traffic.broken_off),
    }


def price(manifest: dict[str, Any], images: int) -> float | None:
    """Return what so many images cost at the run's price per 1,000; None where no price is known."""
    rate = manifest.get("price")
    return None if rate is None else round(rate * images / 1000, 6)
