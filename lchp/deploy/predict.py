"""A finished run as a tool: class, box and confidence of any image, streamed into a folder or to standard output."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from lchp.config import TrainConfig
from lchp.data.annotations import IMAGE_EXTENSIONS, SYSTEM_FOLDERS, PassedOver, by_kind
from lchp.data.decode import decode, image_size, is_image
from lchp.deploy.formats import Format, Prediction, open_writer
from lchp.errors import ConfigError, DataError, RunError
from lchp.evaluation.frames import Frame
from lchp.evaluation.inference import Models, predict_batch, predicting
from lchp.files import runs
from lchp.files.filesystem import set_mode
from lchp.files.schema import Environment, FrameName
from lchp.files.targets import claim, require_new_folder
from lchp.method.networks import Classifier, Localizer
from lchp.pictures import YELLOW, Style, draw_box, draw_label, line_width
from lchp.system.devices import autocast, resolve_precision, switch_off_tf32
from lchp.training.chain import STAGES, Kind, kinds_of, method_of
from lchp.training.checkpoints import load_checkpoint
from lchp.training.links import build_classifier

PICTURES = "pictures"


@dataclass(frozen=True)
class TrainedRun:
    """The networks of a run folder, in eval mode. `result`: whose localizer it is, `lchp_r` or `lchp_i`."""

    config: TrainConfig
    class_names: tuple[str, ...]
    classifier: Classifier
    localizer: Localizer
    result: str
    device: torch.device


@dataclass(frozen=True)
class PredictSummary:
    """What `predict_to` did: images predicted, images that could not be read, those left out of COCO or YOLO; and the
    seconds that it took."""

    images: int
    broken: int
    left_out: int
    seconds: float


def load_run(run: str | Path, device: torch.device) -> TrainedRun:
    """The classifier and the best localizer of a run folder: LCHP-R where stage 2 is complete, else LCHP-I.

    No weights are downloaded or read but the checkpoints'. Raises RunError, one line, where the folder, its stage 1 or
    the class names are missing, stage 1 is unfinished, or a checkpoint is damaged or of other networks.
    """
    run = Path(run)
    config, class_names, classifier = _opened_run(run)
    if "localizer" not in kinds_of(config):
        raise RunError(
            f"{run}: a run of {method_of(config).title} without a localizer, which predicting needs; train one on its "
            "boxes with --method.localizer"
        )
    localizer = Localizer(replace(config.model, pretrained=False, weights_dir=None), config.data.image_size)
    path = _checkpoint(run, "refinement")
    state = load_checkpoint(path) if path.exists() else None
    result = "lchp_r" if state is not None and state["epoch"] >= config.refinement.epochs else "lchp_i"
    if state is None or result == "lchp_i":
        path, state = localizer_checkpoint(run, config)
    _fill(localizer, state, "localizer", path)
    return TrainedRun(config, class_names, _ready(classifier, device), _ready(localizer, device), result, device)


def localizer_checkpoint(run: Path, config: TrainConfig) -> tuple[Path, dict[str, Any]]:
    """LCHP-I's checkpoint of a run and its path. In records of before there were links, LCHP's lies in stage 1's."""
    path = _checkpoint(run, "localizer")
    if not path.exists() and "boxes" not in kinds_of(config):
        older = _checkpoint(run, "classifier")
        state = load_checkpoint(older)
        if "localizer" in state["modules"]:
            return older, state
    return path, _finished(path, config.initialization.epochs)


def _checkpoint(run: Path, kind: Kind) -> Path:
    return runs.link_folder(run, kind) / runs.CHECKPOINTS / f"{STAGES[kind]}.pt"


def load_classifier(run: Path, device: torch.device) -> tuple[Any, TrainConfig, tuple[str, ...]]:
    """The classifier of a run folder, in eval mode, with its config and class names; errors as in `load_run`."""
    config, class_names, classifier = _opened_run(run)
    return _ready(classifier, device), config, class_names


def _ready(net: Any, device: torch.device) -> Any:
    switch_off_tf32()
    return net.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


def _opened_run(run: Path) -> tuple[TrainConfig, tuple[str, ...], Any]:
    """Config, class names, and the trained classifier."""
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder")
    config = runs.read_config(run)
    environment = runs.read_environment(run)
    class_names = environment["class_names"]
    path = _checkpoint(run, "classifier")
    state = load_checkpoint(path, _taken_as(environment))
    if state["epoch"] < config.initialization.epochs:
        raise RunError(
            f"{path}: stage 1 stopped after {state['epoch']} of {config.initialization.epochs} epochs; "
            "finish it with lchp train and --resume first"
        )
    quiet = replace(config, model=replace(config.model, pretrained=False, weights_dir=None))
    classifier = build_classifier(quiet, method_of(config), len(class_names))
    _fill(classifier, state, "classifier", path)
    return config, tuple(class_names), classifier


def _taken_as(environment: Environment) -> str | None:
    """The identity of a classifier that was taken from another run; None where it is the run's own."""
    if "links" in environment:
        place = environment["links"].get("classifier")
        return None if place is None or place["run"] is None else place["key"]
    stage1 = environment.get("stage1")
    return None if stage1 is None else stage1["identity"]


def _finished(path: Path, epochs: int) -> dict[str, Any]:
    state = load_checkpoint(path)
    if state["epoch"] < epochs:
        raise RunError(f"{path}: stopped after {state['epoch']} of {epochs} epochs; finish it with --resume first")
    return state


def _fill(net: nn.Module, state: dict[str, Any], name: str, path: Path) -> None:
    try:
        net.load_state_dict(state["modules"][name])
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"{path}: does not fit the {name} of its config.json ({reason[:200]})") from None


def predict(
    trained: TrainedRun,
    images: Iterable[tuple[str, Path]],
    *,
    frame: FrameName = "full_image",
    batch_size: int = 32,
    precision: str | None = None,
    workers: int = 0,
    on_broken: Callable[[str], object] | None = None,
) -> Iterator[tuple[Prediction, Path]]:
    """Predictions of (name, path) pairs, in their order; a few batches of images are in memory at a time.

    frame: what the networks see, `full_image` (the whole image, squeezed to a square) or `center_crop` (the centre crop
    of the training recipe; the box comes back in px of the whole image all the same).
    Pictures are turned upright by their EXIF orientation, whatever the run was trained on: sizes and boxes are those of
    the upright picture, as detectors and viewers read it.
    precision: fp32 or bf16, by default the run's. workers: decoding threads, 0: one per core. on_broken: is given one
    line per unreadable image, which is left out; without it DataError is raised.
    """
    precision = resolve_precision(precision or trained.config.precision, trained.device)
    with contextlib.closing(_decoded(images, trained, 2 * batch_size, workers)) as read:
        while batch := list(islice(read, batch_size)):
            good: list[_Read] = []
            for image in batch:
                if isinstance(image, _Read):
                    good.append(image)
                elif on_broken is None:
                    raise image
                else:
                    on_broken(str(image))
            if good:
                found = _predict_batch(trained, good, frame, autocast(trained.device, precision))
                yield from zip(found, [image.path for image in good], strict=True)


@dataclass(frozen=True)
class _Read:
    """A decoded image: `pixels` R x R x 3 uint8; `size`: width, height in px of the original."""

    name: str
    path: Path
    pixels: np.ndarray
    size: tuple[int, int]


def _decoded(
    images: Iterable[tuple[str, Path]], trained: TrainedRun, ahead: int, workers: int
) -> Generator[_Read | DataError, None, None]:
    """Images in order, decoded by threads at most `ahead` images before they are taken."""

    def read(name: str, path: Path) -> _Read | DataError:
        try:
            pixels = decode(path, trained.config.data.resize, exif=True)
            return _Read(name, path, pixels, image_size(path, exif=True))
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        pending: deque[Future[_Read | DataError]] = deque()
        for name, path in images:
            pending.append(pool.submit(read, name, path))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _predict_batch(
    trained: TrainedRun, images: list[_Read], frame: FrameName, context: AbstractContextManager[None]
) -> list[Prediction]:
    config = trained.config
    seen_in = Frame.of(frame, config.data)
    localizers = {trained.result: trained.localizer}
    models = Models(trained.classifier, None, localizers, config.initialization, config.refinement.crop_margin)
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
    with predicting(len(images)), context:
        seen = predict_batch(models, seen_in.see(pixels.to(trained.device)))
    box = seen.boxes[trained.result].double().cpu().numpy()  # B x 4, fractions of the frame
    box = seen_in.back(box, np.array([image.size for image in images]))  # px
    classes, scores, confidences = seen.top5[:, 0].tolist(), seen.top5_score[:, 0].tolist(), seen.confidence.tolist()
    return [
        Prediction(image.name, *image.size, k, trained.class_names[k], p, (b[0], b[1], b[2], b[3]), c)
        for image, k, p, b, c in zip(images, classes, scores, box.tolist(), confidences, strict=True)
    ]


def find_images(source: Path, skip: Path | None = None, others: PassedOver | None = None) -> Iterator[tuple[str, Path]]:
    """(name, path) of one file, or of all images below a folder in a fixed order, without holding the list.

    Names are relative with `/`. Hidden files and folders, those that systems make, links to folders, and the folder
    `skip` are passed over; `others` counts what is no image.
    """
    if not source.is_dir():
        yield source.name, source
        return
    passed = None if skip is None else skip.resolve()
    for parent, folders, files in os.walk(source):
        here = Path(parent)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f.lower() not in SYSTEM_FOLDERS)
        if passed is not None:
            folders[:] = [f for f in folders if (here / f).resolve() != passed]
        if others is not None:
            others.count(here)
        for file in sorted(files):
            if not file.startswith(".") and is_image(here / file):
                yield (here / file).relative_to(source).as_posix(), here / file


def predict_to(
    trained: TrainedRun,
    source: str | Path,
    output: str | Path | None = None,
    *,
    format: Format = "jsonl",
    frame: FrameName = "full_image",
    pictures: bool = False,
    min_confidence: float = 0.0,
    batch_size: int = 32,
    precision: str | None = None,
    workers: int = 0,
    show_progress: bool = False,
) -> PredictSummary:
    """Predicts an image or a folder of them (see `predict`), and writes the new folder `output`, or to standard output.

    `output` gets the format's files (see `lchp.deploy.formats.open_writer`) and, for `pictures`, copies with class and
    box drawn. It appears only when all is done: a run that is stopped leaves nothing. The file of the predictions is
    synced to disk before; pictures and YOLO's labels, as many files as images, are left to the system.
    min_confidence: for COCO and YOLO an image below it is left out (and counted), since an image without annotation
    would teach a detector that nothing is there; so is one whose box is thinner than a pixel.
    Unreadable images are reported on standard error, one line each, and counted.
    Raises DataError where there is no image, ConfigError for options that contradict each other or an unknown frame,
    and RunError where `output` cannot be written.
    """
    source, target = Path(source), None if output is None else Path(output)
    _check_options(target, format, pictures, min_confidence, batch_size, workers)
    if not source.exists():
        raise DataError(f"{source}: no such image or folder")
    others = PassedOver()
    total = sum(1 for _ in find_images(source, target, others))
    if not total:
        why = f"; {by_kind(others.undecodable)} cannot be decoded here" if others.undecodable else ""
        raise DataError(f"{source}: no images found ({' '.join(IMAGE_EXTENSIONS)}){why}")
    for note in others.notes(source):
        tqdm.write(note, file=sys.stderr)
    done = broken = left_out = 0
    begin = time.perf_counter()

    def report(line: str) -> None:
        nonlocal broken
        broken += 1
        bar.update()
        tqdm.write(line, file=sys.stderr)

    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, desc="predict", unit="img", disable=None if show_progress else True)
        )
        folder = stack.enter_context(published(target))
        write = stack.enter_context(open_writer(format, folder, trained.class_names))
        pool = stack.enter_context(ThreadPoolExecutor(workers or os.cpu_count()))
        options: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "workers": workers}
        found = predict(trained, find_images(source, target), frame=frame, on_broken=report, **options)
        stack.enter_context(contextlib.closing(found))  # pyright: ignore[reportArgumentType]
        while batch := list(islice(found, batch_size)):
            for prediction, path in batch:
                if format in ("coco", "yolo") and (prediction.confidence < min_confidence or _is_thin(prediction)):
                    left_out += 1
                else:
                    write(prediction, path)
            if pictures and folder is not None:
                files = [_picture_file(folder / PICTURES, prediction.image) for prediction, _ in batch]
                drawn = [pool.submit(_picture, *pair, file) for pair, file in zip(batch, files, strict=True)]
                for picture in drawn:
                    picture.result()
            done += len(batch)
            bar.update(len(batch))
    return PredictSummary(done, broken, left_out, time.perf_counter() - begin)


def _check_options(
    target: Path | None, format: str, pictures: bool, min_confidence: float, batch_size: int, workers: int
) -> None:
    if target is None and (pictures or format == "yolo"):
        raise ConfigError(f"{'--pictures' if pictures else '--format yolo'} needs --output DIR to write to")
    if target is not None:
        require_new_folder(target)
    elif sys.__stdout__ is None:
        raise ConfigError("standard output is closed; name --output DIR to write to")
    if not 0 <= min_confidence <= 1:
        raise ConfigError(f"min_confidence = {min_confidence}: expected in [0, 1]")
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: expected at least 1")
    if workers < 0:
        raise ConfigError(f"workers = {workers}: expected at least 0")


@contextlib.contextmanager
def published(target: Path | None) -> Iterator[Path | None]:
    """A folder beside `target` that takes its name when the block ends well and vanishes when it does not. Raises
    RunError where the system refuses to write it."""
    if target is None:
        yield None
        return
    runs.make_folder(target.parent)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield partial
            set_mode(partial, runs.allowed(0o777))  # mkdtemp's 0700 would hide it from a group
            runs.sync_folder(partial)
            os.replace(partial, target)
            runs.sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise runs.unwritable(target, error) from None


def _is_thin(prediction: Prediction) -> bool:
    x1, y1, x2, y2 = prediction.box
    return x2 - x1 < 1 or y2 - y1 < 1


def _picture_file(folder: Path, name: str) -> Path:
    """The file of an image's copy: a name that is not a JPEG's, or that another copy has, gets .jpg appended."""
    stem, suffix = (name, ".jpg") if not name.lower().endswith((".jpg", ".jpeg")) else os.path.splitext(name)
    return claim(folder, stem, suffix, suffix)


def _picture(prediction: Prediction, path: Path, file: Path) -> None:
    """A copy of the upright image with box, class and confidence, as JPEG."""
    image = Image.fromarray(decode(path, None, exif=True))
    draw_box(image, prediction.box, Style(YELLOW, line_width(image.size)))
    draw_label(image, prediction.box[:2], f"{prediction.class_name} {prediction.confidence:.2f}")
    encoded = io.BytesIO()  # an encoder that writes into the file does not say why it cannot
    image.save(encoded, "JPEG", quality=92)
    file.write_bytes(encoded.getvalue())


__all__ = ["PredictSummary", "Prediction", "TrainedRun", "find_images", "load_run", "predict", "predict_to"]
