"""A storage behind a URL (a bucket): objects are read and written whole, and each machine keeps mirrors on its disk.

pyarrow knows s3://, gs:// and file://, with their options in the URL's query; fsspec knows the others. A mirror has the
layout of a storage's folder, so that all else reads and writes that. There is one for each use, since each holds
another part: `trials` whole results, `sweeps` and `reports` what is read of them.
"""

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from lchp.errors import ConfigError, LchpError, RunError
from lchp.files.caches import user_cache
from lchp.files.runs import make_folder, write_atomically

T = TypeVar("T")

PAUSES = (2.0, 8.0, 20.0)
"""Seconds before a request that failed is tried again; the clients of stores try each a few times themselves."""
TRIES = len(PAUSES) + 1
ANSWER = 50.0
"""Seconds in which a store must answer before anything is trained."""
AGAIN = "see to that, then give the command again (a sweep or search with --resume)"
_KNOWN = (
    ("NO_SUCH_BUCKET", "there is no such bucket"),
    ("NoSuchBucket", "there is no such bucket"),
    ("ACCESS_DENIED", "the credentials are refused"),
    ("INVALID_ACCESS_KEY_ID", "the credentials are refused"),
    ("SIGNATURE_DOES_NOT_MATCH", "the credentials are refused"),
    ("UNRECOGNIZED_CLIENT", "the credentials are refused"),
    ("INVALID_CLIENT_TOKEN_ID", "the credentials are refused"),
    ("HTTP response code: 403", "the credentials are refused"),
    ("OAuth2 access token", "no credentials are found, or they are refused"),
    ("NETWORK_CONNECTION", "the endpoint does not answer"),
)
"""What the clients of stores say, and its meaning."""


class RemoteError(RunError):
    """A store that cannot be read or written."""

    @property
    def fault(self) -> str:
        """What is wrong, without what to do about it."""
        return str(self).removesuffix(f"; {AGAIN}")


@dataclass(frozen=True)
class Remote:
    """The storage at `url`. Raises ConfigError for what is no URL of a store."""

    url: str

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            # abfs://CONTAINER@ACCOUNT and sftp://USER@HOST are no secrets
            secret = parts.password or (parts.username if parts.scheme == "s3" else None)
        except ValueError as error:
            raise ConfigError(f"--storage {self.url}: is no URL ({error})") from None
        if secret:  # they would be written into records
            raise ConfigError(
                f"--storage {parts.scheme}://...: has credentials in it; give them by the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the store reads), and leave them out"
            )
        if not parts.scheme or not (parts.netloc or parts.path.strip("/")):
            raise ConfigError(f"--storage {self.url}: expected a folder, or a URL such as s3://BUCKET/PREFIX")
        if "?" not in self.url:
            object.__setattr__(self, "url", self.url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path, as a folder's."""
        parts = urlsplit(self.url)
        return PurePosixPath(parts.path).name or parts.netloc

    def mirror(self, use: Literal["trials", "sweeps", "reports"]) -> Path:
        """This machine's folder for what is read and written of the storage."""
        cache = user_cache()
        if cache is None:
            raise ConfigError(f"--storage {self.url}: this user has no cache folder for it; set XDG_CACHE_HOME")
        return cache / "storages" / hashlib.sha256(self.url.encode()).hexdigest()[:16] / use / self.name

    def under(self, name: str) -> str:
        """An object as messages name it."""
        base, query, more = self.url.partition("?")
        return f"{base.rstrip('/')}/{name}{query}{more}"

    def check(self, *, write: bool) -> None:
        """Raises ConfigError, within a minute, where the store is not there or refuses this user."""
        fault: list[BaseException] = []

        def ask() -> None:
            try:
                system, base = _system(self.url)
                made = write and (_of_objects(system) or not _in_bucket(base))  # fsspec would make a bucket, too
                if not made and not _there(system, base) and not _there(system, _bucket(base)):
                    raise FileNotFoundError(f"there is no {_bucket(base)}")
                if not write:
                    return
                probe = f"{base}/.lchp-{socket.gethostname()}-{time.time_ns()}"
                _write(system, probe, b"lchp")
                with system.open_input_stream(probe) as stream:
                    stream.read()
                system.delete_file(probe)
            except Exception as error:  # each client of fsspec has its own
                fault.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER)
        if asking.is_alive():
            raise ConfigError(f"--storage {self.url}: gives no answer within {ANSWER:.0f} s")
        if fault:
            if isinstance(fault[0], ConfigError):
                raise fault[0]
            raise ConfigError(
                f"--storage {self.url}: {'cannot be used' if write else 'cannot be read'}: {_why(fault[0])}"
            )

    def read(self, name: str, *, tries: int = TRIES) -> bytes | None:
        """An object's content; None where there is none. Raises RemoteError."""

        def read(system: Any, path: str) -> bytes | None:
            try:
                with system.open_input_stream(path) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._tried("read", name, read, tries)

    def write(self, name: str, content: bytes, *, tries: int = TRIES) -> None:
        """Writes a small object. Raises RemoteError."""
        self._tried("written", name, lambda system, path: _write(system, path, content), tries)

    def upload(self, file: Path, name: str) -> None:
        """Copies a file to an object, which is there only once it is whole. Raises RemoteError."""
        from pyarrow.fs import LocalFileSystem, copy_files

        def copy(system: Any, path: str) -> None:
            _make_parent(system, path)
            copy_files(str(file), path, source_filesystem=LocalFileSystem(), destination_filesystem=system)

        self._tried("written", name, copy)

    def download(self, name: str, file: Path) -> bool:
        """Copies an object to a file in a folder that is there; whether there is such an object. Raises RemoteError."""
        from pyarrow.fs import LocalFileSystem, copy_files

        def copy(system: Any, path: str) -> bool:
            try:
                copy_files(path, str(file), source_filesystem=system, destination_filesystem=LocalFileSystem())
            except FileNotFoundError:
                return False
            return True

        return self._tried("read", name, copy)

    def list(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all objects below a folder, by their names in it. Raises RemoteError."""
        from pyarrow.fs import FileSelector

        def look(system: Any, path: str) -> dict[str, int]:
            found = system.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            start = path.strip("/") + "/"
            return {f.path.strip("/").removeprefix(start): f.size for f in found if f.is_file}

        return self._tried("listed", folder, look)

    def remove(self, name: str, *, folder: bool = False, tries: int = TRIES) -> None:
        """Removes an object, or all below a folder, where there is one. Raises RemoteError."""

        def remove(system: Any, path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                (system.delete_dir if folder else system.delete_file)(path)

        self._tried("removed", name, remove, tries)

    def bring(self, name: str, file: Path) -> None:
        """Makes a mirror's small file what the object is: written, or removed where there is no such object."""
        content = self.read(name)
        if content is None:
            file.unlink(missing_ok=True)
        else:
            make_folder(file.parent)
            write_atomically(file, lambda out: out.write(content))

    def _tried(self, done: str, name: str, call: Callable[[Any, str], T], tries: int = TRIES) -> T:
        for pause in (*PAUSES[: tries - 1], None):
            try:
                system, base = _system(self.url)
                return call(system, f"{base}/{name}" if name else base)
            except LchpError:
                raise
            except Exception as error:  # each client of fsspec has its own
                if pause is None:
                    raise RemoteError(f"{self.under(name)}: cannot be {done} ({_why(error)}); {AGAIN}") from None
                time.sleep(pause)
        raise AssertionError("no try at all")


_NEARLY = re.compile("(s3|gs|gcs|az|abfss?|file|hdfs|https?):/*")
Storage = Remote | Path
"""Where results lie: a folder, or a store behind a URL."""


def as_storage(place: str | Path | Remote) -> Storage:
    """A storage as a user names it: text with :// is a URL. Raises ConfigError, also for a URL that lacks a slash and
    would be a folder."""
    if isinstance(place, str) and "://" in place:
        return Remote(place)
    if isinstance(place, str) and (near := _NEARLY.match(place)):
        raise ConfigError(f"--storage {place}: expected {near[1]}://{place[near.end() :]}, with two slashes")
    return place if isinstance(place, Remote) else Path(place)


@lru_cache(16)
def _system(url: str) -> tuple[Any, str]:
    """pyarrow's file system of a URL, and the path in it. Raises ConfigError and OSError."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    asked = url
    if urlsplit(url).scheme in ("gs", "gcs") and "retry_limit_seconds" not in url:  # a quarter of an hour by default
        asked += f"{'&' if '?' in url else '?'}retry_limit_seconds={ANSWER / 2:.0f}"
    try:
        try:
            system, base = FileSystem.from_uri(asked)
        except ValueError as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            inner, base = _of_fsspec(url)
            system = PyFileSystem(FSSpecHandler(inner))
    except (ValueError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"--storage {url}: {_why(error)}") from None
    return system, base.rstrip("/")


def _of_fsspec(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises ConfigError, ImportError, OSError, ValueError."""
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(url)
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:  # of its class, which is made of the URL
        raise ConfigError(f"--storage {url}: {_why(error)}") from None
    if (listed := getattr(system, "dircache", None)) is not None:
        listed.use_listings_cache = False  # of what other machines write it hears nothing
    if "memory" in system.protocol:
        raise ConfigError(f"--storage {url}: lies in the memory of one process, and a sweep has several")
    return system, base


def _there(system: Any, base: str) -> bool:
    from pyarrow.fs import FileType

    return system.get_file_info(base).type != FileType.NotFound


def _bucket(base: str) -> str:
    """The bucket of a path in a store; of a path elsewhere the path itself."""
    return base.partition("/")[0] if _in_bucket(base) else base


def _in_bucket(base: str) -> bool:
    """Whether a path begins with a bucket, and not with a file system's root or a server."""
    return not base.startswith("/") and "://" not in base


def _of_objects(system: Any) -> bool:
    """Whether a store knows no folders."""
    return system.type_name in ("s3", "gcs", "abfs")


def _write(system: Any, path: str, content: bytes) -> None:
    _make_parent(system, path)
    with system.open_output_stream(path) as stream:
        stream.write(content)


def _make_parent(system: Any, path: str) -> None:
    if not _of_objects(system):
        system.create_dir(path.rpartition("/")[0], recursive=True)


def _why(error: BaseException) -> str:
    """What a client of a store says, on one line."""
    if isinstance(error, NotImplementedError):
        return "it is of a kind that can only be read"
    said = (str(error) or type(error).__name__).splitlines()[0]
    meaning = next((text for word, text in _KNOWN if word in said), None)
    said = said if len(said) <= 200 else f"{said[:200]}..."
    return said if meaning is None else f"{meaning}: {said}"
