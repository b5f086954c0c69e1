"""Collect frugal.toml and tried.toml: results.json and the tables of docs/methods/frugal.md."""

from pathlib import Path
from typing import Any

from collect import WORDS, gather, share
from summary import write

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "methods" / "frugal.md"
BEGIN, END = "<!-- begin of what table.py writes -->", "<!-- end of what table.py writes -->"
TRIED = """What was tried for it, one change at a time: MNIST, 5,000 queries, seed 1, so differences below a
point are noise. On MNIST the recipe was chosen on these test images (on digits on the target's training
images): its figures above are, for MNIST, not those of an untouched test set."""


def place(row: dict[str, Any]) -> tuple[str, bool, int, float]:
    return row["target"], row["labels"] == "hard", row["budget"], -row["agreement"]["mean"]


def main() -> None:
    rows, tried = gather(HERE / "frugal.toml"), gather(HERE / "tried.toml")
    write(HERE / "results.json", "benchmarks/frugal/command.sh", {"rows": rows, "tried": tried})
    head = ["target", "from", "queries", "method", "n", "agreement, %", "accuracy, %", "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=place):
        words = [row["target"], WORDS[row["labels"]], f"{row['budget']:,}", row["method"], str(row["n"])]
        words += [share(row["agreement"]), share(row["accuracy"]), f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(words) + " |")
    lines += ["", TRIED, "", "| tried | probabilities | labels |", "|---|---|---|"]
    each = {(row["method"], row["labels"]): share(row["agreement"]) for row in tried}
    for name in dict.fromkeys(row["method"] for row in tried):
        lines.append(f"| {name} | {each.get((name, 'soft'), '–')} | {each.get((name, 'hard'), '–')} |")
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after)


if __name__ == "__main__":
    main()
