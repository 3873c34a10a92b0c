"""What the chain knows of a record's config, by dotted name; remembered, since reports ask for thousands of rows."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from lchp.config import AUTO, FIELDS, MEASURED, SHAPE, TrainConfig, override
from lchp.files.runs import Kind

# the chain brings torch, which takes seconds: it is imported only where there is a record to ask of

WITHOUT_EFFECT = frozenset(n for n, f in FIELDS.items() if set(f.changes) <= {*MEASURED} and n not in SHAPE)
"""Fields that no trained network depends on. What the data set holds counts by its fingerprint, and the precision as it
was resolved."""
_ALWAYS = frozenset(n for n, f in FIELDS.items() if f.changes == ("images",) or (n in SHAPE and not f.changes))
"""Fields that tell all runs apart: what they are of, and whose."""


def is_complete(values: Mapping[str, Any]) -> bool:
    """Whether the method of a config is all that LCHP is: teacher, localizer and refinement."""
    from lchp.baselines import METHODS

    return METHODS[values["method.name"]].boxes == "teacher"


def title(values: Mapping[str, Any]) -> str:
    """The row of a config in Tables 1 and 2 (see `lchp.training.chain.label`)."""
    from lchp.training.chain import label

    return label(_config(_shape(values)))


def is_from_file(values: Mapping[str, Any]) -> bool:
    """Whether the pseudo boxes of a config are those of a file."""
    from lchp.baselines import METHODS

    return METHODS[values["method.name"]].from_file


def results(values: Mapping[str, Any], first: Kind | None = None) -> tuple[str, ...]:
    """The results of a config, or those of its link `first` and later ones (see `lchp.training.chain.results_of`)."""
    return _results(_shape(values), first)


def require_method(config: TrainConfig) -> None:
    """Raises ConfigError where a config contradicts its method."""
    from lchp.training.chain import method_of

    method_of(config)


def result_of(values: Mapping[str, Any]) -> str:
    """The result that a finished run of a config is about: its last."""
    return results(values)[-1]


def kinds(values: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The links of a config (see `lchp.training.chain.kinds_of`)."""
    from lchp.training.chain import kinds_of

    return kinds_of(_config(_shape(values)))


def stage1(values: Mapping[str, Any]) -> tuple[Kind, ...]:
    """Those of the paper's stage 1."""
    from lchp.training.chain import stage1_kinds

    return stage1_kinds(_config(_shape(values)))


def counts(name: str, values: Mapping[str, Any], result: str | None = None) -> bool:
    """Whether a run of a config depends on a field, or one result of it; `values`: at least those of SHAPE."""
    return name in _counting(_shape(values), result)


def _shape(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of SHAPE, and whether anything is `auto`: such a run has a link that chooses."""
    return (*(values[name] for name in SHAPE), any(values.get(f"initialization.{name}") == "auto" for name in AUTO))


@cache
def _config(shape: tuple[Any, ...]) -> TrainConfig:
    *fields, auto = shape
    chosen = {"initialization.second_pass": "auto"} if auto else {}  # which needs no field of the masks beside
    return override(TrainConfig(), dict(zip(SHAPE, fields, strict=True)) | chosen)


@cache
def _results(shape: tuple[Any, ...], first: Kind | None) -> tuple[str, ...]:
    from lchp.training.chain import results_of

    return results_of(_config(shape), first)


@cache
def _counting(shape: tuple[Any, ...], result: str | None) -> frozenset[str]:
    from lchp.training.chain import depends_on

    return (depends_on(_config(shape), result) | _ALWAYS) - WITHOUT_EFFECT
