"""What every program of the package is on a terminal: flags read into a dataclass, and faults that are one line."""

import argparse
import contextlib
import dataclasses
import inspect
import io
import logging
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lchp.system import imports  # isort: skip  (before the packages whose failure it explains)

import tyro
from tyro import _errors as unread  # not public yet, so that pyproject.toml names tyro's version
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lchp.config import FIELDS, TrainConfig, described, preset, quoted, suggest
from lchp.errors import ConfigError, LchpError, is_of_threads, lacked_memory, printable
from lchp.files.remote import Remote, Storage, as_storage
from lchp.files.runs import write_atomically
from lchp.files.targets import as_path, holding, require_file
from lchp.system import streams
from lchp.system.interrupt import SIGNALS, Interrupted, on_signals

INTERRUPTED = 130

PATHS = ConstructorRegistry()
"""How every command reads a path, and a storage, which may be a URL."""


@PATHS.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda texts: as_path(texts[0] or "."),  # [] where an option follows that is refused then
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


@PATHS.primitive_rule
def _storage(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Storage] | None:
    if info.type != Storage:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URL",
        instance_from_str=lambda texts: as_storage(texts[0]),
        is_instance=lambda value: isinstance(value, (Remote, Path)),
        str_from_instance=lambda storage: [str(storage)],
    )


def guarded(body: Callable[[], int], stopped: str = "stopped", *, error: str = "error") -> int:
    """The exit status of `body`, whose faults become one line each: 2 for a user's mistake and for a file that cannot
    be written, 130 for Ctrl-C and 143 for SIGTERM (which print `stopped`), 141 where nobody reads standard output any
    more. The one place through which every program runs: its streams are made safe here (`lchp.system.streams`)."""
    streams.prepare()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)  # unless the program has said otherwise
    try:
        return _answered(body, stopped, error)
    except BrokenPipeError:  # whoever read standard output has enough (lchp predict ... | head)
        return streams.UNREAD
    finally:
        streams.settle()


def _flushed(body: Callable[[], int]) -> int:
    """Fails here, and not when Python ends, where what was printed cannot be written."""
    try:
        status = body()
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _answered(body: Callable[[], int], stopped: str, error: str) -> int:
    try:
        with on_signals():
            return _flushed(body)
    except LchpError as fault:
        print(f"{error}: " + "\n".join(map(printable, str(fault).split("\n"))), file=sys.stderr)  # a list has lines
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{stopped}{_how_to_go_on(stop)}", file=sys.stderr)
        return stop.status if isinstance(stop, Interrupted) else INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as fault:
        said = imports.failed_import(fault) or _what_to_mend(fault)
        if said is None:
            raise
        print(f"{error}: {said}", file=sys.stderr)
        return 2


def _how_to_go_on(stop: KeyboardInterrupt) -> str:
    if not isinstance(stop, Interrupted) or stop.kept is None:
        return ""
    return f"; what was trained is kept: go on with the same command, --output {stop.kept} and --resume"


def _what_to_mend(fault: Exception) -> str | None:
    """What the user can mend of an error that is not ours; None where that is nothing."""
    if is_of_threads(fault):
        return "no more threads or processes may be started here; raise the limit (ulimit -u, or the container's)"
    if isinstance(fault, (MemoryError, RuntimeError)):
        lacking = lacked_memory(fault)
        return None if lacking is None else f"{lacking}; lower --data.batch-size or --data.image-size"
    if isinstance(fault, OSError):  # a full disk, a folder that vanished
        return printable(f"{fault.filename or 'file or standard output'}: {fault.strerror or fault}")
    return None


def exit_program(status: int) -> None:
    """Ends the program with an exit status, past threads of Ray's that would hold it or wait for a dead one."""
    streams.settle()
    if status in (128 + s for s in SIGNALS):
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(status)


def preset_config(arguments: list[str]) -> TrainConfig:
    """The preset is read first, since it sets the defaults of all other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="parts", nargs="?", const="")
    return preset(parser.parse_known_args(arguments)[0].preset)


def parse(
    command: Callable[..., Any], arguments: list[str], program: str, default: Any = None, *, about: str | None = None
) -> Any:
    """Arguments to an instance of the dataclass `command`; raises ConfigError, one line, for what does not fit. about:
    what --help says first, in place of the docstring of `command`."""
    for before, text in zip(("", *arguments), arguments, strict=False):
        option, equals, value = text.partition("=") if text.startswith("--") else (before, "=", text)
        if equals and not value.strip():  # an empty path would be the current folder
            raise ConfigError(f"{option if option.startswith('-') else 'an argument'}: is empty")
    if not {"-h", "--help"}.isdisjoint(arguments):  # whatever else is there, complete or not
        arguments = ["--help"]
    extra = {} if default is None else {"default": default}
    said = about or inspect.getdoc(command) or ""
    printed = io.StringIO()
    try:
        with unread.on_parse_error(lambda event: _refuse(event, arguments)), contextlib.redirect_stdout(printed):
            value, unknown = tyro.cli(
                command,
                args=arguments,
                prog=program,
                description=said.replace("\nlchp ", "\n  lchp "),  # tyro joins lines that begin with a letter
                return_unknown_args=True,
                registry=PATHS,
                **extra,
            )
    except SystemExit:  # --help
        print(_filled(printed.getvalue()))
        raise
    if unknown:
        raise ConfigError(_unexpected(unknown[0], arguments, program, _flags(command)))
    return value


def run_scoring(
    flags: type[Any], score: Callable[[Any], tuple[str, Any]], program: str, mark: bytes, argv: Sequence[str] | None
) -> int:
    """A script that scores runs: prints what `score` gives for its flags, and writes the rows that it gives (a pandas
    table) to --csv. mark: in a file that may be replaced. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        asked = parse(flags, arguments, program)
        if asked.csv:
            require_file(asked.csv, "csv", holding(mark), "table of this script")
        text, rows = score(asked)
        print(text)
        if asked.csv:
            content = rows.to_csv(index=False).encode()
            write_atomically(asked.csv, lambda file: file.write(content))
        return 0

    return guarded(body)


def refuse(flags: Any, names: Sequence[str], why: str) -> None:
    """Raises ConfigError, `--NAME WHY`, for the first of these fields of a parsed command that is not at its default:
    the flag would have no effect."""
    fields = {field.name: field for field in dataclasses.fields(flags)}
    for name in names:
        if getattr(flags, name) != fields[name].default:
            raise ConfigError(f"--{name.replace('_', '-')} {why}")


def _unexpected(word: str, arguments: Sequence[str], program: str, options: Mapping[str, bool]) -> str:
    """Why a word of the command line is refused."""
    if word.startswith("-"):
        return f"{word}: no such option of {program}{suggest(word, [*options])}"
    before = list(takewhile(lambda text: text != word, arguments))
    at = next((i for i in range(len(before) - 1, -1, -1) if before[i].startswith("--")), None)
    if at is None:
        return f"{word}: not expected{suggest(word, [*options])}; {program} --help says what it takes"
    said, option = " ".join(before[at:]), before[at].partition("=")[0]
    if options.get(option) and said != option:
        return f"{word}: not expected after {said}; give {option} again: {said} {option} {word}"
    return f"{word}: not expected after {said}; {program} --help says what that takes"


def _refuse(event: unread.ParseErrorEvent, arguments: list[str]) -> None:
    """Raises ConfigError for what tyro cannot read: the option, its value, and what it takes."""
    more = f"; {event.prog} --help lists the options"
    if isinstance(event, unread.MissingArgs):
        needed = [each.arg for each in event.missing_arguments]
        shown = [f"{'' if a.is_positional() else f'{a.display_name()} '}{a.lowered.metavar}" for a in needed]
        raise ConfigError(f"{event.prog} needs {', '.join(shown)}{more}")
    if not isinstance(event, (unread.BadValue, unread.InvalidChoice, unread.InstantiationFailure)):
        raise ConfigError(f"the options do not go together{more}")
    argument = event.argument
    if argument is None:  # only what is built of the values can be wrong then
        raise ConfigError(f"{getattr(event, 'message', 'the options cannot be read')}{more}")
    option, metavar = argument.display_name(), (argument.lowered.metavar or "").removeprefix("{None}|")
    field = FIELDS.get(option.removeprefix("--").replace("-", "_"))
    if isinstance(event, unread.BadValue):
        if argument.is_positional():
            raise ConfigError(f"{event.prog} needs {metavar}{more}")
        raise ConfigError(f"{option}: lacks a value; expected {field.allowed if field else metavar}")
    value = event.value if isinstance(event, unread.InvalidChoice) else _after(option, arguments)
    if field:
        raise ConfigError(f"{field.name} = {quoted(value)}: expected {field.allowed}")
    kind = argument.field.type_stripped
    each = get_args(kind)[0] if get_origin(kind) is tuple else kind
    if argument.is_positional() and "folder" in get_args(kind) and Path(value).is_dir():  # of lchp data check
        more = f"; your own images are checked by {event.prog} folder {value}"
    several = f"; for several, give {option} again" if tyro.conf.UseAppendAction in argument.field.markers else ""
    raise ConfigError(f"{option} = {quoted(value)}: expected {described(each, (None,))}{several}{more}")


def _after(option: str, arguments: list[str]) -> str:
    """The value of an option where it was typed last."""
    value = ""
    for at, text in enumerate(arguments):
        typed, equals, joined = text.partition("=")
        if typed.replace("_", "-") == option:
            value = joined if equals else " ".join(takewhile(lambda t: not t.startswith("--"), arguments[at + 1 :]))
    return value


def _flags(command: Any) -> dict[str, bool]:
    """The options, and whether each may be given several times."""
    found: dict[str, bool] = {}
    for name, annotated in get_type_hints(command, include_extras=True).items():
        kind = getattr(annotated, "__origin__", annotated)
        if kind is TrainConfig:
            found |= {f"--{field.replace('_', '-')}": False for field in FIELDS}
        elif dataclasses.is_dataclass(kind):
            found |= _flags(kind)
        else:
            about = getattr(annotated, "__metadata__", ())
            said = next((m.name for m in about if getattr(m, "name", None)), name)
            found[f"--{said.removesuffix('_folder').replace('_', '-')}"] = tyro.conf.UseAppendAction in about
    return found


def _filled(text: str) -> str:
    """What --help prints, each option's text as one paragraph: tyro also breaks it where the source does. On a wide
    terminal, where options stand in two columns, it is left as it is."""
    rows = text.splitlines()
    rule = next((i for i, row in enumerate(rows) if re.fullmatch(" [─-]{20,} *", row)), len(rows))
    width = max(map(len, rows[rule : rule + 1]), default=0)
    if not width or any(len(row) > width for row in rows[rule:]):
        return text.rstrip("\n")
    lines: list[tuple[str, int]] = []  # and the column at which a text that goes on over several begins
    for row in rows:
        column = len(row) - len(row.lstrip())
        before = lines[-1][0] if lines else ""
        if column > 4 and row.strip() and before[column - 2 : column] == "  " and before[column : column + 1].strip():
            lines[-1] = (f"{before.rstrip()} {row.strip()}", column)
        else:
            lines.append((row.rstrip(), 0))
    wrap = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrap(line, subsequent_indent=" " * column) if column else line for line, column in lines)
