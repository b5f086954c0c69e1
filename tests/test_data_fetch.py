"""Downloads: right sums land, wrong ones leave nothing, a second call asks nobody."""

import gzip
import hashlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dualstudent.data import DATA_SETS, DOWNLOADS, Download, fetch, load_data
from dualstudent.errors import UserError


@dataclass
class Server:
    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    served = Server(tmp_path / "served")
    served.folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            served.asked.append(self.path)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served.folder)))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    served.url = f"http://127.0.0.1:{http.server_port}/"
    yield served
    http.shutdown()
    http.server_close()
    thread.join()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, *bases: str) -> None:
    """Serve a small MNIST and put its sums into the table."""
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        image = bytes((0, 0, 8, 3)) + np.array([3, 28, 28], ">u4").tobytes() + rng.bytes(3 * 28 * 28)
        label = bytes((0, 0, 8, 1)) + np.array([3], ">u4").tobytes() + bytes((7, 0, 9))
        (server.folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(image))
        (server.folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(label))
    files = [
        Download(path.name, bases or (server.url,), hashlib.md5(path.read_bytes()).hexdigest(), "this test")
        for path in sorted(server.folder.iterdir())
    ]
    monkeypatch.setitem(DOWNLOADS, "mnist", tuple(files))


def test_right_sums_land_and_load(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    place = fetch("mnist", tmp_path / "data")
    assert place == tmp_path / "data" / "mnist"
    assert sorted(path.name for path in place.iterdir()) == sorted(p.name for p in server.folder.iterdir())
    for split in ("train", "test"):
        assert load_data("mnist", split, folder=tmp_path / "data").labels.tolist() == [7, 0, 9]


def test_a_second_call_downloads_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch)
    place = fetch("mnist", tmp_path)
    assert len(server.asked) == 4
    assert fetch("mnist", tmp_path) == place
    assert len(server.asked) == 4
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged since")
    fetch("mnist", tmp_path)
    assert server.asked[4:] == ["/t10k-labels-idx1-ubyte.gz"]
    assert len(load_data("mnist", folder=tmp_path)) == 3


def test_wrong_sum_leaves_nothing(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    for path in server.folder.iterdir():
        path.write_bytes(b"something else")
    with pytest.raises(
        UserError, match=r"cannot download http://127.*\.gz: MD5 hash .* does not match"
    ) as caught:
        fetch("mnist", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").rglob("*")) == []


def test_missing_file_and_missing_server(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch)
    (server.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="404"):
        fetch("mnist", tmp_path)
    assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["t10k-images-idx3-ubyte.gz"]
    with pytest.raises(
        UserError, match=r"cannot download http://127\.0\.0\.1:9/.*; try again, or put the file"
    ):
        fetch("mnist", tmp_path / "other", base_urls={"mnist": "http://127.0.0.1:9"})


def test_addresses_are_tried_in_turn_and_a_mirror_replaces_them(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch, "http://127.0.0.1:9/", server.url)
    fetch("mnist", tmp_path / "first")
    assert len(server.asked) == 4
    publish(server, monkeypatch, "http://127.0.0.1:9/")
    fetch("mnist", tmp_path / "second", base_urls={"mnist": server.url.rstrip("/")})
    assert len(load_data("mnist", folder=tmp_path / "second")) == 3


def test_folder_that_cannot_be_written(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot download"):
        fetch("mnist", tmp_path / "file")


def test_unknown_and_built_in_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        fetch("cifar11", tmp_path)
    with pytest.raises(UserError, match="digits comes with scikit-learn"):
        fetch("digits", tmp_path)


def test_without_pooch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match=r"pip install dualstudent\[data\]"):
        fetch("mnist", tmp_path)


def test_the_table_is_complete() -> None:
    assert set(DOWNLOADS) == set(DATA_SETS) - {"digits"}
    for item in (item for files in DOWNLOADS.values() for item in files):
        assert len(bytes.fromhex(item.md5)) == 16
        assert item.bases
        assert all(base.startswith("http") and base.endswith("/") for base in item.bases)
        assert item.source
