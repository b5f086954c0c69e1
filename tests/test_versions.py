"""A run is answered by one version of a model, in all its sessions, whoever tells the version and where."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dualstudent as ds
from dualstudent.errors import Stopped, TargetError, UserError
from dualstudent.targets import Opened, ServiceOptions, TargetOptions, open_target
from fault_server import Faulty

METHOD = ds.DualStudent(batch=16, width=8, noise_size=16)
BARE: dict[str, Any] = {"versions": []}  # metadata that tell no version


def answering(version: str) -> dict[str, Any]:
    return {"*": {"version": version}}


def opened(server: Faulty) -> Opened:
    return open_target(server.url, TargetOptions(service=ServiceOptions(pause=0.01, request_batch=16)))


def begun(server: Faulty, out: Path, **more: Any) -> None:
    """Extract until the third look, and stop there."""
    looks = iter([False, False, True, True])
    with pytest.raises(Stopped):
        ds.extract(
            METHOD, opened(server), queries=320, out=out, stop=lambda: next(looks, True), points=1, **more
        )


@pytest.mark.parametrize("journal", [True, False])
def test_the_first_answers_version_is_known_to_later_sessions(tmp_path: Path, journal: bool) -> None:
    with Faulty() as server:
        server.change(answering("7"), metadata=BARE)
        begun(server, tmp_path / "run", probe_every=0, journal=journal)
        assert json.loads((tmp_path / "run" / "service.json").read_text())["version"] == "7"
        server.change(answering("8"), metadata=BARE)
        with pytest.raises(TargetError, match="version 8 answers, the run began with 7"):
            ds.resume(tmp_path / "run", opened(server))
        server.change(answering("7"), metadata=BARE)
        assert ds.resume(tmp_path / "run", opened(server)).result["complete"]


def test_a_file_that_names_no_version(tmp_path: Path) -> None:
    with Faulty() as server:
        server.change(answering("7"), metadata=BARE)
        begun(server, tmp_path / "run", probe_every=0)
        (tmp_path / "run" / "service.json").write_text('{"schema_version": 1, "version": [7]}')
        with pytest.raises(UserError, match="names no version"):
            ds.resume(tmp_path / "run", opened(server))


def test_a_template_tells_where_the_version_is(tmp_path: Path) -> None:
    """The version of a JSON service is in its answers only."""
    from rough_service import rough, said

    version = [1]
    answer = lambda connection: connection.sendall(said({"v": version[0], "p": [[0.25] * 4] * 4}))  # noqa: E731
    template = tmp_path / "t.toml"
    template.write_text('body={x="$images"}\nanswers="p"\nversion="v"\nshape=[1,8,8]\n')
    options = TargetOptions(classes=4, service=ServiceOptions(template=str(template)))
    kept: list[str] = []
    with rough(answer) as url:
        place = url.replace("http:", "http+json:") + "/infer"
        first: Any = open_target(place, options).target
        first.recall(None, kept.append)
        first(torch.rand(4, 1, 8, 8))
        first(torch.rand(4, 1, 8, 8))
        assert kept == ["1"], "told once"
        version[0] = 2
        again: Any = open_target(place, options).target
        again.recall(kept[0], kept.append)
        for target in (first, again):
            with pytest.raises(TargetError, match="version 2 answers, the run began with 1"):
                target(torch.rand(4, 1, 8, 8))
        with pytest.raises(TargetError, match="version 1 answers, the run began with 3"):
            first.recall("3", kept.append)


def test_a_long_version_is_kept_as_its_digest(tmp_path: Path) -> None:
    with Faulty() as server:
        server.change(answering("long" * 100_000), metadata=BARE)
        target: Any = opened(server).target
        target(torch.rand(4, 1, 8, 8))
        target(torch.rand(4, 1, 8, 8))
        assert len(target.version) == 64


def test_probes_read_the_metadata_again(tmp_path: Path) -> None:
    """The answers stay what they were, and only the metadata tell that another model answers."""
    with Faulty(
        faults={"9": {"metadata": {"platform": "other", "outputs": [], "versions": ["1"]}}}
    ) as server:
        with pytest.raises(TargetError, match=r"changed between query .*: its metadata are others") as caught:
            ds.extract(METHOD, opened(server), queries=320, out=tmp_path / "run", probe_every=96)
        assert "dualstudent resume" in str(caught.value)
        server.change({"9": {"metadata": {"versions": ["1", "2"]}}})
        with pytest.raises(TargetError, match="has versions 1, 2"):
            ds.extract(METHOD, opened(server), queries=320, out=tmp_path / "other", probe_every=96)
