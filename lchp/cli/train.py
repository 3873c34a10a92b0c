"""`lchp train`."""

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lchp.config import TrainConfig, masked_as, preset
from lchp.errors import RunError
from lchp.files.runs import CONFIG
from lchp.system import streams
from lchp.system.interrupt import on_signals
from lchp.tracking import TrackerName, required

if TYPE_CHECKING:
    from lchp.data import DataSet

OPENED = 20_000
"""Of at most so many images all are opened before a forecast, which takes a few minutes; of ImageNet's, hours."""
LONG = 3600.0
"""A forecast on a CPU of more seconds than this names another recipe."""
ON_A_CPU = {"folder": "folder_cpu", "cub": "cub50_cpu"}
"""A data set's preset for a CPU."""


@dataclass
class Train:
    """Train both stages, predict the test images, and write a run folder."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: str = "parts"
    """Recipe that every other option overrides."""
    output: Path | None = None
    """Run folder; runs/DATA-seedN-TIME by default."""
    resume: bool = False
    """Go on from the newest checkpoint in --output."""
    stage: Literal["both", "init", "refine"] = "both"
    """Both stages, stage 1 alone, or stage 2 alone from a run folder that holds stage 1."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None
    """Run folder that holds stage 1, for --stage refine."""
    track: tyro.conf.UseAppendAction[tuple[TrackerName, ...]] = ()
    """Tracker that shows the run while it trains; may be given several times."""
    forecast: bool = True
    """First try a few batches, and say how much time, memory and disk the training will take."""
    dry_run: bool = False
    """Print the forecast, and stop."""

    def __post_init__(self) -> None:
        self.config = masked_as(self.config, preset(self.preset))

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.data import DATASETS, load
        from lchp.data.base import require_classes

        required(self.track)
        data = self.config.data
        dataset = None
        if not DATASETS[data.name].generated:  # before torch is imported, which takes seconds
            require_classes(dataset := load(data))

        from lchp.evaluation.predictions import summary_table
        from lchp.training.run import require_startable, train

        asked: dict[str, Any] = {
            "output": self.output,
            "stage": self.stage,
            "source": self.source,
            "resume": self.resume,
        }
        require_startable(self.config, **asked)
        if self.dry_run:
            print(self._forecast(dataset))
            return 0
        streams.outlast()
        begun = self.output is not None and (self.output / CONFIG).exists()
        if self.forecast and not begun:
            print(self._forecast_if_possible(dataset), flush=True)
        with on_signals() as stop:
            result = train(self.config, **asked, show_progress=True, stop=stop, track=self.track)
        print(f"\n{summary_table(result.summary)}")
        if (said := method_line(result.config, result.summary["results"])) is not None:
            print(said)
        print(f"\nrun folder: {result.run}")
        return 0

    def _forecast_if_possible(self, dataset: "DataSet | None") -> str:
        """The forecast as text, or why there is none. A fault of the forecast alone, such as a full folder for
        temporary files, does not keep training from starting. Images that are no more than a training soon opens are
        opened before, so that it refuses bad ones at once."""
        from lchp.training.context import open_context
        from lchp.training.forecast import quiet

        opened = dataset is not None and len(dataset.train) + len(dataset.test) <= OPENED
        if opened:
            with quiet():  # training logs it
                open_context(self.config, show_progress=True)
        try:
            return self._forecast(dataset, opened=opened)
        except (RunError, OSError) as fault:
            return f"no forecast: {fault}"

    def _forecast(self, dataset: "DataSet | None", *, opened: bool = False) -> str:
        """The forecast as text. opened: whether the image cache is filled."""
        from lchp.system.devices import resolve_device
        from lchp.training.chain import stage1_kinds, taken_kinds
        from lchp.training.forecast import forecast

        config = self.config
        last = stage1_kinds(config)[-1] if self.stage == "init" else None
        without = taken_kinds(config) if self.stage == "refine" else ()
        skip = "" if self.dry_run else " (--no-forecast skips that)"
        said = f"measuring a few steps of each link, to say how long all will take{skip}"
        begin = partial(print, said, file=sys.stderr, flush=True)
        found = forecast(config, last, without=without, dataset=dataset, begin=begin)
        found = replace(found, filling=0.0) if opened else found
        text = found.text(config)
        if found.seconds < LONG or resolve_device(config.device).type != "cpu":
            return text
        smaller = ON_A_CPU.get(config.data.name)
        say = (
            f"--preset {smaller} has a network and a size for a CPU"
            if smaller and self.preset != smaller
            else "lower --data.image-size, or name mobilenet_v2 as --model.classifier and --model.localizer"
        )
        return f"{text}\nno GPU is used, and this takes more than an hour: {say}"


def method_line(config: TrainConfig, results: Collection[str]) -> str | None:
    """What the results of a compared method's run are, those that it has; None for LCHP's."""
    from lchp.evaluation.metrics import TITLES
    from lchp.training.chain import label, method_of, of_stage1

    found, method = method_of(config), config.method
    if found.complete and not found.from_file:
        return None
    if found.from_file:
        threshold, box = "", "the file's box"
    else:
        config = config if "lchp_i" in results else of_stage1(config)
        threshold = "" if found.map is None else f" (method.threshold {method.threshold:g})"
        source = "DDT's box" if found.map is None else "the box of its map"
        box = f"{source}, of the image's own class (where top-1 is right, that is the predicted one)"
    what = {
        "pseudo_label": box,
        "lchp_i": "the localizer regressed on such boxes",
        "lchp_r": "that after LCHP's stage 2",
    }
    first, *more = [(TITLES[result], text) for result, text in what.items() if result in results]
    said = [" is ".join(first), *map(" ".join, more)]
    return f"method: {label(config)}{threshold}; {', '.join(said)}"
