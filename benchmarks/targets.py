"""Fill the tables of docs/targets.md from the results of benchmarks/http and benchmarks/faults."""

import re
from pathlib import Path
from typing import Any

from summary import read

PAGE = Path("docs/targets.md")
MARKED = re.compile(r"(<!-- begin: measured -->\n).*?(<!-- end: measured -->)", re.DOTALL)


def tables(http: dict[str, Any] | None, faults: dict[str, Any] | None) -> str:
    """Return the tables as Markdown; what was not measured is not there."""
    parts = []
    if http is not None:
        wanted = http["wanted"]
        rows = [
            (
                f"3×32×32 on loopback, {name}",
                f"{f['median']:,.0f}",
                f"{f['min']:,.0f} – {f['max']:,.0f}",
                f["n"],
            )
            for name, f in http["images_per_s"].items()
        ]
        parts.append(_table(("images a second", "median", "range", "n"), rows))
        share = http["run"]["share_outside"]
        row = (
            f"{http['run']['method']}, {http['run']['queries']:,} queries",
            *(f"{100 * share[name]:.1f} %" for name in ("median", "min", "max")),
            share["n"],
        )
        head = ("share of a run outside waiting and training", "median", "least", "most", "n")
        parts.append(_table(head, [row]))
        parts.append(
            f"Wanted: {wanted['images_per_s']:,} images a second, and at most"
            f" {100 * wanted['share_outside']:g} % outside ([`benchmarks/http`](../benchmarks/http))."
        )
    if faults is not None:
        names = ("queries", "kills", "asked", "asked_again", "lost", "from_journal")
        rows = [(name.replace("_", " "), f"{faults[name]:,}") for name in names]
        rows.append(("the same students as undisturbed", "yes" if faults["hash_equal"] else "no"))
        parts.append(_table(("faults", ""), rows))
        parts.append(
            f"Kills of tool and server in turn, {100 * faults['failing_requests']:g} % of requests failing,"
            f" in {faults['seconds']:.0f} s ([`benchmarks/faults`](../benchmarks/faults))."
        )
    return "".join(part + "\n\n" for part in parts)


def _table(head: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def filled(page: str, root: Path = Path()) -> str:
    """Return the page with its tables as they are measured."""
    files = [root / "benchmarks" / name / "results.json" for name in ("http", "faults")]
    http, faults = (read(file) if file.is_file() else None for file in files)
    return MARKED.sub(lambda match: f"{match[1]}\n{tables(http, faults)}{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
