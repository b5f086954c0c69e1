"""ONNX models as targets, run by onnxruntime on the CPU."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dualstudent.errors import UserError
from dualstudent.oracle import answered
from dualstudent.spec import Access, Spec
from dualstudent.targets.folder import file_sum
from dualstudent.targets.module import CHUNK, Output, simplex
from dualstudent.targets.onnx_file import (
    Answers,
    Images,
    Layout,
    Port,
    answer_output,
    check_layout,
    image_input,
    other_files,
)


class OnnxTarget:
    """A classifier in an ONNX file: images in the bounds of its spec in, rows on the simplex out.

    What the file does not say comes from the options. A uint8 model takes 256 levels of the bounds,
    [0, 1] by default, as its 0 … 255. `files` holds the SHA-256 of the model and of the files of
    weights beside it. Raises UserError naming the option that is wanting.
    """

    def __init__(
        self,
        path: Path,
        *,
        shape: tuple[int, int, int] | None = None,
        classes: int | Literal["unknown"] | None = None,
        bounds: tuple[float, float] | None = None,
        levels: int | None = None,
        output: Output = "probabilities",
        output_name: str | None = None,
        layout: Layout = "auto",
    ) -> None:
        if not path.is_file():
            raise UserError(f"no file {path}: give onnx:FILE")
        self.path = path
        made, self.files = _look(path)
        self._threads, self._session = 0, None
        session = self._running()
        inputs = [Port.of(port) for port in session.get_inputs()]
        self.images: Images = image_input(inputs, shape, check_layout(layout), path)
        outputs = [Port.of(port) for port in session.get_outputs()]
        self.answers: Answers = answer_output(outputs, output_name, output, path)
        self.output = self.answers.output
        if self.output == "logits" and made.get(self.answers.name) == "Softmax":
            raise UserError(f"{path} ends in a softmax, so it gives probabilities: leave --output logits out")
        if self.images.dtype == "uint8":
            if levels not in (None, 256):
                raise UserError(f"--levels {levels}: {path} takes bytes, which have 256")
            levels = 256
        access = Access.LABEL if self.output == "labels" else Access.PROBS
        known = _classes(classes, self.answers, path)
        half = self.images.dtype == "float16"
        self.spec = Spec(self.images.shape, known, bounds or (0.0, 1.0), access, levels, half=half)

    def __call__(self, x: Float[Tensor, "b c h w"], /) -> Float[Tensor, "rows k"]:
        """Return rows on the simplex, as many as the model gives: the oracle counts and verifies them."""
        answer = torch.from_numpy(answered(self._ask, x))
        if self.answers.single and answer.ndim == 2 and answer.shape[1] == 1:
            first = torch.zeros_like(answer) if self.output == "logits" else 1 - answer
            answer = torch.cat([first, answer], 1)
        return simplex(answer, self.output, self.spec.classes).to(x.device)

    def _ask(self, x: Tensor) -> np.ndarray:
        size = self.images.batch or CHUNK
        session = self._running()
        parts = []
        for part in torch.split(x.cpu(), size):
            fed = self._fed(part)
            if self.images.batch is not None and len(part) < size:  # what fills the batch is not looked at
                fed = np.concatenate([fed, np.repeat(fed[-1:], size - len(part), 0)])
            [answer] = session.run([self.answers.name], {self.images.name: fed})
            parts.append(_plain(np.asarray(answer), len(fed), self.output)[: len(part)])
        return np.concatenate(parts)

    def _fed(self, x: Tensor) -> np.ndarray:
        """Return images as the model takes them."""
        if self.images.dtype == "uint8":
            low, high = self.spec.bounds
            x = ((x - low) * (255 / (high - low))).round().clamp(0, 255)
        array = x.numpy()
        array = array.transpose(0, 2, 3, 1) if self.images.last else array
        return np.ascontiguousarray(array.astype(self.images.dtype)).reshape(-1, *self.images.inner)

    def _running(self) -> Any:
        """Return the session with as many threads as torch has now."""
        threads = torch.get_num_threads()
        if self._session is None or threads != self._threads:
            self._session, self._threads = _session(self.path, threads), threads
        return self._session


def _look(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return what operation makes each value, and the SHA-256 of each file of a model. Raises UserError."""
    try:
        import onnx
    except ImportError as error:
        raise UserError("ONNX targets need: pip install 'dualstudent[onnx]'") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
        made = {name: node.op_type for node in model.graph.node for name in node.output}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own, and whatever a torn file leads to
        raise UserError(f"{path} is no ONNX model: {_reason(error)}") from error
    if not model.graph.output:
        raise UserError(f"{path} is no ONNX model: it has no outputs")
    files = [path, *other_files(model, path)]
    folder = path.parent
    names = [path.name, *(str(file.relative_to(folder.resolve())) for file in files[1:])]
    return made, {name: file_sum(file) for name, file in zip(names, files, strict=True)}


def _session(path: Path, threads: int) -> Any:
    """Return a session on the CPU that does the same in every run. Raises UserError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX targets need: pip install 'dualstudent[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what is wrong comes as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch wants the cores too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"onnxruntime cannot open {path}: {_reason(error)}") from error


def _plain(answer: np.ndarray, images: int, output: Output) -> np.ndarray:
    """Return answers as float32 or whole numbers, without axes of one value behind the classes."""
    while answer.ndim > 2 and answer.shape[-1] == 1:
        answer = answer[..., 0]
    if output == "labels" and answer.shape == (images, 1) and answer.dtype.kind in "iu":
        answer = answer[:, 0]
    with np.errstate(over="ignore"):  # infinite then, which is refused
        return answer.astype(np.float32 if answer.dtype.kind == "f" else np.int64)


def _classes(given: int | Literal["unknown"] | None, answers: Answers, path: Path) -> int | None:
    said = answers.classes
    if given is None and said is None:
        what = f"its output '{answers.name}' has" if answers.output == "labels" else "it has"
        hint = f" ({answers.beside})" if answers.beside else ""
        raise UserError(
            f"{path} does not say how many classes {what}: give --classes K{hint}, or --classes unknown"
        )
    if given == "unknown":
        return None
    if given is not None and said is not None and given != said:
        raise UserError(f"--classes {given}: {path} has {said}")
    return said if given is None else given


def _reason(error: Exception) -> str:
    """Return the first line of what the runtime says, without the marks before it."""
    lines = str(error).splitlines()
    return re.sub(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0]) if lines else type(error).__name__
