"""Success of transferred attacks over their size, as one picture."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

MARKS = {"fgsm": "o", "bim": "s", "pgd": "^"}


def transfer_png(found: dict[str, Any], path: Path) -> None:
    """Draw transfer.json: a panel for untargeted and one for targeted attacks, a line a proxy and attack."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    proxies = list(dict.fromkeys(row["proxy"] for row in found["rows"]))
    for axes, targeted in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for colour, proxy in enumerate(proxies):
            for kind, mark in MARKS.items():
                rows = [
                    r
                    for r in found["rows"]
                    if (r["proxy"], r["kind"], r["targeted"]) == (proxy, kind, targeted)
                ]
                rows = sorted((r for r in rows if r["success"] is not None), key=lambda r: r["eps"])
                if rows:
                    x, y = [255 * r["eps"] for r in rows], [100 * r["success"] for r in rows]
                    axes.plot(x, y, marker=mark, color=f"C{colour}", label=f"{kind} on {proxy}", alpha=0.8)
        axes.set_title("targeted: the class after the true one" if targeted else "untargeted", fontsize=10)
        axes.set_xlabel("ε / (1/255)")
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("success, % of images classified rightly")
    figure.axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=150, facecolor="white")
