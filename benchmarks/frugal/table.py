"""Collect frugal.toml: results.json and the table of docs/methods/frugal.md."""

from pathlib import Path
from typing import Any

from collect import gather, share
from summary import write

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "methods" / "frugal.md"
BEGIN, END = "<!-- begin of what table.py writes -->", "<!-- end of what table.py writes -->"


def place(row: dict[str, Any]) -> tuple[str, bool, int, float]:
    return row["target"], row["labels"] == "hard", row["budget"], -row["agreement"]["mean"]


def main() -> None:
    rows = gather(HERE / "frugal.toml")
    write(HERE / "results.json", "benchmarks/frugal/command.sh", {"rows": rows})
    head = ["target", "from", "queries", "method", "n", "agreement, %", "accuracy, %", "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=place):
        source = {"soft": "probabilities", "hard": "labels"}[row["labels"]]
        words = [row["target"], source, f"{row['budget']:,}", row["method"], str(row["n"])]
        words += [share(row["agreement"]), share(row["accuracy"]), f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(words) + " |")
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + after)


if __name__ == "__main__":
    main()
