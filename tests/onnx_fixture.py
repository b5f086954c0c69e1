"""Small ONNX models, made by hand: a linear classifier behind whatever input and outputs are wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
}
Node = tuple[str, list[str], list[str], dict[str, Any]]


def weights(shape: tuple[int, int, int] = (1, 4, 4), classes: int = 3) -> np.ndarray:
    """Return the weights (c·h·w, classes) of the classifier, for channels first."""
    size = (shape[0] * shape[1] * shape[2], classes)
    return np.random.default_rng(7).normal(size=size).astype(np.float32)


def logits(x: np.ndarray, classes: int = 3) -> np.ndarray:
    """Return what the classifier says of images (b, c, h, w) in [0, 1]."""
    answer: np.ndarray = x.reshape(len(x), -1) @ weights(x.shape[1:], classes)
    return answer


def build(
    path: Path,
    *,
    shape: tuple[int, int, int] = (1, 4, 4),
    classes: int = 3,
    dims: Sequence[int | str | None] = ("n", 1, 4, 4),
    dtype: str = "float32",
    last: bool = False,
    scale: float = 1.0,
    outputs: Sequence[tuple[str, str, Sequence[int | str | None] | None]] = (("p", "float32", ("n", 3)),),
    more: Sequence[Node] = (),
    external: str | None = None,
) -> Path:
    """Write a model: `l` are its logits and `p` its probabilities (n, k), `t` its labels (n,).

    `outputs` are name, type and dimensions; `more` are nodes after these; `scale` divides what comes in;
    `external` names the file that the weights go to.
    """
    axes = [0, 3, 1, 2] if last else [0, 1, 2, 3]
    whole = [-1, shape[1], shape[2], shape[0]] if last else [-1, *shape]
    nodes: list[Node] = [
        ("Cast", ["x"], ["f"], {"to": TensorProto.FLOAT}),
        ("Div", ["f", "scale"], ["s"], {}),
        ("Reshape", ["s", "whole"], ["r"], {}),
        ("Transpose", ["r"], ["c"], {"perm": axes}),
        ("Flatten", ["c"], ["v"], {}),
        ("MatMul", ["v", "w"], ["l"], {}),
        ("Softmax", ["l"], ["p"], {"axis": 1}),
        ("ArgMax", ["l"], ["t"], {"axis": 1, "keepdims": 0}),
        *more,
    ]
    made = [
        numpy_helper.from_array(weights(shape, classes), "w"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
        numpy_helper.from_array(np.array(whole, np.int64), "whole"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, into, out, **about) for kind, into, out, about in nodes],
        "classifier",
        [helper.make_tensor_value_info("x", KINDS[dtype], list(dims))],
        [helper.make_tensor_value_info(n, KINDS[t], d if d is None else list(d)) for n, t, d in outputs],
        made,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=100)
    return path


def claim(path: Path, location: str) -> Path:
    """Make a model say that its weights lie in another file."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path
