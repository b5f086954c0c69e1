"""Numbers as words: what a report says, and what each of its figures means."""

from typing import Any

from dualstudent.report.reading import Run, number, whole

NONE = "—"
SOURCES = {"soft": "copied from probabilities", "hard": "copied from labels alone"}
LABELS = {"soft": "soft: class probabilities", "hard": "hard: the top class only"}

MEANINGS: dict[str, str] = {
    "Query": "One image shown to the target; the budget counts every one of them, repeated images too.",
    "Agreement": "Share of test images on which the clone names the same class as the target.",
    "95 % interval": "Wilson's interval of the agreement: how far the choice of test images may move it.",
    "Accuracy": "Share of test images on which the clone names the true class.",
    "Target accuracy": "The same share for the target itself: what there was to copy.",
    "Each student": "The same figure for every student alone; the clone is their mean output.",
    "Cohen's κ": (
        "Agreement beyond what two guessers with the same class shares would reach; 1 is perfect, 0 is "
        "chance."
    ),
    "ℓ1 of probabilities": (
        "Mean summed difference of the two models' class probabilities: 0 is a perfect copy, 2 the worst."
    ),
    "KL divergence": (
        "Mean information, in nats, lost by reading the clone's probabilities instead of the target's."
    ),
    "Students' gap": (
        "Mean distance of the students' outputs from one another, on the images asked; the generator raises "
        "it."
    ),
    "Distance to the target": (
        "Sum of two students' distances to the target on the same images: ‖S1 − T‖ + ‖S2 − T‖."
    ),
    "Tightness of the bound": (
        "Gap over distance, ‖S1 − S2‖ / (‖S1 − T‖ + ‖S2 − T‖): at 1 the gap, which needs no target, tells "
        "the whole distance; it can never be above 1."
    ),
    "Bound measured on": (
        "Where those distances are taken: on logits, or, where only labels are known, on labels."
    ),
    "Student loss": (
        "What the students minimise on the answers: ℓ1 of logits for probabilities, cross-entropy for labels."
    ),
    "Unique images": (
        "Different images among those asked; far fewer than the budget means that queries were wasted."
    ),
    "Charged": "Images charged to the attack, those asked again included; the same as spent where not shown.",
    "Asked again": (
        "Images charged once more because a crash lost the steps that asked them first; with a journal only "
        "those that were in flight."
    ),
    "From the journal": "Answers taken from the journal after a crash, instead of asking and paying again.",
    "Failed images": "Images in requests that failed and were sent again.",
    "Broken off": (
        "Of the failed images, those that the service may have answered, and charge for, on a way that broke "
        "off: a timeout, a reset connection, a gateway that gave up (502, 504)."
    ),
    "Transfer images": "Images shown to the target by transferred attacks: the owner's cost, after the run.",
    "Answers by status": "How many requests ended in each HTTP status, in a timeout or a reset connection.",
    "Waited for answers": "Time in which the run could do nothing but wait for the service, all sessions.",
    "Price": (
        "All images charged at the price per 1,000 that was given (--price), in its currency; at most with "
        "those of the requests that broke off."
    ),
    "Audit images": (
        "Test images shown to the target to judge the clone: the owner's cost, never part of the attack."
    ),
    "Probe images": (
        "Of the audit images, those asked again along the run to see whether the target is still the same."
    ),
    "Answers by class": (
        "How often the target named each class over all queries; one dominant class means a collapsed "
        "generator."
    ),
    "Chance": "What an even spread over all classes would give.",
}


def percent(value: Any) -> str:
    """Return a share as per cent with one decimal."""
    share = number(value)
    return NONE if share is None else f"{100 * share:.1f} %"


def count(value: Any) -> str:
    """Return a whole number with its thousands apart."""
    n = whole(value)
    return NONE if n is None else f"{n:,}"


def figure(value: Any) -> str:
    """Return a number with four significant digits."""
    x = number(value)
    return NONE if x is None else f"{x:.4g}"


def volume(value: Any) -> str:
    """Return a number of bytes as a person says it."""
    size = number(value)
    if size is None or size < 0:
        return NONE
    for power, sign in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * power:
            return f"{size / power:,.3g} {sign}" if size < 1000 * power else f"{size / power:,.0f} {sign}"
    return f"{size:.0f} B"


def duration(value: Any) -> str:
    """Return seconds as a person says them."""
    seconds = number(value)
    if seconds is None or seconds < 0:
        return NONE
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"


def shares(value: Any) -> str:
    """Return a list of shares as per cent."""
    known = [percent(v) for v in value] if isinstance(value, list) else []
    return ", ".join(known) or NONE


def interval(value: Any) -> str:
    """Return an interval of shares in per cent, in brackets; nothing where there is none."""
    ends = [number(end) for end in value] if isinstance(value, list) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return ""
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def short(value: float) -> str:
    """Return a number of queries for an axis."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{sign}"
    return f"{value:.4g}"


def cut(value: Any, most: int) -> str:
    """Return a text, cut with … where it is longer than that."""
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def unfinished(run: Run) -> str:
    """Return the note of a run that has not finished, nothing for one that has."""
    return "" if run.complete else f"unfinished: {count(run.spent)} of {count(run.budget)} queries"


def older(run: Run) -> str:
    """Return a warning where a result is that of a smaller budget, before the run was extended."""
    if not run.result or run.current:
        return ""
    queries = count(run.result.get("budget"))
    return f"checks, bill and classes are those at {queries} queries, before the run was extended"


def headline(run: Run) -> str:
    """Return what came out of a run in one sentence."""
    source = SOURCES.get(run.labels, "copied")
    measured = run.measured
    agreement = measured.get("agreement")
    if number(agreement) is None:
        why = "no test images were given" if run.manifest.get("data") is None else "nothing was measured yet"
        return f"{source} with {count(run.spent)} queries; its agreement with the target is unknown: {why}"
    after = measured.get("queries", run.spent)
    words = [source + ":", percent(agreement), "agreement", interval(measured.get("agreement_ci"))]
    words += [
        "with the target" if run.complete else "with the target so far,",
        "after",
        count(after),
        "queries",
    ]
    return " ".join(word for word in words if word)


def tags(run: Run) -> list[str]:
    """Return the marks of a run: method, preset, what the target reveals, data-free or not."""
    known = [run.manifest.get("method"), run.manifest.get("preset")]
    known.append({"soft": "probabilities", "hard": "labels alone"}.get(run.labels))
    free = run.manifest.get("data_free")
    known.append("data-free" if free is True else "uses data" if free is False else None)
    known.append("a procedural prior" if run.manifest.get("procedural") else None)
    return [str(tag) for tag in known if tag]
