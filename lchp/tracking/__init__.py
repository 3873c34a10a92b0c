"""Trackers that labs watch their runs with: what they get of a run, while it trains or when a sweep has it."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, get_args

from lchp.config import suggest
from lchp.errors import ConfigError, LchpError, reason

TrackerName = Literal["mlflow", "wandb", "tensorboard"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


def client_of(tracker: TrackerName) -> Any:
    """The module that speaks to a tracker by its client library: `require`, `reach` and `open_run`."""
    return import_module(f"lchp.tracking.to_{tracker}")


def required(names: Sequence[str]) -> tuple[TrackerName, ...]:
    """The trackers of these names, each once. Raises ConfigError, one line, for a name that is none, for a library that
    is missing or cannot be imported, for settings that it does not take, and where an account is needed and none is
    named."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--track {name}: expected one of {', '.join(TRACKERS)}{suggest(name, TRACKERS)}")
    found: tuple[TrackerName, ...] = tuple(name for name in TRACKERS if name in names)
    for name in found:
        try:
            client_of(name).require()
        except LchpError:
            raise
        except Exception as error:  # whatever a client library raises of its own settings
            raise ConfigError(f"--track {name}: its client says: {reason(error)}") from None
    return found
