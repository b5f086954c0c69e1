"""Run directories made by hand, as an extraction leaves them (figures are made up), and parsed pages."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DIGEST = "0123456789abcdef" * 4


VOID = {"meta", "img", "link", "br", "hr", "input", "path", "use"}


class Page(HTMLParser):
    """A parsed page: its text, its attributes, and whether its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self._text: list[str] = []
        self.feed(self.raw)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self._text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self._text.append(data)

    def of(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.attributes}


def make_run(
    path: Path,
    *,
    budget: int = 50_000,
    labels: str = "soft",
    classes: int | None = 10,
    data: bool = True,
    bound: bool = True,
    pictures: bool = True,
    finished: bool = True,
    points: int = 24,
    best: float = 0.82,
    seed: int = 0,
    side: int = 8,
    channels: int = 1,
    **changes: Any,
) -> Path:
    """Write a run directory; `changes` replace entries of the result."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shown = classes or 7
    curve = [_point(q, budget, best, data, bound) for q in _queries(budget, points)]
    kept = curve if finished else curve[: max(1, len(curve) * 2 // 3)]
    _write(path / "manifest.json", _manifest(budget, labels, classes, data, seed, [channels, side, side]))
    lines = [{"event": "evaluation", "step": i, **point} for i, point in enumerate(kept, 1)]
    for i, queries in enumerate(range(320, int(kept[-1]["queries"]) + 1, max(320, budget // 900)), 1):
        share = queries / budget
        noise = float(rng.uniform(0.85, 1.15))
        values = {"gap": 2 * (0.1 + share) * noise, "loss": 9 * math.exp(-3 * share) * noise}
        lines.append({"event": "step", "step": i, "queries": queries, **values})
    lines.sort(key=lambda line: float(str(line["queries"])))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text if finished else text + '{"event": "evaluation", "qu')
    if pictures:
        (path / "figures").mkdir()
        for point in kept:
            _strip(
                path / f"figures/asked-{point['queries']:09d}.png",
                point["queries"] / budget,
                side,
                channels,
                rng,
            )
    if finished:
        result = _result(budget, labels, shown, data, bound, curve, best, seed, rng)
        _write(path / "result.json", result | changes)
    return path


def edit(path: Path, **changes: Any) -> None:
    """Replace entries of a JSON file."""
    _write(path, json.loads(path.read_text()) | changes)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))


def _queries(budget: int, points: int) -> list[int]:
    if points == 1:
        return [budget]
    return sorted({budget >> i for i in range(7)} | {budget * i // points for i in range(1, points + 1)})


def _point(queries: int, budget: int, best: float, data: bool, bound: bool) -> dict[str, Any]:
    agreement = 0.1 + (best - 0.1) * (1 - math.exp(-5 * queries / budget)) / (1 - math.exp(-5))
    point: dict[str, Any] = {"queries": queries, "accuracy": None, "agreement": None}
    if data:
        point |= {"accuracy": agreement - 0.013, "agreement": agreement}
    if bound:
        gap, error = 0.4 + queries / budget, 2.5 - queries / budget / 2
        point |= {"space": "logits", "gap": gap, "error": error, "tightness": gap / error, "faults": []}
    return point


def _manifest(
    budget: int, labels: str, classes: int | None, data: bool, seed: int, shape: list[int]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "method": "dual-student",
        "preset": "small",
        "recipe": {
            "student": "auto",
            "students": 2,
            "batch": 64,
            "drops": [0.1, 0.3, 0.5],
            "learn_range": True,
        },
        "data_free": True,
        "labels": labels,
        "seed": seed,
        "budgets": [budget],
        "target": {
            "reference": "runs/demo/target",
            "name": "digits-cnn on digits",
            "sha256": DIGEST,
            "options": None,
            "spec": {
                "shape": shape,
                "classes": classes,
                "bounds": [0.0, 1.0],
                "access": "PROBS" if labels == "soft" else "LABEL",
                "levels": None,
                "mean": None,
                "std": None,
            },
        },
        "data": {"name": "digits", "split": "test", "images": 900, "sha256": DIGEST} if data else None,
        "device": "cpu",
        "threads": 1,
        "versions": {"dualstudent": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu"},
        "command": [
            "dualstudent",
            "extract",
            "runs/demo/target",
            "--queries",
            str(budget),
            "--labels",
            labels,
        ],
    }


def _result(
    budget: int,
    labels: str,
    classes: int,
    data: bool,
    bound: bool,
    curve: list[dict[str, Any]],
    best: float,
    seed: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    each = rng.beta(8, 2, classes)
    counts = rng.multinomial(budget, rng.dirichlet(np.full(classes, 3.0)))
    figures: dict[str, Any] = {
        "target_accuracy": 0.9889,
        "accuracy": best - 0.013,
        "accuracy_each": [best - 0.02, best - 0.031],
        "agreement": best,
        "agreement_ci": [best - 0.026, best + 0.024],
        "agreement_each": [best - 0.01, best - 0.015],
        "kappa": 0.8014,
        "per_class": [
            {"class": str(c), "images": 90, "agreement": float(p), "accuracy": float(p) * 0.98}
            for c, p in enumerate(each)
        ],
        "l1": 0.4123 if labels == "soft" else None,
        "kl": 0.3051 if labels == "soft" else None,
    }
    if not data:
        figures = dict.fromkeys(figures) | {"per_class": []}
    return {
        "schema_version": 1,
        "method": "dual-student",
        "preset": "small",
        "labels": labels,
        "seed": seed,
        "budget": budget,
        "spent": budget,
        "unique": budget,
        "extended_from": [],
        **figures,
        "curve": curve,
        "bound": {name: curve[-1][name] for name in ("space", "gap", "error", "tightness", "faults")}
        if bound
        else None,
        "histogram": {str(c): int(n) for c, n in enumerate(counts) if n},
        "complete": True,
        "flags": [
            {"name": "budget", "ok": True, "text": f"spent {budget:,} of {budget:,} planned"},
            {"name": "access", "ok": True, "text": "the method saw what --labels says"},
            {"name": "collapse", "ok": True, "text": "no class holds more than 90 % of the answers"},
        ],
        "timing": {"wall_s": 33.12, "queries_per_s": 1509.7, "sessions": 1},
        "bill": {"asked": budget, "asked_again": 0, "audit": 900 if data else 0},
    }


def _strip(path: Path, share: float, side: int, channels: int, rng: np.random.Generator) -> None:
    """Save twelve blobs in a row, one pixel apart."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    images = []
    for _ in range(12):
        blob = [
            np.cos((3 + 9 * share) * (x * rng.normal() + y * rng.normal()) + 6 * rng.uniform())
            for _ in range(channels)
        ]
        image = np.stack(blob, -1) * 110 + 128 + rng.normal(0, 30 * (1 - share) + 5, (side, side, channels))
        images.append(np.pad(image, ((0, 0), (0, 1), (0, 0)), constant_values=255))
    array = np.concatenate(images, 1)[:, :-1].clip(0, 255).astype(np.uint8)
    Image.fromarray(array[..., 0] if channels == 1 else array).save(path)
