"""Collect the sweeps of a suite: results.json, docs/results.md and its plots.

Without a name, only the page is written again.
"""

import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from summary import read, write

from dualstudent import sweep as sweeps
from dualstudent.experiment.result import LEVELS
from dualstudent.sweep.summary import over_seeds

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
BEGIN, END = "<!-- begin of what collect.py writes -->", "<!-- end of what collect.py writes -->"


def gather(spec: Path) -> list[dict[str, Any]]:
    """Return a row for each target, method, labels and budget of a sweep: figures over its seeds."""
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for cell in sweeps.read_sweep(spec).cells:
        path = Path(cell.path) / "result.json"
        if cell.possible and path.exists() and (result := read(path))["complete"]:
            if cell.start is not None:
                result["base"] = read(Path(cell.start) / "result.json")
            result["device"] = read(Path(cell.path) / "manifest.json")["device"]
            result["seed"] = cell.seed
            groups.setdefault((cell.target.name, cell.row, cell.labels, cell.budget), []).append(result)
    return [figures(*key, results) for key, results in groups.items()]


def figures(target: str, row: str, labels: str, budget: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {"target": target, "method": row, "labels": labels, "budget": budget}
    values |= {"n": len(results), "seeds": [r["seed"] for r in results]}
    values["data_free"] = all(flag(r, "data-free") for r in results)
    for name in ("agreement", "accuracy", "balance"):
        values[name] = interval([r[name] for r in results if r[name] is not None])
    if "base" in results[0]:
        gains = [r["agreement"] - r["base"]["agreement"] for r in results]
        values["base"] = interval([r["base"]["agreement"] for r in results])
        values["gain"], values["asked_before"] = interval(gains), results[0]["base"]["spent"]
    values["reached"] = {}
    for level in (f"{x:.2f}" for x in LEVELS):
        reached = [r["reached"]["agreement"][level] for r in results]
        values["reached"][level] = None if None in reached else statistics.median(reached)
    values["device"] = results[0]["device"]
    values["seconds"] = statistics.fmean(r["timing"]["wall_s"] for r in results)
    values["curve"] = curve(results)
    return values


def interval(values: list[float]) -> dict[str, Any] | None:
    figure = over_seeds(values)
    return figure and {"mean": figure.mean, "half_ci95": figure.half, "values": values}


def flag(result: dict[str, Any], name: str) -> bool:
    return next(bool(f["ok"]) for f in result["flags"] if f["name"] == name)


def curve(results: list[dict[str, Any]]) -> list[list[float]]:
    """Return (queries, mean agreement) at the queries that all seeds have."""
    seen = [{p["queries"]: p["agreement"] for p in r["curve"]} for r in results]
    common = sorted(set.intersection(*(set(s) for s in seen)) - {0})
    return [[q, statistics.fmean(s[q] for s in seen)] for q in common]


def table(rows: list[dict[str, Any]]) -> str:
    head = ["method", "data-free", "from", "n", "agreement, %", "accuracy, %", "balance", *LEVELS_WORDS, "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda r: (r["labels"] == "hard", -r["agreement"]["mean"])):
        reached = [f"{q:,.0f}" if q is not None else "–" for q in row["reached"].values()]
        free = "yes" if row["data_free"] else "**no**"
        source = WORDS[row["labels"]]
        words = [row["method"], free, source, str(row["n"]), share(row["agreement"]), share(row["accuracy"])]
        words += [f"{row['balance']['mean']:.2f}", *reached, f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def gradient_table(rows: list[dict[str, Any]]) -> str:
    """Return eq. 6 and cosine at the end of the runs."""
    last = [r for r in rows if r["queries"] == max(q["queries"] for q in rows)]
    head = ["Dual Student's recipe", "from", "images", "gradient", "queries an image", "eq. 6", "cosine"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in last:
        source = WORDS[row["labels"]]
        words = [row["preset"], source, row["images"], row["gradient"], f"{row['asked_per_image']:.0f}"]
        lines.append(
            "| " + " | ".join([*words, plain(row["eq6_values"]), plain(row["cosine_values"])]) + " |"
        )
    return "\n".join(lines)


LEVELS_WORDS = [f"{100 * level:.0f} %" for level in LEVELS]


def plain(values: list[float]) -> str:
    """Return mean and interval of a figure that is no share."""
    figure = over_seeds(values)
    if figure is None:
        return "–"
    return f"{figure.mean:.2f}" if figure.half is None else f"{figure.mean:.2f} ± {figure.half:.2f}"


def share(figure: dict[str, Any]) -> str:
    text = f"{100 * figure['mean']:.1f}"
    return text if figure["half_ci95"] is None else f"{text} ± {100 * figure['half_ci95']:.1f}"


TRANSFER = """Images made on the better student, shown to the target: success in % of the images that it puts
into the right class, untargeted / towards the next class; means and 95 % intervals over three seeds, PGD.
ε in 255ths of a pixel's range, 10 iterations of ε / 4, one start. FGSM, BIM and success over all
images: [transfer.json](../benchmarks/claims/transfer.json)."""
WORDS = {"soft": "probabilities", "hard": "labels"}
ORDER = ("digits", "ablations", "mnist", "fashion")


def section(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a suite's part of the page: a table for each budget, with a plot of the main rows."""
    text = f"### {name}\n"
    alone = [row for row in rows if "base" not in row]
    for budget in sorted({row["budget"] for row in alone}):
        mine = [row for row in alone if row["budget"] == budget]
        text += f"\n**{budget:,} queries**\n\n"
        shown = [row for row in mine if not row["method"].endswith((", paper", ", default", "students"))]
        if name != "ablations":
            picture = f"results-{name}-{budget // 1000}k.png"
            draw(shown, DOCS / picture, f"{name}, {budget:,}")
            text += f"![Agreement over queries, {name}]({picture})\n\n"
        text += table(mine) + "\n"
    return text + on_top([row for row in rows if "base" in row])


def on_top(rows: list[dict[str, Any]]) -> str:
    """Return what further queries of one method did to another's student, seed by seed."""
    if not rows:
        return ""
    head = ["method", "from", "n", "queries", "agreement before, %", "after, %", "difference, points"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda r: (r["labels"] == "hard", -r["gain"]["mean"])):
        source = WORDS[row["labels"]]
        words = [row["method"], source, str(row["n"]), f"{row['asked_before']:,} + {row['budget']:,}"]
        words += [share(row[name]) for name in ("base", "agreement", "gain")]
        lines.append("| " + " | ".join(words) + " |")
    return "\n**Dual Student on top of others**\n\n" + "\n".join(lines) + "\n"


def transfer_table(rows: list[dict[str, Any]]) -> str:
    """Return PGD's successes, best first at the middle size."""
    pgd = [r for r in rows if r["kind"] == "pgd"]
    sizes = sorted({r["eps"] for r in pgd})
    lines: list[tuple[float, str]] = []
    for name, labels in dict.fromkeys((r["proxy"], r["labels"]) for r in pgd):
        mine = {(r["eps"], r["targeted"]): r for r in pgd if (r["proxy"], r["labels"]) == (name, labels)}
        words = [name, WORDS.get(labels, labels)]
        words.append(str(next(iter(mine.values()))["n"]))
        words += [f"{share(mine[e, False]['success'])} / {share(mine[e, True]['success'])}" for e in sizes]
        lines.append((-mine[sizes[1], False]["success"]["mean"], "| " + " | ".join(words) + " |"))
    head = ["proxy", "from", "n", *(f"ε = {255 * size:.0f}" for size in sizes)]
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(w for _, w in sorted(lines))]
    )


def paper_part() -> str:
    """Return the cells of the paper's tables, those that were run with what came of them."""
    paper = HERE.parent / "paper"
    cells = read(paper / "results.json")["cells"]
    expected = tomllib.loads((paper / "expected.toml").read_text())["accuracy"]
    lines = ["| target | method | from | the paper, % | here, % | n |", "|" + "---|" * 6]
    for entry in expected:
        for row, figures in entry.items():
            for labels, figure in figures.items() if isinstance(figures, dict) else ():
                start = f"{entry['target']}/{row}/{labels}/"
                values = [cell["accuracy"] for name, cell in cells.items() if name.startswith(start)]
                ours = over_seeds(values)
                words = [entry["target"], row, WORDS[labels]]
                words += [f"{figure:.2f}", "not run" if ours is None else str(ours), str(len(values))]
                lines.append("| " + " | ".join(words) + " |")
    others = [
        f"- {name}: accuracy {cell['accuracy']:.1%}, agreement {cell['agreement']:.1%}, {cell['device']}"
        + (f"; {cell['note']}." if "note" in cell else ".")
        for name, cell in cells.items()
        if "paper" not in cell
    ]
    text = (
        "What the paper has for ResNet-34 and ResNet-18, and what a GPU has done of it (`benchmarks/paper`)."
    )
    attacks = read(paper / "results.json")["attacks"]
    table2 = attack_lines(tomllib.loads((paper / "expected.toml").read_text())["attacks"], attacks)
    about = "Table 2, attacks at 3/255 on CIFAR-10, success in %, untargeted / targeted: the paper, and here."
    parts = ["### The paper's own scale", "", text, "", *lines, "", "Beside these:", "", *others, ""]
    return "\n".join([*parts, about, "", *table2, ""])


def attack_lines(expected: dict[str, Any], attacks: dict[str, Any]) -> list[str]:
    """Return table 2 beside what was measured; the better known proxies are those of any run."""
    lines = ["| proxy | from | FGSM | BIM | PGD | here: FGSM | BIM | PGD |", "|" + "---|" * 8]
    for labels, proxies in expected.items():
        for proxy, figures in proxies.items():
            own = next((a for n, a in attacks.items() if n.startswith(f"cifar10/{proxy}/{labels}/")), None)
            found = own or next(iter(attacks.values()), None)
            name = "clone" if own else proxy
            words = [proxy, WORDS[labels]]
            words += [" / ".join(f"{value:.2f}" for value in pair) for pair in figures.values()]
            for kind in figures:
                rows = [r for r in found["rows"] if (r["proxy"], r["kind"]) == (name, kind)] if found else []
                both = [100 * r["success"] for r in sorted(rows, key=lambda r: bool(r["targeted"]))]
                words.append(" / ".join(f"{value:.1f}" for value in both) or "not run")
            lines.append("| " + " | ".join(words) + " |")
    return lines


Line = tuple[str, str, list[float], list[float]]  # label, style, x, y in percent


def panels(lines: dict[str, list[Line]], title: str, xlabel: str, ylabel: str) -> Figure:
    """Draw the lines of probabilities and those of labels side by side."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    names = list(dict.fromkeys(label for each in lines.values() for label, *_ in each))
    for axes, (words, each) in zip(figure.subplots(1, 2, sharey=True), lines.items(), strict=True):
        for label, style, x, y in each:
            i = names.index(label)
            axes.plot(x, y, style, marker=".^"[i // 10 % 2], color=f"C{i % 10}", lw=1.4, ms=4, label=label)
        axes.set_title(f"{title}, from {words}", fontsize=10)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel(ylabel)
    return figure


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw agreement over queries."""
    lines: dict[str, list[Line]] = {"probabilities": [], "labels": []}
    for row in rows:
        if row["curve"]:
            x, y = (list(values) for values in zip(*row["curve"], strict=True))
            style = "-" if row["data_free"] else "--"
            lines[WORDS[row["labels"]]].append((row["method"], style, x, [100 * v for v in y]))
    figure = panels(lines, title, "queries", "agreement with the target, % (mean over seeds)")
    for axes in figure.axes:
        axes.set_xscale("log")
    figure.savefig(path, dpi=110)


def draw_transfer(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the success of untargeted PGD over its size."""
    lines: dict[str, list[Line]] = {"probabilities": [], "labels": []}
    pgd = [r for r in rows if r["kind"] == "pgd" and not r["targeted"]]
    for name, labels in dict.fromkeys((r["proxy"], r["labels"]) for r in pgd):
        mine = [r for r in pgd if (r["proxy"], r["labels"]) == (name, labels)]
        x, y = [255 * r["eps"] for r in mine], [100 * r["success"]["mean"] for r in mine]
        for words in [WORDS[labels]] if labels in WORDS else list(lines):  # a proxy that no clone is: in both
            lines[words].append((name, "-" if labels in WORDS else "--", x, y))
    what = "success, % of images classified rightly (mean over seeds)"
    panels(lines, "PGD, untargeted", "ε / (1/255)", what).savefig(path, dpi=110)


def main() -> None:
    suites = {name: gather(HERE / f"{name}.toml") for name in sys.argv[1:]}
    path = HERE / "results.json"
    known: dict[str, Any] = read(path)["suites"] if path.exists() else {}
    known |= {name: rows for name, rows in suites.items() if rows}
    write(path, "benchmarks/claims/command.sh", {"suites": known})
    parts = [section(name, known[name]) for name in ORDER if name in known]
    if (HERE / "gradients.json").exists():
        text = "Means of three seeds after 50,000 queries, the owner's view (docs/evaluation.md)."
        found = gradient_table(read(HERE / "gradients.json")["rows"])
        parts.append(f"### Gradients on digits\n\n{text}\n\n{found}\n")
    if (HERE / "transfer.json").exists():
        draw_transfer(read(HERE / "transfer.json")["rows"], DOCS / "results-transfer.png")
        found = "![Success over size](results-transfer.png)\n\n"
        found += transfer_table(read(HERE / "transfer.json")["rows"])
        parts.append(f"### Transfer attacks on digits\n\n{TRANSFER}\n\n{found}\n")
    parts.append(paper_part())
    page = DOCS / "results.md"
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + after)


if __name__ == "__main__":
    main()
