"""What the commands over records are told: the flags that they share, and the names that these take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.errors import ConfigError

FigureName = Literal["delta", "tau", "fields", "search", "iou", "confidence", "training", "grid", "panel"]
Pick = Literal["random", "best", "worst", "gained", "lost"]
Against = Literal["pseudo_label", "lchp_i"]
STORAGES = (Path("results"),)
"""Where records are looked for by default."""


@dataclass(frozen=True)
class Source:
    """Which records, and of which recipe."""

    storage: tuple[Path, ...] = STORAGES
    """Storages of sweeps, folders of run folders, or run folders."""
    preset: str | None = None
    """Recipe that tables and figures are about; by default the one that the records follow."""
    where: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE")]] = ()
    """What the runs must have, e.g. initialization.attention=features; may be given several times."""

    def __post_init__(self) -> None:
        if not self.storage:
            raise ConfigError("--storage: expected at least one folder")
