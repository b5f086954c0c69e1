"""What a step computes between two queries, on a GPU captured once and then replayed as a CUDA graph.

A step launches thousands of kernels; replayed, they cost the processor nothing. Captured programs
find weights, optimiser states and learning rates where they were: nothing may move them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Program = Callable[..., tuple[Tensor, ...]]
WARM = 3  # calls as they are: the compiler, the choice of algorithms and the optimisers come to rest
_graphs: "Graphs | None" = None


class Graphs:
    """The captured programs of one run, by name and by the shapes of their inputs."""

    def __init__(self, device: str | torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.programs: dict[object, _Captured] = {}

    def __call__(self, name: str, program: Program, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        key = name, tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if key not in self.programs:
            self.programs[key] = _Captured()
        captured = self.programs[key]
        captured.calls += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        if captured.calls <= WARM:
            with torch.cuda.stream(self.stream):
                outputs = program(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if captured.calls == WARM + 1:
            captured.capture(program, inputs, self.stream)
        return captured.replay(inputs)


class _Captured:
    """One program: called as it is a few times, then captured."""

    def __init__(self) -> None:
        self.calls, self.graph = 0, torch.cuda.CUDAGraph()
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def capture(self, program: Program, inputs: tuple[Tensor, ...], stream: torch.cuda.Stream) -> None:
        """Record the program, which computes nothing yet."""
        self.inputs = tuple(x.clone() for x in inputs)
        with torch.cuda.graph(self.graph, stream=stream):
            self.outputs = program(*self.inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute; what it returns is the caller's own."""
        for mine, theirs in zip(self.inputs, inputs, strict=True):
            mine.copy_(theirs)
        self.graph.replay()
        return tuple(x.clone() for x in self.outputs)


def known(modules: Iterable[nn.Module]) -> bool:
    """Return whether all networks are torch's or ours: a user's may look at a value, which ends a capture."""
    names = {type(part).__module__.partition(".")[0] for module in modules for part in module.modules()}
    return names <= {"torch", __name__.partition(".")[0]}


class Programs:
    """How the networks of a run are called: as they are, or compiled and, with `graphs`, captured."""

    def __init__(self, compiled: bool, graphs: Graphs | None = None) -> None:
        self.compiled, self.graphs = compiled, graphs

    @contextmanager
    def running(self, on: bool) -> Iterator[None]:
        """Call compiled networks as programs, or, where not `on`, as they are."""
        global _graphs
        if not self.compiled:
            yield
            return
        with torch.compiler.set_stance("default" if on else "force_eager"):
            before, _graphs = _graphs, self.graphs if on else None
            try:
                yield
            finally:
                _graphs = before


def call(name: str, program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what a program makes of its inputs.

    It may change modules and optimisers of the state in place, and nothing else; it must not look
    at a value, and what it returns must not have a graph.
    """
    return program(*inputs) if _graphs is None else _graphs(name, program, inputs)
