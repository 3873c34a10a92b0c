"""The command line: lchp train | evaluate | score | scoremaps | predict | export | data."""

import argparse
import contextlib
import dataclasses
import io
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lchp import __version__
from lchp.config import FIELDS, PRESETS, TrainConfig, override, preset, suggest
from lchp.errors import ConfigError, LchpError, lacked_memory, printable
from lchp.files.schema import FrameName
from lchp.files.targets import as_path, json_of, require_file
from lchp.system import streams
from lchp.system.interrupt import Interrupted, on_signals

INTERRUPTED = 130

PATHS = ConstructorRegistry()
"""How every command reads a path."""


@PATHS.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda texts: as_path(texts[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


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

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.evaluation.predictions import summary_table
        from lchp.training.run import train

        streams.outlast()
        with on_signals() as stop:
            result = train(
                self.config,
                output=self.output,
                stage=self.stage,
                source=self.source,
                resume=self.resume,
                show_progress=True,
                stop=stop,
            )
        print(f"\n{summary_table(result.summary)}")
        if (said := _method_line(result.config)) is not None:
            print(said)
        print(f"\nrun folder: {result.run}")
        return 0


def _method_line(config: TrainConfig) -> str | None:
    """What the results of a compared method's run are; None for LCHP's."""
    from lchp.training.chain import label, method_of

    found, method = method_of(config), config.method
    if found.complete:
        return None
    threshold = "" if found.map is None else f" (method.threshold {method.threshold:g})"
    source = "DDT's box" if found.map is None else "the box of its map"
    parts = [f"Pseudo Label is {source}, of the image's own class (where top-1 is right, that is the predicted one)"]
    parts += ["LCHP-I the localizer regressed on such boxes"] if method.localizer else []
    parts += ["LCHP-R that after LCHP's stage 2"] if method.refine else []
    return f"method: {label(config)}{threshold}; {', '.join(parts)}"


@dataclass
class Evaluate:
    """Compute every metric again from a run's predictions.parquet, and compare with its summary."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder."""
    json: bool = False
    """Print JSON instead of the table."""
    macro: bool = False
    """Also GT-Known averaged over classes instead of images (PSOL's habit)."""
    classifier: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Instead: Top-1 and Top-5 Loc of this run's boxes with the classes of that run folder's classifier (PSOL's two
    networks), also written to second_classifier.json. Reads the test images."""
    ten_crop: bool = False
    """With --classifier: average its softmax over ten crops."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With --classifier: where it runs."""

    def run(self) -> int:
        """Carries the command out; the exit status: 1 if summary.json says otherwise."""
        import json

        if self.classifier is not None:
            if self.macro:
                raise ConfigError("--macro does not go with --classifier, which changes no GT-Known")
            return self._with(self.classifier)
        if self.ten_crop:
            raise ConfigError("--ten-crop: expected --classifier DIR, whose crops they are")

        from lchp.evaluation.predictions import macro_gt_known, read_predictions, summarize, summary_table
        from lchp.files.runs import SUMMARY, read_config, read_summary

        predictions = read_predictions(self.run_folder)
        computed = summarize(predictions)
        recorded = read_summary(self.run_folder)
        # not test predictions: the kept training boxes, and how consistent boxes of other views are
        summary = computed | {k: v for k, v in recorded.items() if k not in computed}
        extra = {"gt_known_macro": macro_gt_known(predictions)} if self.macro else {}
        print(json.dumps(summary | extra, indent=2) if self.json else summary_table(summary))
        if not self.json and (said := _method_line(read_config(self.run_folder))) is not None:
            print(said)
        if self.macro and not extra["gt_known_macro"]:
            raise ConfigError("--macro: the test images have no ground-truth boxes")
        if self.macro and not self.json:
            print("\nGT-Known averaged over classes (macro), %:")
            for result, frames in extra["gt_known_macro"].items():
                print(f"  {result}: " + ", ".join(f"{frame} {value:.2f}" for frame, value in frames.items()))
        different = [k for k in computed if recorded.get(k) != computed[k]]
        if different:
            print(f"lchp: {self.run_folder / SUMMARY} says otherwise of: {', '.join(different)}", file=sys.stderr)
        elif not self.json:
            print("\nsummary.json says the same")
        return 1 if different else 0

    def _with(self, other: Path) -> int:
        import json

        from lchp.deploy.second_classifier import second_classifier
        from lchp.evaluation.predictions import second_classifier_table
        from lchp.system.devices import resolve_device

        found = second_classifier(self.run_folder, other, resolve_device(self.device), ten_crop=self.ten_crop)
        print(json.dumps(found, indent=2) if self.json else second_classifier_table(found))
        return 0


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
    """The best box of all contours counts, instead of that of the largest (MaxBoxAccV2)."""
    interval: float = 0.001
    """Step between thresholds (between bins of PxAP)."""
    threshold: float | None = None
    """Also the accuracy at this threshold, a share of each map's maximum."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the result as JSON, too; over an earlier result alone."""

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
            self._refuse("--boxes", "masks", "multi_contour", "threshold")
            if (self.annotations is None) == (self.metadata is None):
                raise ConfigError("--boxes needs --annotations FILE, or --metadata DIR with --dataset NAME")
            if self.annotations is not None:
                self._refuse("--annotations", "dataset")
            return score_boxes(self.boxes, self.annotations or self._folder(), show_progress=True)
        assert self.scoremaps is not None
        if self.dataset == "OpenImages":
            self._refuse("--dataset OpenImages, which has masks", "annotations", "multi_contour", "threshold")
            if self.masks is None:
                raise ConfigError("--dataset OpenImages needs --masks DIR")
            return score_masks(self.scoremaps, self._folder(), self.masks, interval=self.interval, show_progress=True)
        self._refuse("--scoremaps", "annotations")
        self._refuse("a data set with boxes", "masks")
        return score_maps(
            self.scoremaps,
            self._folder(),
            multi_contour=self.multi_contour,
            interval=self.interval,
            threshold=self.threshold,
            show_progress=True,
        )

    def _refuse(self, what: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) is not False:
                raise ConfigError(f"--{name.replace('_', '-')} does not go with {what}")

    def _folder(self) -> Path:
        """The split's folder in --metadata."""
        if self.metadata is None or self.dataset is None:
            raise ConfigError("--metadata DIR and --dataset NAME say where the ground truth is; both are needed")
        folder = self.metadata / self.dataset / self.split
        if not folder.is_dir():
            raise ConfigError(f"metadata = {str(self.metadata)!r}: no folder {self.dataset}/{self.split} in it")
        return folder


@dataclass
class ScoreMaps:
    """Write the score maps of a compared method's run in wsolevaluation's format, for lchp score and other tools.

    DIR/<image id>.npy of every test image, 224 x 224 floats in [0, 1], of the image's own class. Image ids are those of
    predictions.parquet: with data sets other than wsol and wsol_fullsup, wsolevaluation's lists have others.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write to; there must be none yet, or an empty one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the classifier runs."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.score_maps import write_score_maps
        from lchp.system.devices import resolve_device

        streams.outlast()
        count = write_score_maps(self.run_folder, self.output, resolve_device(self.device), show_progress=True)
        print(f"{count} score maps in {self.output}")
        return 0


@dataclass
class Predict:
    """Name the class and draw the box of any image, by a trained run; also as annotations for a detector."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE/FOLDER")]
    """An image, or a folder that is searched in full."""
    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete."""
    output: Path | None = None
    """New folder to write to; standard output by default."""
    format: Literal["jsonl", "csv", "coco", "yolo"] = "jsonl"
    """JSON lines, CSV, or annotations that a detector can be trained from."""
    frame: FrameName = "full_image"
    """What the networks see: the whole image, or the centre crop of the training recipe."""
    pictures: bool = False
    """Also write copies with class and box drawn, into OUTPUT/pictures."""
    min_confidence: float = 0.0
    """Leave less confident images out of COCO and YOLO."""
    batch_size: int = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """The run's by default."""
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.predict import load_run, predict_to
        from lchp.evaluation.metrics import TITLES
        from lchp.system.devices import resolve_device
        from lchp.training.chain import label, method_of

        if self.output is not None:
            streams.outlast()
        trained = load_run(self.run_folder, resolve_device(self.device))
        summary = predict_to(
            trained,
            self.source,
            self.output,
            format=self.format,
            frame=self.frame,
            pictures=self.pictures,
            min_confidence=self.min_confidence,
            batch_size=self.batch_size,
            precision=self.precision,
            workers=self.workers,
            show_progress=True,
        )
        speed = f"{summary.seconds:.1f} s, {summary.images / summary.seconds:.1f} images/s"
        of = "" if method_of(trained.config).complete else f" of {label(trained.config)}"
        said = [f"{summary.images} images by {TITLES[trained.result]}{of} ({speed})"]
        if summary.left_out:
            said.append(f"{summary.left_out} left out (confidence below {self.min_confidence:g}, or box under a pixel)")
        if summary.broken:
            said.append(f"{summary.broken} could not be read")
        if self.output is not None:
            said.append(f"written to {self.output}")
        print("; ".join(said), file=sys.stderr)
        return 1 if summary.broken else 0


@dataclass
class Export:
    """Write localizer and classifier of a run as one file that runs without lchp."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete."""
    output: Path
    """File to write; over an earlier export alone."""
    format: Literal["torchscript", "onnx"] | None = None
    """By default what the file's name ends in: .onnx, or TorchScript for .pt and .ts."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.export import export
        from lchp.deploy.predict import load_run
        from lchp.evaluation.metrics import TITLES
        from lchp.system.devices import resolve_device

        by_name = {".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript"}.get(self.output.suffix)
        format: Any = self.format or by_name
        if format is None or (by_name is not None and format != by_name):
            raise ConfigError(
                f"output = {str(self.output)!r}: end its name in .onnx, or in .pt for TorchScript"
                + (f", to go with --format {format}" if format else "")
            )
        about = export(load_run(self.run_folder, resolve_device("cpu")), self.output, format)
        print(
            f"{self.output}: {TITLES[about['result']]} and classifier as {format}, {about['image_size']} px, "
            f"{len(about['class_names'])} classes; largest difference {about['largest_difference']:.1e}"
        )
        return 0


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
        print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}")
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


COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "score": Score,
    "scoremaps": ScoreMaps,
    "predict": Predict,
    "export": Export,
    "data check": DataCheck,
    "data download": DataDownload,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 for a fault found, or as `guarded` says."""
    streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    kept = "; what was trained is kept: go on with the same command, --output and --resume"
    stopped = f"lchp: stopped{kept if arguments[:1] == ['train'] else ''}"
    return guarded(lambda: _dispatch(arguments), stopped, error="lchp: error")


def guarded(body: Callable[[], int], stopped: str = "stopped", *, error: str = "error") -> int:
    """The exit status of `body`, whose faults become one line each: 2 for a user's mistake and for a file that cannot
    be written, 130 for Ctrl-C and 143 for SIGTERM (which print `stopped`), 141 where nobody reads standard output any
    more. The one place through which every program runs: its streams are made safe here (`lchp.system.streams`)."""
    streams.prepare()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)  # unless the program has said otherwise
    try:
        return _answered(body, stopped, error)
    except BrokenPipeError:  # whoever read standard output has enough (lchp predict ... | head)
        return streams.UNREAD
    finally:
        streams.settle()


def _flushed(body: Callable[[], int]) -> int:
    """Fails here, and not when Python ends, where what was printed cannot be written."""
    try:
        status = body()
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _answered(body: Callable[[], int], stopped: str, error: str) -> int:
    try:
        with on_signals():
            return _flushed(body)
    except LchpError as fault:
        print(f"{error}: " + "\n".join(map(printable, str(fault).split("\n"))), file=sys.stderr)  # a list has lines
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{stopped}", file=sys.stderr)
        return stop.status if isinstance(stop, Interrupted) else INTERRUPTED
    except BrokenPipeError:
        raise
    except (MemoryError, RuntimeError) as fault:
        lacking = lacked_memory(fault)
        if lacking is None:
            raise
        print(f"{error}: {lacking}; lower --data.batch-size or --data.image-size", file=sys.stderr)
        return 2
    except OSError as fault:  # a full disk, a folder that vanished
        said = f"{fault.filename or 'file or standard output'}: {fault.strerror or fault}"
        print(f"{error}: {printable(said)}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"lchp {__version__}")
        return 0
    for name, command in COMMANDS.items():
        words = name.split()
        if arguments[: len(words)] == words:
            rest = arguments[len(words) :]
            default = Train(chosen_preset(rest)) if command is Train else None
            return parse(command, rest, f"lchp {name}", default).run()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    said = " ".join(arguments[: 2 if arguments[0] == "data" else 1])
    raise ConfigError(f"{said}: no such command{suggest(said, COMMANDS)}; lchp --help lists them")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {n:<{width}}  {(c.__doc__ or '').strip().splitlines()[0]}" for n, c in COMMANDS.items())
    presets = "\n".join(f"  {n:<{width}}  {p.about}" for n, p in PRESETS.items())
    return (
        "usage: lchp COMMAND [OPTIONS]   (lchp COMMAND --help lists the options)\n\n"
        f"commands:\n{commands}\n\npresets of lchp train --preset NAME:\n{presets}"
    )


def chosen_preset(arguments: list[str]) -> TrainConfig:
    """The preset is read first, since it sets the defaults of all other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="parts", nargs="?", const="")
    return preset(parser.parse_known_args(arguments)[0].preset)


def parse(command: Callable[..., Any], arguments: list[str], program: str, default: Any = None) -> Any:
    """Arguments to an instance of the dataclass `command`; raises ConfigError, one line, for what does not fit."""
    for before, text in zip(("", *arguments), arguments, strict=False):
        option, equals, value = text.partition("=") if text.startswith("--") else (before, "=", text)
        if equals and not value.strip():  # an empty path would be the current folder
            raise ConfigError(f"{option if option.startswith('-') else 'an argument'}: is empty")
    extra = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                command, args=arguments, prog=program, return_unknown_args=True, registry=PATHS, **extra
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            print(printed.getvalue(), end="")
            raise
        raise ConfigError(_explained(_one_line(printed.getvalue()), program)) from None
    if unknown:
        first = unknown[0]
        after = arguments[: arguments.index(first)][-1:] if first in arguments else []
        if after and after[0].startswith("-") and not first.startswith("-"):
            raise ConfigError(f"{first}: not expected after {after[0]}; {program} --help says what that takes")
        raise ConfigError(f"{first}: no such option of {program}{suggest(first, _flags(command))}")
    return value


def _explained(fault: str, program: str) -> str:
    """tyro's message, and what the option that it names takes; choices in one order, without the None of an option that
    is left out."""
    said, _, listed = fault.partition(" Expected one of ")
    said = said.rstrip(".")
    named = re.search(r"--([\w.-]+[\w])", said)
    name = named[1].replace("-", "_") if named else ""
    if name in FIELDS:
        return f"{said}; {name} takes {FIELDS[name].allowed}"
    choices = sorted(set(re.findall(r"'([^']*)'", listed)) - {"None"})
    if choices:
        said += f": expected one of {', '.join(choices)}"
    return f"{said}; {program} --help lists the options"


def _flags(command: Any) -> list[str]:
    """Options that a mistyped one may have meant."""
    found = []
    for name, kind in get_type_hints(command).items():
        if kind is TrainConfig:
            found += [f"--{field.replace('_', '-')}" for field in FIELDS]
        elif dataclasses.is_dataclass(kind):
            found += _flags(kind)
        else:
            said = "from" if name == "source" else name.removesuffix("_folder")
            found.append(f"--{said.replace('_', '-')}")
    return found


def _one_line(box: str) -> str:
    """What tyro says between the first two rules of its message, below or inside of the title, as one line."""
    sections = re.split("^.*[─-]{20}.*$", box, flags=re.MULTILINE)
    for section in sections[1:] or sections:
        text = " ".join(re.sub("[│╭╮╰╯─|]", " ", section).split())
        if text:
            return text
    return "the options could not be read"
