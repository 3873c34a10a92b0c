"""The flags that the commands over records share, and the names that these take."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lchp.config import preset
from lchp.errors import ConfigError
from lchp.files.remote import Remote

if TYPE_CHECKING:
    from lchp.report.read import Records

FigureName = Literal["delta", "tau", "fields", "search", "iou", "confidence", "training", "grid", "panel"]
Pick = Literal["random", "best", "worst", "gained", "lost"]
Against = Literal["pseudo_label", "lchp_i"]
MOST_IMAGES = 60
"""Images per grid."""
STORAGES = (Path("results"),)
"""Where records are looked for by default."""


@dataclass(frozen=True)
class Shown:
    """What figures of one run show."""

    frame: Literal["center_crop", "full_image"] = "center_crop"
    """Frame of the grids and of the panel."""
    pick: tuple[Pick, ...] = ("random",)
    """Images of the grids: drawn at random, LCHP-R's best or worst, gained (LCHP-R right, --against wrong) or lost."""
    against: Against = "lchp_i"
    """Result that LCHP-R is compared with, for gained and lost."""
    seed: int = 0
    """Of the draws of images, and of the panel's strong view."""
    images: int = 12
    """Images per grid."""
    image: str | None = None
    """Id of the panel's test image; by default the first that --pick picks."""
    data_root: Path | None = None
    """Folder of the data set, for figures that show images; by default the one that the run read."""

    def __post_init__(self) -> None:
        if not 1 <= self.images <= MOST_IMAGES:
            raise ConfigError(f"--images {self.images}: expected 1 to {MOST_IMAGES}")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: expected at least 0")


@dataclass(frozen=True)
class Source:
    """Which records."""

    storage: tuple[Remote | Path, ...] = STORAGES
    """Storages of sweeps (folders, or URLs such as s3://BUCKET/PREFIX), folders of run folders, or run folders."""
    where: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE")]] = ()
    """Take only runs with this value of a field, e.g. initialization.attention=features; may be given several times."""
    sweep: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")]] = ()
    """Take only the runs of this sweep's cells, by the sweep's name; may be given several times."""

    def __post_init__(self) -> None:
        if not self.storage:
            raise ConfigError("--storage: expected at least one folder")
        _ = self.conditions  # a mistake is said before anything is read

    @cached_property
    def conditions(self) -> Mapping[str, Any]:
        """`where` as values of fields. Raises ConfigError."""
        if not self.where:
            return {}
        from lchp.report.select import parse_where  # pandas, which --help need not wait for

        return parse_where(self.where)

    @property
    def beside(self) -> Path:
        """The folder in which outputs lie by default: the first storage, or the current folder where that is a URL."""
        return Path() if isinstance(self.storage[0], Remote) else self.storage[0]

    def read(self) -> "Records":
        """The records of the storages, or of the sweeps in them that `sweep` names. Raises as `collect`, and
        ConfigError for an unknown sweep; `where` is left to whoever makes something of them."""
        from lchp.report.read import collect
        from lchp.report.select import of_sweeps

        records = collect(self.storage)
        return of_sweeps(records, self.sweep) if self.sweep else records


@dataclass(frozen=True)
class Recipe:
    """Of which recipe the records are."""

    preset: str | None = None
    """Recipe that tables and figures are about; by default the one that the records follow."""

    def __post_init__(self) -> None:
        if self.preset is not None:
            preset(self.preset)
