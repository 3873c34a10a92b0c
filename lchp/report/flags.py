"""What the commands over records are told: the flags that they share, and the names that these take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.errors import ConfigError
from lchp.files.remote import Remote

FigureName = Literal["delta", "tau", "fields", "search", "iou", "confidence", "training", "grid", "panel"]
Pick = Literal["random", "best", "worst", "gained", "lost"]
Against = Literal["pseudo_label", "lchp_i"]


@dataclass(frozen=True)
class Source:
    """Which records, and of which recipe."""

    storage: tuple[Remote | Path, ...] = (Path("results"),)
    """Storages of sweeps (folders, or URLs such as s3://BUCKET/PREFIX), folders of run folders, or run folders."""
    preset: str | None = None
    """Recipe that tables and figures are about; by default the one that the records follow."""
    where: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE")]] = ()
    """What the runs must have, e.g. initialization.attention=features; may be given several times."""

    def __post_init__(self) -> None:
        if not self.storage:
            raise ConfigError("--storage: expected at least one folder")

    @property
    def beside(self) -> Path:
        """The folder in which outputs lie by default: the first storage, or the current folder where that is a URL."""
        return beside(self.storage)


def beside(storages: Sequence[Remote | Path]) -> Path:
    """See `Source.beside`."""
    return Path() if isinstance(storages[0], Remote) else storages[0]
