"""A finished run as a tool: class, box and confidence of any image, streamed into a folder or to standard output."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image

from lchp.data.annotations import IMAGE_EXTENSIONS, SYSTEM_FOLDERS, PassedOver, by_kind
from lchp.data.decode import decode, image_size, is_image
from lchp.deploy.formats import ANNOTATIONS, LEAST_AREA, Detected, Format, Prediction, check_options, open_writer
from lchp.deploy.trained import TrainedRun
from lchp.errors import ConfigError, DataError
from lchp.evaluation.frames import Frame
from lchp.evaluation.inference import known_or_first, predict_batch, predict_objects, predicting
from lchp.files import runs
from lchp.files.filesystem import set_mode
from lchp.files.schema import FrameName
from lchp.files.targets import claim
from lchp.pictures import YELLOW, Style, draw_box, draw_label, line_width
from lchp.system.devices import autocast, resolve_precision
from lchp.system.progress import tqdm

PICTURES = "pictures"


@dataclass(frozen=True)
class PredictSummary:
    """What `predict_to` did: images predicted, images that could not be read, those left out of annotations; seconds;
    of the others the objects, and the images that have none; and objects that were too thin for annotations."""

    images: int
    broken: int
    left_out: int
    seconds: float
    objects: int
    empty: int
    thin: int = 0


def predict(
    trained: TrainedRun,
    images: Iterable[tuple[str, Path]],
    *,
    frame: FrameName = "full_image",
    several: bool = False,
    least_area: float = LEAST_AREA,
    least_confidence: float = 0.0,
    labels: Mapping[str, int] = MappingProxyType({}),
    batch_size: int = 32,
    precision: str | None = None,
    workers: int = 0,
    on_broken: Callable[[str], object] | None = None,
) -> Iterator[tuple[Prediction, Path]]:
    """Predictions of (name, path) pairs, in their order; a few batches of images are in memory at a time.

    several: all objects of an image, in place of one box: what `trained.source` (which it needs) finds in at least
    `least_area` of the view. least_confidence: an object below it is none; an image can have none.
    labels: class ids by name, of images whose class is known. A map's box is that of the class, of others that of the
    class that they are taken for.
    frame: what the networks see, `full_image` (the whole image, squeezed to a square) or `center_crop` (the centre crop
    of the training recipe; the box comes back in px of the whole image all the same).
    Pictures are turned upright by their EXIF orientation, whatever the run was trained on: sizes and boxes are those of
    the upright picture, as detectors and viewers read it.
    precision: fp32 or bf16, by default the run's. workers: decoding threads, 0: one per core. on_broken: is given one
    line per unreadable image, which is left out; without it DataError is raised.
    """
    precision = resolve_precision(precision or trained.config.precision, trained.device)
    what = _Asked(frame, several, least_area, least_confidence, labels)
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
                found = _predict_batch(trained, good, what, autocast(trained.device, precision))
                yield from zip(found, [image.path for image in good], strict=True)


@dataclass(frozen=True)
class _Asked:
    """What is asked of images; see `predict`."""

    frame: FrameName
    several: bool
    least_area: float
    least_confidence: float
    labels: Mapping[str, int]


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
    trained: TrainedRun, images: list[_Read], what: _Asked, context: AbstractContextManager[None]
) -> list[Prediction]:
    seen_in = Frame.of(what.frame, trained.config.data)
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
    known = torch.tensor([what.labels.get(image.name, -1) for image in images], device=trained.device)
    with predicting(len(images)), context:
        x = seen_in.see(pixels.to(trained.device))
        if what.several:
            assert trained.source is not None, "load_run(..., localizer=False)"
            seen = predict_objects(trained.models, trained.source.masks, x, known, what.least_area)
            of_class, boxes, confidences = seen.of_class, seen.boxes, seen.confidence
        else:
            seen = predict_batch(trained.models, x, known)
            of_class = known_or_first(known, seen.top5)
            boxes, confidences = seen.boxes[trained.result].split(1), seen.confidence.split(1)
    scores = seen.scores.gather(1, of_class[:, None])[:, 0].tolist()
    out = []
    for image, k, p, found, sure in zip(images, of_class.tolist(), scores, boxes, confidences, strict=True):
        corners = seen_in.back(found.double().cpu().numpy(), np.array([image.size] * len(found)).reshape(-1, 2))  # px
        pairs = zip(corners.tolist(), sure.tolist(), strict=True)
        objects = tuple(Detected((b[0], b[1], b[2], b[3]), c) for b, c in pairs)
        there = tuple(o for o in objects if o.confidence >= what.least_confidence)
        out.append(
            Prediction(
                image.name,
                *image.size,
                k,
                trained.class_names[k],
                p,
                there[0].box if there else None,
                objects[0].confidence if objects else 0.0,
                there if what.several else None,
            )
        )
    return out


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
    least_confidence: float = 0.0,
    several: bool = False,
    least_area: float = LEAST_AREA,
    labels: Mapping[str, int] = MappingProxyType({}),
    batch_size: int = 32,
    precision: str | None = None,
    workers: int = 0,
    show_progress: bool = False,
) -> PredictSummary:
    """Predicts an image or a folder of them (see `predict`), and writes the new folder `output`, or to standard output.

    `output` gets the format's files (see `lchp.deploy.formats.open_writer`) and, for `pictures`, copies with class and
    box drawn. It appears only when all is done: a run that is stopped leaves nothing. The file of the predictions is
    synced to disk before; pictures and YOLO's labels, as many files as images, are left to the system.
    min_confidence: an image below it is left out of annotations (and counted), since an image without one would teach a
    detector that nothing is there; so is one whose box is thinner than a pixel. Of several objects those thinner than a
    pixel are left out (and counted), and the image with them where it has no other. least_confidence: an image below it
    is written as one where nothing is.
    Unreadable images of a folder are reported on standard error, one line each, and counted.
    Raises DataError where there is no image, or the one that is named cannot be read, ConfigError for options that
    contradict each other or an unknown frame, and RunError where `output` cannot be written.
    """
    source, target = Path(source), None if output is None else Path(output)
    shares = {"min_confidence": min_confidence, "least_confidence": least_confidence, "least_area": least_area}
    check_options(source, target, format, shares, pictures=pictures, several=several)
    for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if number < least:
            raise ConfigError(f"{name} = {number}: expected at least {least}")
    others = PassedOver()
    total = sum(1 for _ in find_images(source, target, others))
    if not total:
        why = f"; {by_kind(others.undecodable)} cannot be decoded here" if others.undecodable else ""
        raise DataError(f"{source}: no images found ({' '.join(IMAGE_EXTENSIONS)}){why}")
    for note in others.notes(source):
        tqdm.write(note, file=sys.stderr)
    done = broken = left_out = objects = empty = thin = 0
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
        options: dict[str, Any] = {"several": several, "least_area": least_area, "least_confidence": least_confidence}
        options |= {"labels": labels, "batch_size": batch_size, "precision": precision, "workers": workers}
        options |= {"on_broken": report if source.is_dir() else None}
        found = predict(trained, find_images(source, target), frame=frame, **options)
        stack.enter_context(contextlib.closing(found))  # pyright: ignore[reportArgumentType]
        while batch := list(islice(found, batch_size)):
            for prediction, path in batch:
                if format in ANNOTATIONS:
                    annotated = _without_thin(prediction)
                    if annotated is None or annotated.confidence < min_confidence:
                        left_out += 1
                        continue
                    thin += len(prediction.found) - len(annotated.found)
                    prediction = annotated
                write(prediction, path)
                objects += len(prediction.found)
                empty += not prediction.found
            if pictures and folder is not None:
                files = [_picture_file(folder / PICTURES, prediction.image) for prediction, _ in batch]
                drawn = [pool.submit(_picture, *pair, file) for pair, file in zip(batch, files, strict=True)]
                for picture in drawn:
                    picture.result()
            done += len(batch)
            bar.update(len(batch))
    return PredictSummary(done, broken, left_out, time.perf_counter() - begin, objects, empty, thin)


@contextlib.contextmanager
def published(target: Path | None, *, replaces: bool = False) -> Iterator[Path | None]:
    """A folder beside `target` that takes its name when the block ends well and vanishes when it does not. replaces:
    a folder lies there, which then goes. Raises RunError where the system refuses to write it."""
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
            if replaces:
                _take_place(partial, target)
            else:
                os.replace(partial, target)
            runs.sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise runs.unwritable(target, error) from None


def _take_place(made: Path, target: Path) -> None:
    """Gives a folder the name of another, which goes only then."""
    before = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    os.replace(target, before)
    try:
        os.replace(made, target)
    except BaseException:
        os.replace(before, target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _without_thin(prediction: Prediction) -> Prediction | None:
    """An image's prediction without the objects that are thinner than a pixel; None where they are all it has."""
    kept = tuple(d for d in prediction.found if min(d.box[2] - d.box[0], d.box[3] - d.box[1]) >= 1)
    if len(kept) == len(prediction.found):
        return prediction
    return replace(prediction, box=kept[0].box, confidence=kept[0].confidence, objects=kept) if kept else None


def _picture_file(folder: Path, name: str) -> Path:
    """The file of an image's copy: a name that is not a JPEG's, or that another copy has, gets .jpg appended."""
    stem, suffix = (name, ".jpg") if not name.lower().endswith((".jpg", ".jpeg")) else os.path.splitext(name)
    return claim(folder, stem, suffix, suffix)


def _picture(prediction: Prediction, path: Path, file: Path) -> None:
    """A copy of the upright image with boxes, class and confidence, as JPEG."""
    image = Image.fromarray(decode(path, None, exif=True))
    for detected in prediction.found:
        draw_box(image, detected.box, Style(YELLOW, line_width(image.size)))
    for detected in prediction.found:
        draw_label(image, detected.box[:2], f"{prediction.class_name} {detected.confidence:.2f}")
    if not prediction.found:
        draw_label(image, (0, 0), f"nothing {prediction.confidence:.2f}")
    encoded = io.BytesIO()  # an encoder that writes into the file does not say why it cannot
    image.save(encoded, "JPEG", quality=92)
    file.write_bytes(encoded.getvalue())


__all__ = ["PredictSummary", "Prediction", "find_images", "predict", "predict_to"]
