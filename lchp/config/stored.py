"""Configs by value: as records hold them, also older ones, and with fields replaced."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lchp.config.about import as_given, quoted, show, suggest
from lchp.config.fields import AUTO, FIELDS, GONE, MEANING_BEFORE, SECTIONS, TrainConfig, changed
from lchp.errors import ConfigError


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values, as written to config.json."""
    return dataclasses.asdict(config)


def from_dict(values: Any) -> TrainConfig:
    """The inverse of `to_dict`; fields that are newer than the record mean what they meant then (`complete`). Raises
    ConfigError for a field that is unknown, missing, wrong or there twice, so that no record is misread."""
    return override(TrainConfig(), complete(flatten(values)))


def flatten(values: Any) -> dict[str, Any]:
    """A nested record, as `to_dict` makes it, by dotted name (which a record may hold as well), without what older ones
    hold and is GONE. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"a config is an object of sections and fields, found {quoted(values)}")
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in SECTIONS and not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {quoted(value)}: expected an object with the fields of that section")
        for name, v in ((f"{key}.{k}", v) for k, v in value.items()) if key in SECTIONS else [(key, value)]:
            if name in flat:
                raise ConfigError(f"{as_given(name)} = {quoted(v)}: is there twice")
            flat[name] = v
    return {name: value for name, value in flat.items() if (name, value) not in GONE.items()}


def complete(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields by dotted name, with MEANING_BEFORE of those that it lacks. Raises ConfigError for one that it
    lacks and that has no such meaning."""
    unread = sorted(FIELDS.keys() - flat.keys() - MEANING_BEFORE.keys())
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        raise ConfigError(f"config lacks {', '.join(unread[:3])}{more}; it was written by another version of lchp")
    return {**MEANING_BEFORE, **flat}


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook for json.loads that raises ValueError for a key that is there twice."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {quoted(key)} is there twice")
        out[key] = value
    return out


def override(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with fields replaced by dotted name, e.g. ``{"initialization.delta": 0.6}``, or nested like a record.
    Raises ConfigError for a name that does not exist or a value that does not fit."""
    flat = flatten(values)
    for name in flat:
        if name not in FIELDS:
            raise ConfigError(f"{as_given(name)}: no such field{suggest(str(name), FIELDS)}")
    return masked_as(dataclasses.replace(config, **changed(config, flat)), config)


def masked_as(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """`config`, in which a field of the boxes that has become `auto` leaves the masks what they were `before`."""
    first, then = config.initialization, before.initialization
    if not first.auto_fields or first.auto_fields == then.auto_fields:
        return config
    kept = {
        mask: getattr(then, name)
        for name, mask in AUTO.items()
        if mask is not None and getattr(first, mask) is None and getattr(then, name) != "auto"
    }
    return dataclasses.replace(config, initialization=dataclasses.replace(first, **kept))


def shown_choice(chosen: Mapping[str, Any]) -> str:
    """What a run's summary says was chosen, for people."""
    return ", ".join(f"{name} {show(value)}" for name, value in chosen["values"].items())


def as_chosen(config: TrainConfig, chosen: Mapping[str, Any] | None) -> TrainConfig:
    """A config with what its run's summary says was chosen (`lchp.method.choice.Choice.record`), if anything was."""
    if chosen is None:
        return config
    return override(config, {f"initialization.{name}": value for name, value in chosen["values"].items()})
