"""`lchp evaluate`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.cli.train import method_line
from lchp.console import refuse
from lchp.errors import ConfigError


@dataclass
class Evaluate:
    """Compute every metric again from a run's predictions.parquet, and compare with its summary."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder."""
    json: bool = False
    """Print JSON instead of the table."""
    macro: bool = False
    """Also print GT-Known averaged over classes instead of images, as PSOL does."""
    classifier: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Compute instead Top-1 and Top-5 Loc of this run's boxes with the classes of that run folder's classifier (PSOL's
    two networks), and write them to second_classifier.json too. Reads the test images."""
    ten_crop: bool = False
    """With --classifier: average its softmax over ten crops."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With --classifier: the device that it runs on."""

    def run(self) -> int:
        """Carries the command out; the exit status: 1 if summary.json says otherwise."""
        if self.classifier is not None:
            if self.macro:
                raise ConfigError("--macro does not go with --classifier, which changes no GT-Known")
            return self._with(self.classifier)
        refuse(self, ("ten_crop", "device"), "goes with --classifier DIR")

        from lchp.evaluation.predictions import macro_gt_known, read_predictions, summarize, summary_table
        from lchp.files.runs import SUMMARY, read_config, read_summary

        predictions = read_predictions(self.run_folder)
        computed = summarize(predictions)
        recorded = read_summary(self.run_folder)
        # not test predictions: the kept training boxes, and how consistent boxes of other views are
        summary = computed | {k: v for k, v in recorded.items() if k not in computed}
        extra = {"gt_known_macro": macro_gt_known(predictions)} if self.macro else {}
        print(json.dumps(summary | extra, indent=2) if self.json else summary_table(summary))
        if not self.json and (said := method_line(read_config(self.run_folder), computed["results"])):
            print(said)
        if self.macro and not extra["gt_known_macro"]:
            raise ConfigError("--macro: the test images have no ground-truth boxes")
        if self.macro and not self.json:
            print("\nGT-Known averaged over classes (macro), %:")
            for result, frames in extra["gt_known_macro"].items():
                print(f"  {result}: " + ", ".join(f"{frame} {value:.2f}" for frame, value in frames.items()))
        different = [k for k in computed if recorded.get(k) != computed[k]]
        if different:
            print(f"lchp: {self.run_folder / SUMMARY} has other values of {', '.join(different)}", file=sys.stderr)
        elif not self.json:
            print("\nsummary.json says the same")
        return 1 if different else 0

    def _with(self, other: Path) -> int:
        from lchp.deploy.second_classifier import second_classifier
        from lchp.evaluation.predictions import second_classifier_table
        from lchp.system.devices import resolve_device

        found = second_classifier(self.run_folder, other, resolve_device(self.device), ten_crop=self.ten_crop)
        print(json.dumps(found, indent=2) if self.json else second_classifier_table(found))
        return 0
