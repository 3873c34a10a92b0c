"""Downloads from a local server: progress kept over breaks, checksums, and archives that mean harm."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lchp.data.download import download, imagenet_instructions
from lchp.errors import DataError


@dataclass
class Site:
    """What the server serves and how it misbehaves; `ranges` are the Range headers it saw."""

    content: bytes = b""
    accepts_ranges: bool = True
    tells_length: bool = True
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.failures:
                self.send_error(state.failures.pop(0))
                return
            start = 0
            if asked and state.accepts_ranges:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(state.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(state.content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                last = len(state.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(state.content)}")
            else:
                self.send_response(200)
            body = state.content[start:]
            if state.tells_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cuts:
                body = body[: state.cuts.pop(0)]
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr("lchp.data.download.time.sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/archive?download=1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def cub_tar(extra: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in (
            ("attributes.txt", b"x"),
            ("CUB_200_2011/images.txt", b"1 a.jpg\n"),
            ("CUB_200_2011/b", b"y" * 9999),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
        if extra:
            extra(tar)
    return buffer.getvalue()


def tiny_zip(extra: Callable[[zipfile.ZipFile], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("tiny-imagenet-200/wnids.txt", "n01443537\n")
        if extra:
            extra(file)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def fetch(site: Site, target: Path, name: str = "cub", **options) -> Path:
    options = {"checksum": sha256(site.content)} | options
    return download(name, target, url=site.url, **options)  # type: ignore[arg-type]


def leftovers(target: Path) -> list[str]:
    return sorted(p.name for p in target.iterdir())


def test_fetches_and_unpacks(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site.content = cub_tar()
    folder = fetch(site, tmp_path / "new" / "data")
    assert folder == tmp_path / "new" / "data" / "CUB_200_2011"
    assert (folder / "images.txt").read_text() == "1 a.jpg\n"
    assert leftovers(folder.parent) == ["CUB_200_2011"]
    with caplog.at_level("INFO"):
        assert fetch(site, folder.parent) == folder
    assert "complete" in caplog.text
    assert len(site.ranges) == 1


def test_fetches_a_zip_by_its_md5(site: Site, tmp_path: Path) -> None:
    site.content = tiny_zip()
    md5 = "md5:" + hashlib.md5(site.content).hexdigest().upper()
    folder = fetch(site, tmp_path, "tiny_imagenet", checksum=md5)
    assert (folder / "wnids.txt").is_file()
    assert leftovers(tmp_path) == ["tiny-imagenet-200"]


def test_goes_on_after_lost_connections(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    site.cuts = [100, 50, 0, 20]
    fetch(site, tmp_path)
    assert site.ranges == [None, "bytes=100-", "bytes=150-", "bytes=150-", "bytes=170-"]


def test_next_call_goes_on(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    site.cuts = [100, 0, 0]
    with pytest.raises(DataError, match=r"closed early.*run again"):
        fetch(site, tmp_path, attempts=2)
    assert leftovers(tmp_path) == ["CUB_200_2011.tgz.part"]
    site.cuts, site.ranges = [], []
    fetch(site, tmp_path)
    assert site.ranges == ["bytes=100-"]


def test_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    site.accepts_ranges = False
    (tmp_path / "CUB_200_2011.tgz.part").write_bytes(b"z" * 100)
    fetch(site, tmp_path)
    assert site.ranges == ["bytes=100-"]


def test_server_that_tells_no_length(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    site.tells_length = False
    fetch(site, tmp_path)


def test_complete_part_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    (tmp_path / "CUB_200_2011.tgz.part").write_bytes(site.content)
    fetch(site, tmp_path)
    assert site.ranges == [f"bytes={len(site.content)}-"]


def test_part_longer_than_the_file_starts_over(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    (tmp_path / "CUB_200_2011.tgz.part").write_bytes(site.content + b"more")
    fetch(site, tmp_path)
    assert site.ranges[-1] is None


def test_server_errors(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    site.failures = [503, 404]
    with pytest.raises(DataError, match="answers 404"):
        fetch(site, tmp_path)
    fetch(site, tmp_path)


def test_unreachable_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lchp.data.download.time.sleep", lambda _: None)
    with pytest.raises(DataError, match="refused"):
        download("cub", tmp_path, url="http://127.0.0.1:9/a.tgz", attempts=2)


def test_wrong_checksum_removes_the_file(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    with pytest.raises(DataError, match=r"md5 is .*, expected 97eceeb196236b17998738112f37df78"):
        download("cub", tmp_path, url=site.url)
    assert leftovers(tmp_path) == []


def test_an_archive_put_there_by_hand(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    archive = tmp_path / "CUB_200_2011.tgz"
    archive.write_bytes(b"something else")
    with pytest.raises(DataError, match="move it away"):
        fetch(site, tmp_path)
    assert archive.exists()
    archive.write_bytes(site.content)
    assert fetch(site, tmp_path).is_dir()
    assert site.ranges == []


def test_interrupted_unpacking_is_done_again(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    (tmp_path / ".CUB_200_2011.unpacking" / "CUB_200_2011").mkdir(parents=True)
    fetch(site, tmp_path)
    assert leftovers(tmp_path) == ["CUB_200_2011"]


def test_a_folder_of_that_name_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "CUB_200_2011").mkdir()
    with pytest.raises(DataError, match="move it away"):
        download("cub", tmp_path)


@pytest.mark.parametrize(("url", "checksum"), [("file:///etc/passwd", None), ("http://127.0.0.1/", "md5:short")])
def test_bad_arguments(tmp_path: Path, url: str, checksum: str | None) -> None:
    with pytest.raises(DataError, match="expected"):
        download("cub", tmp_path, url=url, checksum=checksum)


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)

    return add


def zip_member(name: str, mode: int = 0o100644) -> Callable[[zipfile.ZipFile], None]:
    def add(file: zipfile.ZipFile) -> None:
        member = zipfile.ZipInfo("placeholder")
        member.filename = name  # set afterwards: the constructor mends some names
        member.external_attr = mode << 16
        file.writestr(member, "/etc/passwd")

    return add


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (tar_member("../evil.txt"), "leads out"),
        (tar_member("CUB_200_2011/../../evil.txt"), "leads out"),
        (tar_member("/tmp/evil.txt"), "leads out"),
        (tar_member("..\\evil.txt"), "leads out"),
        (tar_member("CUB_200_2011/link", tarfile.SYMTYPE, "/etc/passwd"), "link or a special file"),
        (tar_member("CUB_200_2011/link", tarfile.SYMTYPE, "b"), "link or a special file"),
        (tar_member("CUB_200_2011/link", tarfile.LNKTYPE, "CUB_200_2011/b"), "link or a special file"),
        (tar_member("CUB_200_2011/pipe", tarfile.FIFOTYPE), "link or a special file"),
        (tar_member("CUB_200_2011/device", tarfile.CHRTYPE), "link or a special file"),
    ],
)
def test_hostile_tar(site: Site, tmp_path: Path, extra: Callable[[tarfile.TarFile], None], match: str) -> None:
    site.content = cub_tar(extra)
    with pytest.raises(DataError, match=match):
        fetch(site, tmp_path / "data")
    assert leftovers(tmp_path / "data") == ["CUB_200_2011.tgz"]
    assert leftovers(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (zip_member("../evil.txt"), "leads out"),
        (zip_member("tiny-imagenet-200/../../evil.txt"), "leads out"),
        (zip_member("/tmp/evil.txt"), "leads out"),
        (zip_member("C:\\evil.txt"), "leads out"),
        (zip_member("tiny-imagenet-200/link", 0o120777), "link or a special file"),
        (zip_member("tiny-imagenet-200/pipe", 0o010644), "link or a special file"),
    ],
)
def test_hostile_zip(site: Site, tmp_path: Path, extra: Callable[[zipfile.ZipFile], None], match: str) -> None:
    site.content = tiny_zip(extra)
    with pytest.raises(DataError, match=match):
        fetch(site, tmp_path / "data", "tiny_imagenet")
    assert leftovers(tmp_path / "data") == ["tiny-imagenet-200.zip"]
    assert leftovers(tmp_path) == ["data"]


def test_size_limits(site: Site, tmp_path: Path) -> None:
    site.content = cub_tar()
    with pytest.raises(DataError, match="limit of 100"):  # told by the server
        fetch(site, tmp_path, max_bytes=100)
    site.tells_length = False
    with pytest.raises(DataError, match="limit of 100"):  # seen while fetching
        fetch(site, tmp_path, max_bytes=100)
    assert len(site.content) < 5000
    with pytest.raises(DataError, match="unpacks to more than 5000"):
        fetch(site, tmp_path, max_bytes=5000)
    site.content = tiny_zip(lambda file: file.writestr("tiny-imagenet-200/zeros", bytes(10_000)))
    with pytest.raises(DataError, match="unpacks to more than 5000"):
        fetch(site, tmp_path, "tiny_imagenet", max_bytes=5000)


def long_header(tar: tarfile.TarFile) -> None:
    """A megabyte of zeros as the header of an empty file: nothing that counts as content."""
    member = tarfile.TarInfo("CUB_200_2011/c")
    member.pax_headers = {"comment": "0" * 2**20}
    tar.addfile(member)


def sparse(tar: tarfile.TarFile) -> None:
    """A file of a terabyte that takes no room in the archive (GNU's sparse format 1.0)."""
    member = tarfile.TarInfo("CUB_200_2011/c")
    said = {"major": "1", "minor": "0", "name": member.name, "realsize": str(2**40)}
    member.pax_headers = {f"GNU.sparse.{key}": value for key, value in said.items()}
    member.size = 512
    tar.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))


@pytest.mark.parametrize(
    ("extra", "match"), [(long_header, "more bytes than its members may have"), (sparse, "unpacks to more than")]
)
def test_tar_that_is_larger_than_it_looks(site: Site, tmp_path: Path, monkeypatch, extra, match: str) -> None:
    monkeypatch.setattr("lchp.data.download.MAX_MEMBERS", 10)
    site.content = cub_tar(extra)
    assert len(site.content) < 5000
    with pytest.raises(DataError, match=match):
        fetch(site, tmp_path, max_bytes=100_000)
    assert leftovers(tmp_path) == ["CUB_200_2011.tgz"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_zip(site: Site, tmp_path: Path, method: int) -> None:
    words = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(64))
    whole = tiny_zip(lambda file: file.writestr("tiny-imagenet-200/words.txt", words, method))
    for at in range(whole.index(b"words.txt") + 12, whole.rindex(b"PK\1\2") - 200, 211):
        site.content = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip: cannot be unpacked"):
            fetch(site, tmp_path, "tiny_imagenet")
        (tmp_path / "tiny-imagenet-200.zip").unlink()


@pytest.mark.parametrize("content", [b"no archive", cub_tar()[:-40]])
def test_damaged_archive(site: Site, tmp_path: Path, content: bytes) -> None:
    site.content = content
    with pytest.raises(DataError, match=re.escape("CUB_200_2011.tgz")):
        fetch(site, tmp_path)
    assert not (tmp_path / "CUB_200_2011").exists()


def test_archive_of_something_else(site: Site, tmp_path: Path) -> None:
    site.content = tiny_zip().replace(b"wnids.txt", b"other.txt")
    with pytest.raises(DataError, match=r"holds no tiny-imagenet-200/wnids\.txt"):
        fetch(site, tmp_path, "tiny_imagenet")


def test_imagenet_instructions_name_the_layout() -> None:
    assert "ILSVRC/Data/CLS-LOC/train" in imagenet_instructions()
