"""What an ONNX file says of itself: its other files, its image input, and which output is the answer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, get_args

from dualstudent.errors import UserError
from dualstudent.targets.module import Output

Layout = Literal["auto", "nchw", "nhwc"]
Dims = list[int | None]  # None: free
Shape = tuple[int, int, int]
FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
WHOLE = {f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)}
CHANNELS = (1, 3)  # grey and colour: counts by which the axis of channels is told from height and width
MEMORY = "_ORT_MEM_ADDR_"  # by this location the runtime would read its own memory


@dataclass(frozen=True)
class Port:
    """An input or output of a model; `dims` is None where the model does not say even their number."""

    name: str
    kind: str  # tensor(float), tensor(uint8), seq(map(int64,tensor(float))) …
    dims: Dims | None

    @classmethod
    def of(cls, argument: Any) -> "Port":
        """Return what the runtime says of an argument."""
        dims = [d if isinstance(d, int) and d > 0 else None for d in argument.shape or []]
        return cls(argument.name, argument.type, dims or None)

    def __str__(self) -> str:
        sides = "×".join("?" if d is None else str(d) for d in self.dims or [])
        return f"'{self.name}' {self.kind} {sides}".strip()


@dataclass(frozen=True)
class Images:
    """How a batch of images goes into a model."""

    name: str
    dtype: str  # numpy's name
    shape: Shape  # channels, height, width
    last: bool  # whether channels come last
    inner: tuple[int, ...]  # dimensions after the batch's
    batch: int | None  # None: any


@dataclass(frozen=True)
class Answers:
    """Which output is the answer, what it means, and for how many classes (None: it does not say)."""

    name: str
    output: Output
    classes: int | None
    single: bool = False  # one column, of the second of two classes
    beside: str = ""  # what the other outputs have, where the labels do not tell the number of classes


def other_files(model: Any, path: Path) -> list[Path]:
    """Return the files beside a model that hold its weights. Raises UserError for one outside its folder."""
    folder = path.resolve().parent
    found: dict[str, Path] = {}
    for tensor in _tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        place = folder / location
        foreign = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        if not location or foreign or ".." in PureWindowsPath(location).parts or MEMORY in location:
            raise UserError(f"{path} wants weights from '{location}': only files in its own folder are read")
        if not place.is_file():
            raise UserError(f"{path} lacks its file of weights {location}: put it beside the model")
        if not place.resolve().is_relative_to(folder):
            raise UserError(
                f"{path} wants weights from '{location}', a link out of its folder: copy the file"
            )
        found[location] = place
    return [found[name] for name in sorted(found)]


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model, those of graphs inside of nodes and of functions included."""
    graphs = [model.graph, *(g for t in model.training_info for g in (t.initialization, t.algorithm))]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            sparse = list(graph.sparse_initializer)
            nodes += graph.node
        else:
            sparse = []
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
                graphs += [attribute.g, *attribute.graphs]
        for each in sparse:
            yield from (each.values, each.indices)


def image_input(inputs: Sequence[Port], shape: Shape | None, layout: Layout, where: object) -> Images:
    """Return how images go in. Raises UserError naming the option that says what the model does not."""
    if len(inputs) != 1:
        names = ", ".join(map(str, inputs)) or "none"
        raise UserError(f"{where} has {len(inputs)} inputs ({names}): a target has one, the image")
    port = inputs[0]
    dtype = "uint8" if port.kind == "tensor(uint8)" else FLOATS.get(port.kind)
    if dtype is None:
        raise UserError(f"{where} takes {port.kind}: only float, float16, double and uint8 images are known")
    if port.dims is None or not 2 <= len(port.dims) <= 4:
        raise UserError(f"{where} takes {port}: no batch of images")
    batch, inner = port.dims[0], port.dims[1:]
    if len(inner) == 3:
        last, found = _arranged(inner, shape, layout, where)
        c, h, w = found
        return Images(port.name, dtype, found, last, (h, w, c) if last else found, batch)
    if len(inner) == 2:
        if batch is not None and batch > 1:
            raise UserError(f"{where} takes {port}: it has no axis for a batch")
        found = _grey(inner, shape, where)
        return Images(port.name, dtype, found, False, found[1:], batch)
    if shape is None:
        values = "rows" if inner[0] is None else f"rows of {inner[0]} values"
        raise UserError(f"{where} takes {values}: say what images they are, --shape C H W")
    if inner[0] not in (None, math.prod(shape)):
        raise UserError(f"--shape {_words(shape)}: {where} takes rows of {inner[0]} values")
    return Images(port.name, dtype, shape, layout == "nhwc", (math.prod(shape),), batch)


def _arranged(inner: Dims, shape: Shape | None, layout: Layout, where: object) -> tuple[bool, Shape]:
    """Return whether channels come last, and channels, height and width."""
    ways = {"nchw": (inner[0], inner[1], inner[2]), "nhwc": (inner[2], inner[0], inner[1])}
    takes = "×".join("?" if d is None else str(d) for d in inner)
    if shape is None and None in inner:
        raise UserError(f"{where} takes images of {takes} and does not say the rest: give --shape C H W")
    fitting: dict[str, Shape] = {}
    for name, (c, h, w) in ways.items():
        if shape is not None:
            if all(d in (None, s) for d, s in zip((c, h, w), shape, strict=True)):
                fitting[name] = shape
        elif c is not None and h is not None and w is not None and (c in CHANNELS or layout == name):
            fitting[name] = (c, h, w)
    if layout != "auto":
        fitting = {name: found for name, found in fitting.items() if name == layout}
    if len(fitting) == 1:
        [(name, found)] = fitting.items()
        return name == "nhwc", found
    if shape is not None and not fitting:
        raise UserError(f"--shape {_words(shape)}: {where} takes images of {takes} ({layout})")
    raise UserError(
        f"{where} takes images of {takes}: say which axis is which, --layout nchw or --layout nhwc"
    )


def _grey(inner: Dims, shape: Shape | None, where: object) -> Shape:
    h, w = inner
    if shape is not None:
        if shape[0] != 1 or h not in (None, shape[1]) or w not in (None, shape[2]):
            raise UserError(f"--shape {_words(shape)}: {where} takes grey images of {h}×{w}")
        return shape
    if h is None or w is None:
        raise UserError(f"{where} does not say how large its images are: give --shape C H W")
    return 1, h, w


def answer_output(outputs: Sequence[Port], wanted: str | None, output: Output, where: object) -> Answers:
    """Return which output is the answer, and what it means. Raises UserError naming --output-name."""
    port = _chosen(outputs, wanted, output, where)
    if port.kind.startswith("seq"):
        label = next((f", or --output-name {p.name} for its labels" for p in outputs if p.kind in WHOLE), "")
        raise UserError(
            f"{where}: output '{port.name}' is a list of dictionaries:"
            f" convert it with options={{'zipmap': False}}{label}"
        )
    dims = port.dims
    while dims is not None and len(dims) > 2 and dims[-1] == 1:  # (n, k, 1, 1) of a network without a head
        dims = dims[:-1]
    if port.kind in WHOLE and (dims is None or len(dims) == 1 or dims[1:] == [1]):
        return Answers(port.name, "labels", None, beside=_widths(outputs))
    if port.kind not in FLOATS:
        raise UserError(f"{where}: output {port} is neither numbers for each class nor class numbers")
    if dims is None:
        return Answers(port.name, output, None)
    if output == "labels" and len(dims) == 1:
        return Answers(port.name, output, None)
    if len(dims) != 2:
        raise UserError(f"{where}: output {port} is no batch of answers, (images, classes)")
    if dims[1] == 1:
        return Answers(port.name, output, 2, single=True)
    return Answers(port.name, output, dims[1])


def _widths(outputs: Sequence[Port]) -> str:
    """Return in words how many values the outputs of numbers have: they may be those of the classes."""
    rows = [p for p in outputs if p.kind in FLOATS and p.dims is not None and len(p.dims) == 2 and p.dims[1]]
    return ", ".join(f"its output '{p.name}' has {p.dims[1]}" for p in rows if p.dims is not None)


def _chosen(outputs: Sequence[Port], wanted: str | None, output: Output, where: object) -> Port:
    names = ", ".join(map(str, outputs))
    if wanted is not None:
        found = [port for port in outputs if port.name == wanted]
        if not found:
            raise UserError(f"--output-name {wanted}: {where} has {names}")
        return found[0]
    if len(outputs) == 1:
        return outputs[0]
    whole = [port for port in outputs if port.kind in WHOLE and (port.dims is None or len(port.dims) == 1)]
    found = whole if output == "labels" and len(whole) == 1 else []
    found = found or [
        port for port in outputs if port.kind in FLOATS and (port.dims is None or port.dims[1:])
    ]
    found = found or [port for port in outputs if port.kind.startswith("seq")] or whole
    if len(found) != 1:
        raise UserError(f"{where} has several outputs ({names}): say which one, --output-name NAME")
    return found[0]


def check_layout(layout: str) -> Layout:
    """Return a known layout. Raises UserError."""
    if layout not in get_args(Layout):
        raise UserError(f"--layout {layout}: one of {', '.join(get_args(Layout))}")
    return layout  # type: ignore[return-value]


def _words(shape: Shape) -> str:
    return " ".join(map(str, shape))
