"""STORAGE/optuna.db: Optuna's own SQLite storage, handled as our own files are.

A lock of another process is waited for, with an end; what cannot be read or written is a RunError of one line; a file
that is no sound database of Optuna's is left as it is.
"""

import contextlib
import errno
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from lchp.errors import ConfigError, RunError
from lchp.files import runs
from lchp.files.runs import DATABASE

T = TypeVar("T")
log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds for which a lock of another process is waited for."""
SILENCE = 5.0
"""Seconds of such a wait before it is spoken of."""
BUSY = 1.0
"""Seconds for which SQLite itself waits; Python hears no Ctrl-C meanwhile."""
MOVE_AWAY = "move it away, then give the same command with --resume: finished trainings are in the store and kept"
_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}


@dataclass(frozen=True)
class Database:
    """The file at `path`, which is waited for `patience` seconds where another process has locked it."""

    path: Path
    patience: float = PATIENCE

    @property
    def url(self) -> str:
        """As Optuna's own tools take it, with `?`, `%` and spaces escaped."""
        readable = os.fsencode(self.path).decode(errors="replace")
        return URL.create("sqlite", database=readable).render_as_string()

    def storage(self) -> BaseStorage:
        """Optuna's storage in this file, made if there is none. Raises RunError."""
        tables = self.call(self._tables)
        try:
            # a connection of our own: no path survives being pasted into a URL and taken apart again by everybody.
            # What is complete is not added to: to a database of an older Optuna that would be tables of the newer
            database = self.call(
                RDBStorage,
                "sqlite:///optuna.db",
                {"creator": self._connect},
                skip_table_creation="alembic_version" in tables,
            )
        except RuntimeError as error:  # of another version
            said = str(error).replace("$STORAGE_URL", f"'{self.url}'")
            raise RunError(f"{self.path}: {said} Or {MOVE_AWAY}") from None
        inner = get_storage(database)
        calls = {n: getattr(inner, n) for n in dir(inner) if not n.startswith("_")}
        return cast(BaseStorage, SimpleNamespace(**{n: functools.partial(self.call, c) for n, c in calls.items()}))

    def call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `method` returns, one transaction of Optuna's, which is tried again while the file is locked.

        Raises RunError where it stays locked or cannot be read or written.
        """
        begin, said = time.monotonic(), False
        while True:
            try:
                return method(*args, **kwargs)
            except (sqlite3.Error, SQLAlchemyError, StorageInternalError) as error:
                waited = time.monotonic() - begin
                if not _locked(error):
                    raise self._fault(error) from None
                if waited >= self.patience:
                    raise RunError(
                        f"{self.path}: another process has kept it locked for {self.patience:g} s; end that, "
                        "then give the same command with --resume"
                    ) from None
                if waited >= SILENCE and not said:
                    log.warning("%s: locked by another process; waiting for it (%g s)", self.path, self.patience)
                    said = True
                time.sleep(0.1)
            except KeyError as error:
                raise RunError(f"{self.path}: the study or a trial was removed meanwhile ({error})") from None

    def _connect(self, mode: str = "rwc") -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        # the threads of Optuna's pool hand connections on
        return sqlite3.connect(uri, uri=True, timeout=BUSY, check_same_thread=False)

    def _tables(self) -> set[str]:
        """The tables that are there, none where there is no file yet. Raises RunError for what is not Optuna's, and
        sqlite3.Error for what is damaged."""
        if not self.path.exists():
            return set()
        if not self.path.is_file():
            raise RunError(f"{self.path}: is not a file; {MOVE_AWAY}")
        with contextlib.closing(self._connect("rw")) as connection:  # not "ro", which cannot undo what a kill cut off
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if found != "ok" or (tables and not tables & {"studies", "version_info"}):
            why = "another program's" if found == "ok" else found.strip().splitlines()[-1]
            raise RunError(f"{self.path}: is no database of Optuna's, or damaged ({why}); {MOVE_AWAY}")
        return tables

    def _fault(self, error: Exception) -> RunError:
        cause = _cause(error)
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code in _ERRNO:
            return runs.unwritable(self.path, OSError(_ERRNO[code], str(cause)))
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        return RunError(f"{self.path}: is no database of Optuna's, or damaged ({reason}); {MOVE_AWAY}")


def open_study(storage: Path, name: str, seed: int = 0, *, patience: float = PATIENCE) -> optuna.Study:
    """The study of a search, made if it is not there yet: maximises, samples by TPE.

    Raises ConfigError for a name that is no text, and RunError, from the study's methods too, where the database cannot
    be used or stays locked for `patience` seconds.
    """
    if not name.isprintable():  # bytes that are no text cannot be stored
        raise ConfigError(f"--name = {name!r}: expected text that can be printed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    runs.make_folder(storage)
    database = Database(storage / DATABASE, patience)
    try:
        study = optuna.create_study(
            storage=database.storage(), study_name=name, direction="maximize", load_if_exists=True
        )
        trials, _ = study.get_trials(deepcopy=False), study.user_attrs
        directions = [d.name for d in study.directions]
    except RunError:
        raise
    except OSError as error:
        raise runs.unwritable(database.path, error) from None
    except Exception as error:  # whatever the reading of a damaged record comes to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{database.path}: is no database of Optuna's, or damaged ({reason}); {MOVE_AWAY}") from None
    if directions != ["MAXIMIZE"]:
        raise RunError(f"{database.path}: its study {name!r} does not maximise one value; take another --name")
    # trials run at the same time; and a search that goes on must not draw its first random settings again
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(trials), constant_liar=True)
    return study


def _cause(error: BaseException) -> BaseException:
    """What SQLite said, below Optuna's and SQLAlchemy's errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _locked(error: Exception) -> bool:
    code = getattr(_cause(error), "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
