"""The model behind the fault server, and answers as its faults want them. Needs numpy only."""

from typing import Any

import numpy as np


class Model:
    """Softmax of a random linear map, computed row by row: no answer depends on its neighbours."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.name = about.get("name", "toy")
        self.shape = tuple(about.get("shape", (1, 8, 8)))
        self.classes = about.get("classes", 4)
        self.output = about.get("output", "probabilities")
        self.layout = about.get("layout", "nchw")
        self.datatype = about.get("datatype", "FP32")
        self.versions = about.get("versions", ["1"])
        pixels = int(np.prod(self.shape))
        self.weight = np.random.default_rng(about.get("seed", 7)).normal(size=(pixels, self.classes))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Answer images (n, c, h, w) in [0, 1]: rows (n, classes), or labels (n,)."""
        logits = np.stack(
            [(row[:, None] * self.weight).sum(0) for row in x.reshape(len(x), -1).astype(float)]
        )
        if self.output == "labels":
            return np.asarray(logits.argmax(1), "<i8")
        if self.output == "logits":
            return logits.astype("<f4")
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True), "<f4")

    def metadata(self) -> dict[str, Any]:
        c, h, w = self.shape
        into = [-1, c, h, w] if self.layout == "nchw" else [-1, h, w, c]
        labels = self.output == "labels"
        out = {"name": "output", "datatype": "INT64" if labels else "FP32"}
        return {
            "name": self.name,
            "versions": self.versions,
            "platform": "numpy",
            "inputs": [{"name": "input", "datatype": self.datatype, "shape": into}],
            "outputs": [{**out, "shape": [-1] if labels else [-1, self.classes]}],
        }


def damaged(rows: np.ndarray, fault: dict[str, Any]) -> np.ndarray:
    """Return answers as a fault wants them."""
    rows = rows.copy()
    kind = fault.get("values")
    if kind == "nan":
        rows[0, 0] = np.nan
    elif kind == "negative":
        rows[0, :2] = (-0.5, 1.5)
    elif kind == "unnormalised":
        rows *= 3
    elif kind == "label":
        rows[0] = fault.get("label", 99)
    if "rows" in fault:
        rows = np.concatenate([rows, rows])[: len(rows) + fault["rows"]]
    if "classes" in fault:
        rows = np.concatenate([rows, np.zeros((len(rows), fault["classes"]), "<f4")], 1)
    return rows
