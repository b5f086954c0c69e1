"""Services that are broken, or mean: each ends in one clear error or a retry, never in training data."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.errors import TargetError, UserError
from dualstudent.ledger import Account, Shown
from dualstudent.targets import ServiceOptions, TargetOptions, open_target
from dualstudent.targets.strict import message, read_json, retry_after
from dualstudent.targets.web import open_service
from fault_server import Faulty

LOGIN = {"body": "<!DOCTYPE html><title>Sign\x07 in</title>" + "x" * 5000, "type": "text/html; charset=utf-8"}


def moved(status: int, place: str) -> dict[str, Any]:
    return {"status": status, "headers": {"Location": place}}


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    with Faulty() as made:
        yield made


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def opened(server: Faulty, **options: Any) -> ds.Target:
    mine = {name: options.pop(name) for name in list(options) if name in vars(TargetOptions())}
    quick: dict[str, Any] = {
        "pause": 0.01,
        "timeout": 2.0,
        "concurrency": 1,
        "request_batch": 4,
        "retries": 2,
    }
    return open_target(server.url, TargetOptions(service=ServiceOptions(**quick | options), **mine)).target


# what the second request is answered, what the error says, and how requests are sent
ANSWERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "one class more": ({"classes": 1}, "returned 5 classes, its spec says 4", {}),
    "one class more, JSON": ({"classes": 1}, "returned 5 classes", {"binary": False}),
    "another shape": ({"shape": [4, 2, 2]}, r"shape \[4, 2, 2\]", {}),
    "a shape that does not hold the data": ({"shape": [4, 5]}, "16 values for shape", {}),
    "a shape of strings": ({"shape": ["4", "4"]}, "has no shape", {}),
    "a huge shape": ({"shape": [1 << 40, 4]}, "has no shape", {}),
    "a negative shape": ({"shape": [-4, -4]}, "has no shape", {}),
    "integers": ({"datatype": "INT32"}, "datatype INT32", {}),
    "strings": ({"datatype": "BYTES"}, "datatype BYTES", {}),
    "words for numbers": ({"values": "text"}, "no numbers", {}),
    "NaN": ({"values": "nan"}, "NaN", {}),
    "NaN in JSON": ({"values": "nan"}, "NaN", {"binary": False}),
    "negative": ({"values": "negative"}, "no probabilities", {}),
    "unnormalised": ({"values": "unnormalised"}, "no probabilities", {}),
    "a row more": ({"rows": 1}, r"shape \[5, 4\] for 4 images", {}),
    "a row less": ({"rows": -1}, r"shape \[3, 4\] for 4 images", {}),
    "another version": ({"version": "2"}, "the model changed: version 2 answers", {}),
    "another request's": ({"id": "77"}, "belongs to another request", {}),
    "another output": ({"name": "other"}, "no output 'output', but other", {}),
    "keys twice": ({"twice": True}, "the key 'outputs' twice", {"binary": False}),
    "deep nesting": ({"deep": True}, "nested too deeply|more than", {"binary": False}),
    "a login page": (LOGIN, r"HTML page \('Sign in'\)", {}),
    "half of a JSON": ({"body": '{"outputs": [{"na'}, "is not JSON", {}),
    "no JSON at all": ({"body": "\x00\x01"}, "is not JSON", {}),
    "a JSON list": ({"body": "[1, 2]"}, "no JSON object but a list", {}),
    "no outputs": ({"body": '{"model_name": "toy"}'}, "no list of outputs", {}),
    "outputs of nothing": ({"body": '{"outputs": [null, 3]}'}, "no list of outputs", {}),
    "a number of digits": ({"body": '{"outputs": ' + "9" * 5000 + "}"}, "is not JSON", {}),
    "a header that lies": (
        {"body": "{}", "headers": {"Inference-Header-Content-Length": "999"}},
        "999 of 2 bytes",
        {},
    ),
    "a compressed bomb": ({"bomb": 64}, "more than [0-9,]+ bytes", {}),
    "a huge one": ({"huge": 8}, "more than [0-9,]+ bytes", {}),
    "not gzip": ({"body": "plain", "headers": {"Content-Encoding": "gzip"}}, "cannot be unpacked", {}),
    "brotli": ({"body": "plain", "headers": {"Content-Encoding": "br"}}, "packed as 'br'", {}),
    "another host": (moved(307, "http://127.0.0.2:1/v2"), "to http://127.0.0.2:1, which is not followed", {}),
    "another scheme": (
        {"status": 308, "headers": {"Location": "https://127.0.0.1/"}},
        "redirects to https",
        {},
    ),
    "a redirect that forgets the images": (
        {"status": 302, "headers": {"Location": "/login"}},
        "redirects",
        {},
    ),
    "refused": (
        {"status": 403, "body": '{"error": "quota\\n\\u001b[31m spent"}'},
        "status 403: quota .31m sp",
        {},
    ),
    "gone": ({"status": 404, "body": "<html>not here"}, "status 404: an HTML page", {}),
    "broken inside": ({"status": 500, "body": "x" * 100_000}, "status 500: x+…", {}),
    "never there": ({"status": 503}, "", {}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_one_clear_error_and_no_training_data(server: Faulty, name: str) -> None:
    fault, words, options = ANSWERS[name]
    server.change()
    target = opened(server, **options)
    server.change({"2": fault})
    account, shown = Account("attack"), Shown()
    oracle = ds.Oracle(target, account, shown)
    if name == "never there":  # once: asked again
        assert torch.equal(oracle(images()), torch.from_numpy(server.model(images().numpy())))
        return
    with pytest.raises(TargetError, match=words) as caught:
        oracle(images())
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 500
    assert account.spent == 12, "charged before it was asked"
    assert shown.unique == 0, "nothing was shown to a student"


def test_labels_outside_the_known_set() -> None:
    with Faulty(model={"output": "labels"}) as server:
        for label in (4, -1, 1 << 40):
            server.change()
            target = opened(server, output="labels", classes=4)
            server.change({"2": {"values": "label", "label": label}})
            with pytest.raises(TargetError, match="label"):
                target(images())
        server.change()
        free = opened(server, output="labels", classes="unknown")
        expected = torch.from_numpy(server.model(images().numpy()))
        assert torch.equal(ds.Oracle(free, Account("attack"))(images()).argmax(1), expected)
        with pytest.raises(UserError, match="--output labels"):
            opened(server, classes=4)


def test_a_model_that_changes_between_two_sessions(server: Faulty) -> None:
    server.change()
    before = open_target(server.url)
    server.change(metadata={"versions": ["2"]})
    assert open_target(server.url).sha256 != before.sha256
    server.change(metadata={"versions": ["1", "2"]})
    with pytest.raises(UserError, match=r"versions 1, 2: say which, …/toy/versions/2"):
        open_target(server.url)
    with pytest.raises(UserError, match="versions 1, 2, not 3"):
        open_target(server.url + "/versions/3")
    with pytest.raises(TargetError, match="version 1 answers, the run began with 2"):
        open_target(server.url + "/versions/2").target(images())


PAGES: dict[str, tuple[dict[str, Any], str]] = {
    "not ready": ({"/v2/health/ready": {"status": 400, "body": "loading"}}, "status 400: loading"),
    "a login page": ({"/v2": LOGIN}, "HTML page"),
    "metadata of nothing": ({"/v2/models/toy": {"body": "null"}}, "no JSON object but a NoneType"),
    "no tensors": ({"/v2/models/toy": {"body": "{}"}}, r"the model has 0 inputs \(\)"),
    "tensors of nothing": (
        {"/v2/models/toy": {"body": '{"inputs": [3]}'}},
        "without name, datatype and shape",
    ),
    "redirected": ({"/v2/models/toy": {"status": 301, "headers": {"Location": "http://[::1"}}}, "redirects"),
    "round and round": ({"/v2": {"status": 301, "headers": {"Location": "/v2"}}}, "redirects"),
    "no model": (
        {"/v2/models/toy/ready": {"status": 404, "body": '{"error": "unknown"}'}},
        "status 404: unknown",
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_metadata_that_are_none(server: Faulty, name: str) -> None:
    pages, words = PAGES[name]
    server.change(pages=pages)
    with pytest.raises(UserError, match=words) as caught:
        opened(server)
    assert str(caught.value).isprintable()


def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


IMAGE, ANSWER = tensor("a", "FP32", -1, 1, 8, 8), tensor("b", "FP32", -1, 4)
MODELS: list[tuple[list[Any], list[Any], dict[str, Any], str]] = [
    ([IMAGE, IMAGE | {"name": "c"}], [ANSWER], {}, "2 inputs .*--input-name"),
    ([IMAGE], [ANSWER, ANSWER | {"name": "c"}], {}, "2 outputs .*--output-name"),
    ([IMAGE], [ANSWER], {"output_name": "c"}, "--output-name c: the model has b FP32"),
    ([IMAGE], [ANSWER], {"input_name": "c"}, "--input-name c: the model has a FP32"),
    ([tensor("a", "BYTES", -1)], [ANSWER], {}, "takes BYTES"),
    ([tensor("a", "FP32", -1, 64)], [ANSWER], {}, "takes no images"),
    ([tensor("a", "FP32", -1, 3, 8, 3)], [ANSWER], {}, "--layout"),
    ([tensor("a", "FP32", -1, -1, -1, 3)], [ANSWER], {}, "any size .*--shape"),
    ([IMAGE], [ANSWER], {"shape": (1, 9, 9)}, "--shape 1 9 9: the model takes"),
    ([IMAGE], [tensor("b", "INT64", -1)], {}, "--output labels"),
    ([IMAGE], [tensor("b", "FP32", -1, -1)], {}, "give --classes K"),
    ([IMAGE], [ANSWER], {"classes": 5}, "--classes 5: the model's metadata say 4"),
    ([tensor("a", "UINT8", -1, 1, 8, 8)], [ANSWER], {"levels": 16}, "--levels 16"),
    ([IMAGE], [ANSWER], {"space": "normalised"}, "--space"),
]


@pytest.mark.parametrize(("inputs", "outputs", "options", "words"), MODELS)
def test_what_metadata_leave_open(
    server: Faulty, inputs: list[Any], outputs: list[Any], options: dict[str, Any], words: str
) -> None:
    server.change(metadata={"inputs": inputs, "outputs": outputs})
    with pytest.raises(UserError, match=words):
        opened(server, **options)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:1/v2/models/toy", "does not answer .*refused"),
        ("http://no-such-host.invalid/v2/models/toy", "does not answer"),
        ("http://127.0.0.1/predict", "write http://host/v2/models/NAME"),
        ("http://127.0.0.1/v2/models/toy?a=1", "write http://host/v2/models/NAME"),
        ("http:///v2/models/toy", "names no host"),
        ("http://127.0.0.1:port/v2/models/toy", "none"),
        ("http://me:secret@127.0.0.1/v2/models/toy", "--headers-file"),
        ("http://127.0.0.1/v2/models/toy?api_key=abc", "--token-env"),
    ],
)
def test_addresses_that_are_none(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_target(address)
    assert "secret" not in str(caught.value).replace("secrets", "")
    assert "abc" not in str(caught.value)


def test_a_service_that_repeats_the_token() -> None:
    token = "a-token-nobody-may-see-4711"
    with Faulty() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", token)
        server.change(pages={"/v2": {"body": json.dumps({"name": f"for {token}", "version": "1"})}})
        found = open_target(server.url, TargetOptions(service=ServiceOptions(token_env="SOME_TOKEN")))
        assert found.service is not None
        assert found.service["server"] == "for … 1"
        for fault in (
            {"status": 400, "body": json.dumps({"error": f"no such user: {token}"})},
            {"body": "[" + f'"{token}"' + "]"},
            {"body": json.dumps({"outputs": [{"name": token}]})},
            {"version": token},
        ):
            server.change({"*": fault})
            with pytest.raises(TargetError) as caught:
                found.target(images())
            assert token not in str(caught.value)
            assert token not in repr(found)


class TestSecrets:
    @pytest.mark.parametrize(
        ("options", "content", "words"),
        [
            ({"token_env": "NOT_THERE"}, "", "no such environment variable"),
            ({"token_file": "f"}, "\n", "holds no token"),
            ({"token_file": "f"}, "two\nlines", "no header can hold"),
            ({"token_file": "g"}, "", "cannot read .*No such file"),
            ({"headers_file": "f"}, "no colon", "line 1 is no header"),
            ({"headers_file": "f"}, "# fine\nHost: elsewhere", "line 2: Host is not yours"),
            ({"headers_file": "f"}, "X: é", "no header can hold"),
            ({"ca_file": "f"}, "nothing", "no certificate"),
            ({"token_file": "f", "token_env": "E"}, "x", "give one of them"),
        ],
    )
    def test_that_cannot_be_sent(
        self,
        options: dict[str, str],
        content: str,
        words: str,
        tmp_path: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "f").write_text(content)
        with pytest.raises(UserError, match=words):
            open_service("http://127.0.0.1:1/v2/models/toy", ServiceOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (None, 0, 0),
        ("3", 3, 3),
        (" 7 ", 7, 7),
        ("-5", 0, 0),
        ("soon", 0, 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 1e9, 1e10),
        ("9" * 400, 1e9, 1e9),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(value: str | None, low: float, high: float) -> None:
    assert low <= retry_after(value) <= high


def test_words_of_strangers_are_cleaned() -> None:
    assert message(b'{"error": {"message": "no\\u0007\\nway"}}') == "no way"
    assert message(b"\xff\xfe") == "��"
    assert message(b'{"detail": [1, 2]}') == "[1, 2]"
    for body in (b"[" * 100_000, b'{"a": ' * 100_000):
        with pytest.raises(TargetError, match=r"nested too deeply|is not JSON"):
            read_json(body, "it")
        assert message(body)
