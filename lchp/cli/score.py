"""`lchp score`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lchp.console import refuse
from lchp.errors import ConfigError
from lchp.files.targets import json_of, require_file


@dataclass
class Score:
    """Score anybody's results: score maps by the protocol of wsolevaluation, or boxes.

    Score maps: DIR/<image id>.npy (val2/0/1.jpeg is DIR/val2/0/1.jpeg.npy), 224 x 224 floats in [0, 1]; maps of another
    size are resized (bicubic) and scaled by their least and largest value, and counted.
    Boxes: one row per image with the columns image_id, x1, y1, x2, y2 (px of the original image, exclusive x2 y2) and,
    for Top-1 and Top-5 Loc, the classes top1 to top5. The output of lchp predict --format csv serves as it is.
    """

    scoremaps: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of score maps."""
    boxes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Box predictions, .csv or .parquet."""
    metadata: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder metadata of wsolevaluation, with DATASET/SPLIT/image_ids.txt and so on."""
    dataset: Literal["CUB", "ILSVRC", "OpenImages"] | None = None
    """Data set in --metadata. OpenImages has masks: PxAP instead of MaxBoxAcc."""
    split: Literal["train", "val", "test"] = "test"
    """val is train-fullsup, on which a threshold may be chosen."""
    annotations: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Ground truth for --boxes, in place of --metadata: .csv or .parquet, a row per box; image_id, x1 to y2, label."""
    masks: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of OpenImages' masks (dataset/OpenImages in wsolevaluation)."""
    multi_contour: bool = False
    """Count the best box of all contours, instead of the largest contour's (MaxBoxAccV2)."""
    interval: float = 0.001
    """Step between thresholds (between bins of PxAP)."""
    threshold: float | None = None
    """Also print the accuracy at this threshold, a share of each map's maximum."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result to this file, as JSON. An earlier result there is replaced, any other file left alone."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.files.runs import write_json

        if self.json is not None:
            read = [path for path in (self.boxes, self.annotations) if path is not None]
            require_file(self.json, "json", json_of("images", "warnings"), "result of lchp score", read)
        result = self._score()
        for warning in result.warnings():
            print(f"lchp: {warning}", file=sys.stderr)
        print(result.text())
        if self.json is not None:
            write_json(self.json, result.record())
        return 0

    def _score(self) -> Any:
        from lchp.evaluation.scoring import score_boxes, score_maps, score_masks

        if (self.scoremaps is None) == (self.boxes is None):
            raise ConfigError("lchp score needs --scoremaps DIR or --boxes FILE, one of them")
        if self.boxes is not None:
            refuse(self, ("masks", "multi_contour", "interval", "threshold"), "does not go with --boxes")
            if (self.annotations is None) == (self.metadata is None):
                raise ConfigError("--boxes needs --annotations FILE, or --metadata DIR with --dataset NAME")
            if self.annotations is not None:
                refuse(self, ("dataset", "split"), "does not go with --annotations")
            return score_boxes(self.boxes, self.annotations or self._folder(), show_progress=True)
        assert self.scoremaps is not None
        if self.dataset == "OpenImages":
            idle = ("annotations", "multi_contour", "threshold")
            refuse(self, idle, "does not go with --dataset OpenImages, which has masks")
            if self.masks is None:
                raise ConfigError("--dataset OpenImages needs --masks DIR")
            return score_masks(self.scoremaps, self._folder(), self.masks, interval=self.interval, show_progress=True)
        refuse(self, ("annotations",), "does not go with --scoremaps")
        refuse(self, ("masks",), "does not go with a data set with boxes")
        return score_maps(
            self.scoremaps,
            self._folder(),
            multi_contour=self.multi_contour,
            interval=self.interval,
            threshold=self.threshold,
            show_progress=True,
        )

    def _folder(self) -> Path:
        """The split's folder in --metadata."""
        if self.metadata is None or self.dataset is None:
            raise ConfigError("--metadata DIR and --dataset NAME say where the ground truth is; both are needed")
        folder = self.metadata / self.dataset / self.split
        if not folder.is_dir():
            raise ConfigError(f"metadata = {str(self.metadata)!r}: no folder {self.dataset}/{self.split} in it")
        return folder
