"""What OIP v2 metadata say of a model: which tensor takes images, which holds answers, and how."""

from dataclasses import dataclass
from typing import Any

from dualstudent.errors import TargetError, UserError
from dualstudent.spec import LARGEST
from dualstudent.targets.onnx_file import CHANNELS, Layout
from dualstudent.targets.strict import DEEP, plain

INPUTS = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1"}
FLOATS = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2"}
CLASSES = 1 << 20
WHOLE = {
    "INT64": "<i8",
    "INT32": "<i4",
    "INT16": "<i2",
    "INT8": "i1",
    "UINT64": "<u8",
    "UINT32": "<u4",
    "UINT16": "<u2",
    "UINT8": "u1",
}


@dataclass(frozen=True)
class Tensors:
    """What the metadata say of a model: its input and output, and how they are sent."""

    input: str
    datatype: str
    layout: Layout
    batched: bool  # without a batch dimension an image is a request
    fixed: int | None  # images that a request must have
    output: str
    classes: int | None  # None where the output's shape does not tell
    output_kinds: dict[str, str]
    binary: bool


def read_tensors(
    about: dict[str, Any],
    shape: tuple[int, int, int] | None,
    *,
    names: tuple[str | None, str | None],
    layout: Layout,
    binary: bool,
    labels: bool,
) -> tuple[Tensors, tuple[int, int, int]]:
    """Return the input and output that metadata and flags agree on, and the image shape (c, h, w)."""
    into = _pick(about.get("inputs"), names[0], "input", lambda t: t["datatype"] in INPUTS)
    kinds = WHOLE | FLOATS if labels else FLOATS
    out = _pick(about.get("outputs"), names[1], "output", lambda t: t["datatype"] in kinds)
    if into["datatype"] not in INPUTS:
        raise UserError(f"input '{into['name']}' takes {into['datatype']}: known are {', '.join(INPUTS)}")
    if out["datatype"] not in kinds:
        hint = "; give --output labels" if out["datatype"] in WHOLE else ""
        raise UserError(f"output '{out['name']}' is {out['datatype']}, no probabilities{hint}")
    dims = into["shape"]
    if len(dims) not in (3, 4):
        raise UserError(f"input '{into['name']}' of shape {dims} takes no images: --input-name names another")
    batched = len(dims) == 4
    order, found = _layout(dims[-3:], layout, shape)
    fixed = dims[0] if batched and dims[0] > 0 else None
    rows = out["datatype"] in FLOATS and len(out["shape"]) > 0
    width = out["shape"][-1] if rows and out["shape"][-1] > 0 else None
    if width == 1 and labels:
        width = None
    if width is not None and width > CLASSES:
        raise UserError(f"output '{out['name']}' has {width:,} values an image: at most {CLASSES:,} classes")
    if width == 1:
        raise UserError(
            f"output '{out['name']}' has one value an image: give --output labels if it is a class"
        )
    tensors = Tensors(
        into["name"], into["datatype"], order, batched, fixed, out["name"], width, kinds, binary
    )
    return tensors, found


def _pick(tensors: Any, name: str | None, what: str, fits: Any) -> dict[str, Any]:
    """Return the one tensor that is meant."""
    known = [_tensor(tensor, what) for tensor in tensors] if isinstance(tensors, list) else []
    names = ", ".join(f"{t['name']} {t['datatype']} {t['shape']}" for t in known[:8])
    if name is not None:
        for tensor in known:
            if tensor["name"] == name:
                return tensor
        raise UserError(f"--{what}-name {name}: the model has {names or 'none'}")
    chosen = [tensor for tensor in known if fits(tensor)] if len(known) > 1 else known
    if len(chosen) != 1:
        raise UserError(f"the model has {len(known)} {what}s ({names}): say which with --{what}-name")
    return chosen[0]


def _tensor(tensor: Any, what: str) -> dict[str, Any]:
    try:
        name, datatype = tensor["name"], tensor["datatype"]
        if not (isinstance(name, str) and isinstance(datatype, str) and isinstance(tensor["shape"], list)):
            raise TypeError
        shape = [_size(size) for size in tensor["shape"]]
        if len(shape) > DEEP or any(size > LARGEST for size in shape):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise TargetError(f"the metadata describe an {what} without name, datatype and shape") from None
    return {"name": plain(name), "datatype": plain(datatype, 20), "shape": shape}


def _size(size: Any) -> int:
    """Return a size: -1 where it is free. Some servers write numbers as texts."""
    if type(size) is not int and not (isinstance(size, str) and len(size) < 20):
        raise TypeError
    return int(size)


def _layout(
    dims: list[int], said: Layout, shape: tuple[int, int, int] | None
) -> tuple[Layout, tuple[int, int, int]]:
    """Return where the channels lie, and the image shape, from the sizes that are known."""
    first = (dims[0], dims[1], dims[2])
    last = (dims[2], dims[0], dims[1])
    orders: dict[Layout, tuple[int, int, int]] = {"nchw": first, "nhwc": last}
    fitting = {
        name: shape or sizes
        for name, sizes in orders.items()
        if said in ("auto", name)
        and all(mine in (size, None) or size < 1 for mine, size in zip(shape or sizes, sizes, strict=True))
    }
    if not fitting:
        raise UserError(f"--shape {' '.join(map(str, shape or ()))}: the model takes {dims}")
    if len(fitting) > 1 and first != last:  # channels are few, sides are not
        few = {name: sizes for name, sizes in fitting.items() if orders[name][0] in CHANNELS}
        if len(few) != 1:
            raise UserError(f"the model takes {dims}: say where the channels lie, --layout nchw or nhwc")
        fitting = few
    [(layout, found), *_] = fitting.items()
    if min(found) < 1:
        raise UserError(f"the model takes images of any size {dims}: give --shape C H W")
    return layout, found
