"""Any JSON service, asked as a template says; the examples of docs/services.md run as they stand there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.cli import main
from dualstudent.errors import TargetError, UserError
from dualstudent.ledger import Account
from dualstudent.targets import Opened, ServiceOptions, TargetOptions, open_target
from dualstudent.targets.template import follow, parse_path, read_template
from dualstudent.targets.transport import Reply
from fault_server import Faulty

DOCS = (Path(__file__).parent.parent / "docs" / "services.md").read_text()
NAMES = ["class-0", "class-1", "class-2", "class-3"]
LIST: dict[str, Any] = {"body": {"instances": "$images"}, "answers": "predictions", "classes": NAMES}
LIST |= {"shape": [1, 8, 8]}


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    with Faulty() as made:
        yield made


def images(n: int = 10, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def opened(server: Faulty, template: dict[str, Any], folder: Path, **options: Any) -> Opened:
    (folder / "template.json").write_text(json.dumps(template))
    mine = {name: options.pop(name) for name in list(options) if name in vars(TargetOptions())}
    service = ServiceOptions(template=str(folder / "template.json"), request_batch=4, pause=0.01, **options)
    address = server.base.replace("http:", "http+json:") + "/predict"
    return open_target(address, TargetOptions(service=service, **mine))


def close(server: Faulty, answers: Tensor, x: Tensor) -> None:
    assert torch.allclose(answers, torch.from_numpy(server.model(x.numpy())), atol=1e-6)


def test_the_examples_of_the_docs(
    server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    server.change()
    templates = re.findall(r"```toml\n(# (\S+\.toml):.*?)```", DOCS, re.DOTALL)
    assert [name for _, name in templates] == ["instances.toml", "png.toml"]
    for text, name in templates:
        (tmp_path / name).write_text(text)
        [command] = re.findall(
            rf"^dualstudent (target check http\+json.* --template {name})$", DOCS, re.MULTILINE
        )
        before = server.count()["images"]
        assert main(command.replace("http+json://localhost:9000", "http+json" + server.base[4:]).split()) == 0
        assert "class" in capsys.readouterr().out
        assert server.count()["images"] == before + 8
    options = TargetOptions(service=ServiceOptions(template="instances.toml"))
    target = open_target("http+json" + server.base[4:] + "/predict", options).target
    close(server, ds.Oracle(target, Account("attack"))(images()), images())


@pytest.mark.parametrize("image", ["list", "base64 float32"])
def test_images_as_lists_and_as_floats(server: Faulty, tmp_path: Path, image: str) -> None:
    target = opened(server, LIST | {"image": image}, tmp_path).target
    close(server, target(images()), images())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6)])
def test_eight_bit_pictures_are_what_the_students_learn_from(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    with Faulty(model={"shape": shape}) as server:
        target = opened(server, LIST | {"image": "base64 png", "shape": shape}, tmp_path).target
        assert target.spec.levels == 256
        shown: list[tuple[Tensor, Tensor]] = []
        answers = ds.Oracle(target, Account("attack"), asked=shown)(images(5, shape))
        [(x, _)] = shown
        assert not torch.equal(x, images(5, shape))
        close(server, answers, x)


def test_channels_last_and_whole_numbers(tmp_path: Path) -> None:
    with Faulty(model={"shape": [3, 4, 6], "layout": "nhwc"}) as server:
        about = LIST | {"shape": [3, 4, 6], "layout": "nhwc", "range": [0, 255], "whole": True}
        (tmp_path / "whole.json").write_text(json.dumps(about))
        template = read_template(str(tmp_path / "whole.json"))
        x = images(2, (3, 4, 6))
        sent = json.loads(template.request(x.numpy(), (0.0, 1.0)))["instances"]
        assert np.array_equal(np.array(sent), np.rint(x.numpy().transpose(0, 2, 3, 1) * 255))
        assert template.levels == 256
        target = opened(server, LIST | {"shape": [3, 4, 6], "layout": "nhwc"}, tmp_path).target
        close(server, target(x), x)


def test_labels_by_name(tmp_path: Path) -> None:
    with Faulty(model={"output": "labels"}) as server:
        target = opened(server, LIST, tmp_path, output="labels").target
        assert torch.equal(target(images()).argmax(1), torch.from_numpy(server.model(images().numpy())))
        server.change({"*": {"label": "class-9"}})
        with pytest.raises(TargetError, match="label 'class-9', which is not a known class"):
            target(images())


ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"values": "nan"}, "NaN"),
    ({"values": "unnormalised"}, "no probabilities"),
    ({"rows": 1}, "5 answers for 5|[0-9] answers for [0-9] images, at 'predictions'"),
    ({"rows": -1}, "answers for [0-9] images"),
    ({"classes": 2}, "6 classes, its spec says 4"),
    ({"body": '{"predictions": 3}'}, "no list of answers for"),
    ({"body": '{"prediction": []}'}, "nothing at 'predictions': no 'predictions' but prediction"),
    ({"body": '{"predictions": [[1, 0], [1], [1], [1]]}'}, "different lengths|answers for"),
    ({"body": '{"predictions": [{"cat": 1}, {}, {}, {}]}'}, "'cat', which is not known|answers for"),
    ({"body": '{"predictions": [{"class-0": 1}, {}, {}, {}]}'}, "left out the class 'class-1'|answers for"),
]


@pytest.mark.parametrize(("fault", "words"), ANSWERS)
def test_broken_answers(server: Faulty, tmp_path: Path, fault: dict[str, Any], words: str) -> None:
    server.change({"*": fault})
    target = opened(server, LIST, tmp_path).target
    with pytest.raises(TargetError, match=words):
        ds.Oracle(target, Account("attack"))(images(12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"body": {}}, r'put "\$images" where'),
        ({"body": {"a": "$images", "b": "$image"}}, r'put "\$images" where'),
        ({"image": "jpeg"}, "unknown image 'jpeg'"),
        ({"answer": "x"}, "unknown entry 'answer': did you mean 'answers'"),
        ({"answers": "a..b"}, "is no path"),
        ({"answers": "a[*].b[*]"}, r"\[\*\] once at most"),
        ({"answers": 3}, "answers: give a text"),
        ({"item": {"b64": "image"}}, r'item: put "\$image"'),
        ({"classes": ["a", "a"]}, "a name is there twice"),
        ({"classes": "a"}, "classes: give a list"),
        ({"whole": True}, "give the range"),
        ({"name": "label"}, "name and score belong together"),
        ({"layout": "hwc"}, "nchw or nhwc"),
        ({"shape": [1, 8]}, "channels, height and width"),
        ({"decimals": -1}, "decimals"),
        ({"body": None}, r'put "\$images"'),
    ],
)
def test_templates_that_make_no_sense(
    server: Faulty, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        opened(server, LIST | change, tmp_path)


def test_templates_that_are_none(server: Faulty, tmp_path: Path) -> None:
    address = server.base.replace("http:", "http+json:") + "/predict"
    with pytest.raises(UserError, match="needs --template"):
        open_target(address)
    with pytest.raises(UserError, match="No such file"):
        read_template(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(UserError, match=r"bad\.toml"):
        read_template(str(tmp_path / "bad.toml"))
    (tmp_path / "bad.toml").write_text('body = {a = "$image"}')
    with pytest.raises(UserError, match="lacks answers"):
        read_template(str(tmp_path / "bad.toml"))
    without = {name: value for name, value in LIST.items() if name != "shape"}
    with pytest.raises(UserError, match="--shape C H W"):
        opened(server, without, tmp_path)
    with pytest.raises(UserError, match="the template says"):
        opened(server, LIST, tmp_path, classes=7)


def test_a_template_is_part_of_what_a_target_is(server: Faulty, tmp_path: Path) -> None:
    before = opened(server, LIST, tmp_path).sha256
    assert before == opened(server, LIST, tmp_path).sha256
    assert before != opened(server, LIST | {"image": "base64 png"}, tmp_path).sha256


def test_rounded_probabilities(server: Faulty, tmp_path: Path) -> None:
    """Four values, each off by half a hundredth at most: a sum of 0.98 is rounding, one of 0.8 is not."""
    target: Any = opened(server, LIST | {"decimals": 2}, tmp_path).target
    rows = [[0.33, 0.33, 0.33, 0.0], [0.24, 0.24, 0.25, 0.25], [0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]]
    reply = Reply(json.dumps({"predictions": rows}).encode(), "application/json", {})
    assert target.decode(reply, 4, 1).sum(1).tolist() == pytest.approx([1.0, 1.0, 0.8, 0.0])


def test_paths() -> None:
    value = {"a": [{"b c": {"0": 7}}]}
    assert follow(value, parse_path("a[0].b c.0", "answers"), "p") == 7
    assert follow([1, 2], parse_path("[1]", "answers"), "p") == 2
    for path in ("a[1]", "a.0", "a[0].x", "b"):
        with pytest.raises(TargetError, match="nothing at 'p'"):
            follow(value, parse_path(path, "answers"), "p")
