"""Storages behind URLs: a folder by file:// and by fsspec's local://, and buckets of moto's S3 server on 127.0.0.1,
where that can be started; and machines that share no disk."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


MOTO = os.environ.get("MOTO_SERVER") or shutil.which("moto_server")
"""The server's program. It needs an older python-dateutil than other packages here, so an environment of its own."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """HOST:PORT of a server."""
    if MOTO is None:
        pytest.skip("no S3 server: install 'moto[s3]' flask flask-cors elsewhere; MOTO_SERVER names its moto_server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    silent = subprocess.DEVNULL
    process = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stdout=silent, stderr=silent)
    try:
        for _ in range(600):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["file", "local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty storage behind a URL, of each kind."""
    if request.param == "s3":
        return bucket(request.getfixturevalue("s3_server"), tmp_path, monkeypatch)
    return folder(tmp_path, request.param)


@pytest.fixture
def one_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty storage behind a URL, in a bucket where there is a server."""
    return folder(tmp_path) if MOTO is None else bucket(request.getfixturevalue("s3_server"), tmp_path, monkeypatch)


def folder(tmp_path: Path, scheme: str = "file") -> str:
    """The URL of a new folder."""
    (tmp_path / "bucket").mkdir()
    return f"{scheme}://{tmp_path / 'bucket'}"


def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix in a new bucket of a server."""
    from pyarrow.fs import FileSystem

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    name = "".join(c if c.isalnum() else "-" for c in tmp_path.name.lower())[-60:].strip("-")
    options = f"scheme=http&endpoint_override={server}"
    system, base = FileSystem.from_uri(f"s3://{name}?{options}&allow_bucket_creation=true")
    system.create_dir(base)
    return f"s3://{name}/results?{options}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What makes this process one of another machine: with a cache folder, and so mirrors, of its own."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machines" / name))
