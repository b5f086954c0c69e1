"""Values of a type that nobody expects end in one line of the target's, never in a fault of this program."""

import json
from typing import Any

import pytest
import torch

import dualstudent as ds
from dualstudent.errors import TargetError, UserError
from dualstudent.targets import ServiceOptions, TargetOptions, open_target
from dualstudent.targets.inference import InferenceService
from rough_service import MODEL, rough, said


def opened(url: str, **options: Any) -> ds.Target:
    return open_target(url, TargetOptions(service=ServiceOptions(retries=0, timeout=5.0, **options))).target


def output(**changes: Any) -> dict[str, Any]:
    data = [0.25] * 16
    return {"outputs": [{"name": "output", "datatype": "FP32", "shape": [4, 4], "data": data} | changes]}


ODD: list[tuple[Any, str]] = [
    (output(shape=[True]), "no shape"),
    (output(shape=[1.0]), "no shape"),
    (output(shape=[1] * 200, data=[1.0]), "no shape"),
    (output(shape={}), "no shape"),
    (output(datatype=[1]), "datatype"),
    (output(datatype={}), "datatype"),
    (output(datatype=None), "datatype"),
    (output(data="x"), "no numbers"),
    (output(data=[{}] * 16), "no numbers"),
    (output(data=[True, False, False, False] * 4), "no numbers"),
    (output(data=[1e300, 0, 0, 0] * 4), "NaN or infinite"),
    (output(parameters={"binary_data_size": True}), "bytes"),
    (output(name=["output"]), "no output 'output'"),
    ({"model_version": {"a": 1}, **output()}, "the model changed"),
    ({"id": {}, **output()}, "another request"),
]


def test_answers() -> None:
    answers = iter(ODD)
    with rough(lambda connection: connection.sendall(said(next(answers)[0]))) as url:
        target = opened(url)
        for _, words in ODD:  # numpy's warnings are errors here, and would be other words
            with pytest.raises(TargetError, match=words):
                target(torch.rand(4, 1, 8, 8))


def test_what_nobody_has_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise LookupError("an\nodd one")

    monkeypatch.setattr(InferenceService, "decode", fails)
    with rough(lambda connection: connection.sendall(said(output()))) as url:
        target = opened(url)
        with pytest.raises(TargetError, match=r"cannot be read \(LookupError: an odd one\)"):
            target(torch.rand(4, 1, 8, 8))


def model(**changes: Any) -> dict[str, Any]:
    return {**MODEL, "inputs": [MODEL["inputs"][0] | changes]}


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (json.dumps(model(shape=["F"])).replace('"F"', "1e999").encode(), "without name, datatype and shape"),
        (model(shape=[True, 1, 8, 8]), "without name, datatype and shape"),
        (model(shape=[-1, 1, 8.5, 8]), "without name, datatype and shape"),
        (model(shape=[-1] * 9), "without name, datatype and shape"),
        (model(shape="-1188"), "without name, datatype and shape"),
        (model(shape=[-1, 1, 8, 1 << 70]), "without name, datatype and shape"),
        (model(datatype=["FP32"]), "without name, datatype and shape"),
        (model(shape=[-1, 3, 30000, 30000]), "2,700,000,000 values"),
        (
            {**MODEL, "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 1 << 29]}]},
            "536,870,912 values an image",
        ),
        ({**MODEL, "versions": {"a": []}, "inputs": 3}, "0 inputs"),
    ],
)
def test_metadata(about: Any, words: str) -> None:
    with rough(lambda connection: None, about) as url, pytest.raises(UserError, match=words):
        opened(url)


def test_sizes_that_a_server_writes_as_texts() -> None:
    with rough(
        lambda connection: connection.sendall(said(output())), model(shape=["-1", "1", "8", "8"])
    ) as url:
        assert opened(url)(torch.rand(4, 1, 8, 8)).tolist() == [[0.25] * 4] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": float("inf")}, "--rate inf: more than 0, and finite"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"timeout": float("inf")}, "--timeout inf"),
        ({"pause": float("inf")}, "--pause inf: 0 to 3,600"),
        ({"pause": float("nan")}, "--pause nan"),
        ({"retries": 10**6}, "--retries 1000000: 0 to 1,000"),
        ({"concurrency": 10**6}, "--concurrency 1000000: 1 to 256"),
        ({"request_batch": 10**9}, "--request-batch 1000000000: 1 to 65,536"),
    ],
)
def test_options_out_of_all_bounds(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ServiceOptions(**options)
