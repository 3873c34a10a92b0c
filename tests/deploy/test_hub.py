"""hf://USER/NAME: by the hub's own client, from a stand-in of its HTTP API on this machine, and from its cache."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from lchp.cli import main
from lchp.deploy import hub
from lchp.deploy.model_folder import CARD, FILES_OF_MODEL
from lchp.deploy.predictor import Predictor
from lchp.deploy.publish import publish
from lchp.errors import ConfigError, LchpError, RunError

client = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """A hub with one model, `user/birds`, whose only commit is `main` and `v1`. asked: what was asked for."""

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.model, self.asked = model, list[str]()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if path in (f"/api/models/user/birds/revision/{name}" for name in ("main", "v1")):
            self.send({"id": "user/birds", "sha": COMMIT, "siblings": []})
        elif path == f"/api/models/user/birds/tree/{COMMIT}":
            files = sorted(self.server.model.iterdir())
            self.send([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)} for f in files])
        elif path.startswith(f"/user/birds/resolve/{COMMIT}/"):
            self.file(self.server.model / path.rpartition("/")[2])
        elif path.startswith("/api/models/user/secret"):
            self.refuse(403, "GatedRepo")
        elif path.startswith("/api/models/user/birds/revision/"):
            self.refuse(404, "RevisionNotFound")
        elif path.startswith("/api/models/user/broken"):
            self.refuse(500, "")
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def send(self, value: Any) -> None:
        self.content(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def file(self, path: Path) -> None:
        self.content(path.read_bytes(), {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT})

    def content(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def model(squares_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "birds"
    publish(squares_run, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, for all one knows")
    return folder


@pytest.fixture
def served(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """As HF_ENDPOINT and HF_HUB_CACHE make it, which the client reads when it is imported."""
    server = Hub(model)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client.close_session()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    client.close_session()


def test_a_model_of_the_hub_answers_as_the_folder(
    served: Hub, model: Path, squares_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And then without the hub, from the cache."""
    expected = list(Predictor.from_folder(model, device="cpu").predict(squares_root))
    assert list(Predictor.from_folder("hf://user/birds", device="cpu").predict(squares_root)) == expected
    assert list(Predictor.from_folder("hf://user/birds@v1", device="cpu").predict(squares_root)) == expected
    fetched = {path.rpartition("/")[2] for path in served.asked if "/resolve/" in path}
    assert fetched == {path.name for path in model.iterdir()} & set(FILES_OF_MODEL)
    assert not fetched & {CARD, "pytorch_model.bin"}
    count = len(served.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    client.close_session()
    assert main(["predict", str(squares_root), "--model", "hf://user/birds", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(expected)
    assert len(served.asked) == count


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("hf://user/none", "hf://user/none: the hub has no such model, or one that needs a login (hf auth login)"),
        ("hf://user/birds@v2", "hf://user/birds@v2: the model has no revision v2"),
        ("hf://user/secret", "hf://user/secret: its page asks for consent first; give it there, and log in"),
        ("hf://user/broken", "hf://user/broken: is not whole in the cache, and the hub was not reached ("),
    ],
)
@pytest.mark.usefixtures("served")
def test_what_the_hub_does_not_give_is_one_line(place: str, said: str) -> None:
    with pytest.raises(RunError) as error:
        hub.fetch(place)
    assert str(error.value).startswith(said)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("place", ["hf://", "hf://birds", "hf://a/b/c", "hf://a/b@", "hf://a/../b", "hf://-a/b--c"])
def test_a_malformed_place_is_one_line(place: str) -> None:
    with pytest.raises(ConfigError) as error:
        hub.fetch(place)
    assert str(error.value).startswith(f"model = {place!r}: ")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("place", ["hf:a/b", "hf:/a/b", "https://huggingface.co/a/b/tree/main", "huggingface.co/a/b"])
def test_another_spelling_of_a_place_says_the_right_one(place: str) -> None:
    with pytest.raises(ConfigError, match=r"a model of the hub is named hf://a/b$"):
        Predictor.from_folder(place)


@pytest.mark.usefixtures("served")
def test_without_the_hub_or_half_fetched_the_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fetch("hf://user/birds")
    (kept,) = (tmp_path / "cache").glob("models--user--birds/snapshots/*")
    (kept / "classifier.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    client.close_session()
    for place in ("hf://user/birds", "hf://user/other"):
        with pytest.raises(RunError, match=rf"^{place}: .* the hub was not reached \(HF_HUB_OFFLINE is set\)$"):
            hub.fetch(place)


@pytest.mark.usefixtures("served")
def test_a_damaged_copy_in_the_cache_says_what_to_delete(tmp_path: Path) -> None:
    folder = hub.fetch("hf://user/birds")
    path = (folder / "localizer.safetensors").resolve()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = f"delete {tmp_path / 'cache' / 'models--user--birds'} and fetch it again"
    with pytest.raises(RunError, match=f"localizer.safetensors: its checksum differs .*; {again}$"):
        Predictor.from_folder("hf://user/birds")
    shutil.rmtree(tmp_path / "cache" / "models--user--birds")
    assert Predictor.from_folder("hf://user/birds").trained.device == torch.device("cpu")


def test_without_the_client_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(LchpError, match=r"needs huggingface_hub, an optional package: .* lchp\[hub\]$"):
        hub.fetch("hf://user/birds")
