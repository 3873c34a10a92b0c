"""`lchp data check` and `lchp data download`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lchp.config import TrainConfig, counted, override, preset


@dataclass
class DataCheck:
    """Report a data set's counts, and everything that is wrong with it by file and line."""

    name: tyro.conf.Positional[Literal["parts", "cub", "tiny_imagenet", "imagenet", "folder", "wsol", "wsol_fullsup"]]
    root: tyro.conf.Positional[Path | None] = None
    """Folder that holds the data set."""
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.data import DATASETS
        from lchp.data.check import cache_summary, check, summary

        root = None if self.root is None else str(self.root)
        values = {"data.name": self.name, "data.root": root, "data.workers": self.workers}
        config = override(preset("parts") if self.name == "parts" else TrainConfig(), values).data
        dataset = DATASETS[self.name].load(config)
        problems = check(dataset, workers=config.workers)
        print(summary(dataset))
        if (cache := cache_summary(dataset, config)) is not None:
            print(cache)
        for problem in problems:
            print(problem)
        print(counted(len(problems), "problem"))
        return 1 if problems else 0


@dataclass
class DataDownload:
    """Fetch a data set: resumed after a break, checked against its checksum, unpacked safely."""

    name: tyro.conf.Positional[Literal["cub", "tiny_imagenet", "imagenet"]]
    target: tyro.conf.Positional[Path] = Path("data")
    """Folder to unpack into."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.data.download import download, imagenet_instructions

        if self.name == "imagenet":
            print(imagenet_instructions())
        else:
            print(download(self.name, self.target))
        return 0
