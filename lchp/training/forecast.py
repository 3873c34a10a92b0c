"""What a training will take, before it begins: measured on a few batches, of which nothing is kept."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lchp.config import TrainConfig
from lchp.data import DataSet, load
from lchp.data.base import Split, require_classes
from lchp.data.cache import shown_bytes, size_of
from lchp.data.decode import header
from lchp.data.images import open_dataset
from lchp.errors import DataError
from lchp.method.batch import nothing
from lchp.method.choice import looked_at, spared
from lchp.system.devices import forget_peak_memory, peak_memory_mb, prepare, resolve_device, resolve_precision
from lchp.training.chain import Kind, chain_of
from lchp.training.context import Context
from lchp.training.networks import build
from lchp.training.tried import Counts, tried_links

BATCHES = 2
"""Steps of each of two epochs that are tried; the first epoch is to warm up and does not count."""
MOST = 0.3
"""Seconds that the classifier's forward pass of a batch may take on a CPU; where it takes more, a batch has fewer."""
FEW = 4
"""Images of a batch at least."""
HEADERS = 500
"""Images whose size tells how large the cache will be."""


@dataclass(frozen=True)
class LinkForecast:
    """One link of a chain: how often over how many batches, the seconds of an epoch, and those that the predictions of
    its result take. besides: the seconds of what else is computed for it, by name; size: bytes of its checkpoint."""

    kind: Kind
    stage: str
    epochs: int
    steps: int
    seconds: float
    predictions: float
    besides: Mapping[str, float] = field(default_factory=dict)
    size: int = 0

    @property
    def whole(self) -> float:
        """Seconds in all."""
        return self.epochs * self.seconds + self.predictions + sum(self.besides.values())


@dataclass(frozen=True)
class Forecast:
    """`memory`: MB at the peak so far, of this process and of the GPU, where `images` made a batch. cache: bytes of the
    image cache; filling: seconds that it takes to fill it, where it is not there yet."""

    links: tuple[LinkForecast, ...]
    memory: Mapping[str, float]
    images: int
    cache: int
    filling: float = 0.0

    @property
    def seconds(self) -> float:
        """In all."""
        return self.filling + sum(link.whole for link in self.links)

    @property
    def checkpoints(self) -> int:
        """Bytes of all checkpoints."""
        return sum(link.size for link in self.links)

    def text(self, config: TrainConfig) -> str:
        """A few lines for a terminal."""
        width = max(len(link.kind) for link in self.links)
        lines = ["What is to come, measured on a few batches:"]
        for link in self.links:
            if not link.epochs:
                lines.append(f"  {link.kind:<{width}}  nothing to train")
                continue
            if not link.seconds:
                what = "read from the file" if config.method.boxes else "a pass over the training images, not tried"
                lines.append(f"  {link.kind:<{width}}  {what}")
                continue
            each = f"{link.epochs} x {link.steps} steps, {link.seconds / link.steps:.2g} s each"
            then = f", test images {spoken(link.predictions)}" if link.predictions >= 1 else ""
            lines.append(f"  {link.kind:<{width}}  {each}: {spoken(link.epochs * link.seconds)}{then}")
        besides = {"image cache, unless it is there": self.filling}
        for link in self.links:
            besides |= link.besides
        long = [f"{name} ({spoken(seconds)})" for name, seconds in besides.items() if seconds >= 1]
        lines += [f"  besides: {'; '.join(long)}"] if long else []
        above = "more than " if self.images < config.data.batch_size else ""
        memory = ", ".join(f"{above}{mb / 1000:.1f} GB of {'memory' if name == 'process' else name.upper()}"
                           for name, mb in self.memory.items())  # fmt: skip
        disk = f"run folder {shown_bytes(self.checkpoints)}"
        disk += f", image cache {shown_bytes(self.cache)}" if self.cache else ""
        return "\n".join([*lines, f"in all about {spoken(self.seconds)}; {memory}; {disk}"])


def spoken(seconds: float) -> str:
    """A time as people say it: `38 seconds`, `12 minutes`, `6.5 hours`, `3.2 days`."""
    for unit, size, least in (("days", 86400, 2 * 86400), ("hours", 3600, 2 * 3600), ("minutes", 60, 120)):
        if seconds >= least:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return "1 second" if f"{seconds:.0f}" == "1" else f"{seconds:.0f} seconds"


def forecast(
    config: TrainConfig,
    last: Kind | None = None,
    *,
    without: tuple[Kind, ...] = (),
    dataset: DataSet | None = None,
    begin: Callable[[], object] = nothing,
) -> Forecast:
    """Tries a few batches of each link of a run up to `last`, and adds up. Links of `without`, which another run has,
    are tried and not counted. dataset: the config's, where it has been read. begin: called before anything is measured,
    where nothing is missing. The GPU's peak memory is counted anew from here on. Raises an LchpError for what is not
    there."""
    device = resolve_device(config.device)
    try:
        return _forecast(config, device, last, without, dataset, begin)
    finally:
        forget_peak_memory(device)


def _forecast(
    config: TrainConfig,
    device: torch.device,
    last: Kind | None,
    without: tuple[Kind, ...],
    dataset: DataSet | None,
    begin: Callable[[], object],
) -> Forecast:
    prepare(config, device)
    dataset = load(config.data) if dataset is None else dataset
    require_classes(dataset)
    classes = len(dataset.class_names)
    train = max(1, round(len(dataset.train) * (1 - config.data.validation)))
    epochs = min(config.initialization.epochs, 2)
    after = min(config.initialization.auto_after, epochs)
    first = replace(config.initialization, epochs=epochs, auto_after=after, localizer_start=0)
    whole = chain_of(config, "", last=last)
    with quiet():
        nets = build(whole, classes, device)
    begin()
    with quiet(), _some(dataset, config) as (context, opening):
        batch = config.data.batch_size
        if device.type == "cpu":
            one = _seconds_of_one(context, nets.classifier)
            batch = min(batch, max(FEW, int(MOST / max(one, 1e-6))))
        del nets
        # tau 0: networks that have hardly begun are confident of nothing
        second = replace(config.refinement, epochs=2, tau=0.0)
        data = replace(context.config.data, batch_size=batch)
        short = replace(config, data=data, initialization=first, refinement=second)
        some = np.arange(min(len(context.images), BATCHES * batch))
        tests = np.arange(min(len(context.test), BATCHES * batch))
        context = replace(context, config=short, images=context.images.select(some), test=context.test.select(tests))
        chain = chain_of(short, "", last=last)
        counts = Counts(train, len(dataset.train) - train, len(dataset.test), config.data.batch_size)
        tried = tried_links(chain, context, classes, counts, whole)
        memory = peak_memory_mb(device)
        opened = len(context.dataset.train) + len(context.dataset.test)
    links, teachers = [], 0
    kept_back = len(spared([0] * train)) if "choice" in whole else 0
    for link in (each for each in whole if each.kind not in without):
        images = {"choice": kept_back or len(looked_at(train)), "classifier": train - kept_back}.get(link.kind, train)
        found, each = tried[link.kind], max(1, images // config.data.batch_size)
        epoch = found.seconds if link.kind == "choice" else images / len(some) * found.seconds
        predictions = len(dataset.test) / max(1, len(tests)) * found.predicting
        of = link.kind, link.stage, link.epochs - link.first
        links.append(LinkForecast(*of, each, epoch, predictions, found.besides, found.size))
        teachers += found.teachers
    most = "gpu" if "gpu" in memory else "process"
    memory = {**memory, most: memory[most] + teachers / 1e6}
    cache = cache_size(dataset, config)
    filling = (len(dataset.train) + len(dataset.test)) / opened * opening if cache else 0.0
    return Forecast(tuple(links), memory, batch, cache, filling)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block nothing is logged: what is tried says nothing of its epochs."""
    logger = logging.getLogger("lchp")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _some(dataset: DataSet, config: TrainConfig) -> Iterator[tuple[Context, float]]:
    """A context of some images of every split, whose cache is thrown away, and the seconds that opening them took."""
    count = BATCHES * config.data.batch_size
    train, test = _first(dataset.train, count), _first(dataset.test, count)
    # test images of classes that the few training images lack would be left out; no time depends on a label
    test = replace(test, labels=np.resize(train.labels, len(test)))
    few = replace(dataset, train=train, test=test, problems=())
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory() as folder:
        cache = "off" if config.data.cache == "off" else folder
        data = replace(config.data, cache=cache, validation=0.0, skip_bad=True)
        begin = time.perf_counter()
        whole, images, test = open_dataset(few, data, show_progress=False)
        took = time.perf_counter() - begin
        short, precision = replace(config, data=data), resolve_precision(config.precision, device)
        yield Context(short, whole, images, device, precision, False, test, "", ""), took


def _first(split: Split, count: int) -> Split:
    """Images from all over a split, as many classes as may be."""
    return split.select(np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)))


def _seconds_of_one(context: Context, classifier: torch.nn.Module | None) -> float:
    """Of an image's forward pass on a CPU, beside a few others."""
    if classifier is None:
        return 0.0
    size = context.config.data.image_size
    images = torch.zeros(FEW, 3, size, size)
    was = classifier.training
    classifier.eval()
    with torch.inference_mode(), context.autocast:
        classifier(images)
        begin = time.perf_counter()
        classifier(images)
        took = (time.perf_counter() - begin) / FEW
    classifier.train(was)
    return took


def cache_size(dataset: DataSet, config: TrainConfig) -> int:
    """Bytes of the image cache, by the sizes of a few hundred images; 0 where there is none to be made."""
    if config.data.cache == "off":
        return 0
    paths = [path for split in (dataset.train, dataset.test) for path in split.paths or ()]
    if not paths:
        return 0
    headers = []
    for i in np.unique(np.linspace(0, len(paths) - 1, min(HEADERS, len(paths))).astype(int)):
        with suppress(DataError):  # training says it
            headers.append(header(paths[i]))
    found = size_of(np.array(headers), config.data.resize) if headers else 0
    return int(found / max(1, len(headers)) * len(paths))
