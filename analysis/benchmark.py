"""What a step costs, of lchp and of the straightforward implementation (analysis/baseline.py), measured in one run.

python analysis/benchmark.py                                        # CPU: MobileNetV2 at 160 px; a few minutes
python analysis/benchmark.py --device cuda --backbone inception_v3 --size 448 --json out.json

Both sides compute the same boxes and the same first loss; that is checked first. Each figure is the median of several
measurements, taken in turns so that a machine's moods fall on both. A ratio is the straightforward implementation's
time divided by lchp's.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import baseline
import cv2
import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from lchp.config import TrainConfig, override
from lchp.console import guarded, parse
from lchp.data.base import Split
from lchp.data.images import ImageBatch as Stored
from lchp.data.images import Images, batches, open_images
from lchp.errors import ConfigError
from lchp.evaluation.frames import to_float
from lchp.files.runs import write_json
from lchp.files.targets import json_of, require_file
from lchp.method.batch import Batch, Step
from lchp.method.lchp import teach
from lchp.method.networks import Classifier, Localizer
from lchp.method.pseudo_boxes import algorithm_1, attention_boxes, update_teacher
from lchp.method.steps import Labels, label_views, localizer_step, padding, predict_boxes, refinement_step
from lchp.method.view_table import Boxes, ViewTable
from lchp.method.views import crop, general_view, sample_general, sample_strong, strong_view
from lchp.system.devices import autocast, device_name, peak_memory_mb, prepare, resolve_device, resolve_precision
from lchp.training.chain import chain_of
from lchp.training.definition import Training
from lchp.training.fit import take_step
from lchp.training.networks import build

CUB = 5994
"""Training images of CUB-200-2011."""


Figure = Literal["boxes", "strong_augmentation", "data", "stage1_step", "stage2_step"]


@dataclass
class Flags:
    """Measure lchp's steps against the straightforward implementation."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    size: int = 160
    """Side of the networks' input in pixels; images are stored at 8/7 of it, as in the paper's recipe."""
    backbone: str = "mobilenet_v2"
    """Classifier and localizer."""
    classes: int = 200
    """Classes of the classifier."""
    batch_size: int = 32
    """Images per step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of lchp's side; the straightforward one is fp32."""
    repeats: int = 5
    """Measurements of each figure."""
    steps: int = 0
    """Steps per measurement, between two waits for the device; 0: 10 on a GPU, 1 on a CPU."""
    workers: int = 0
    """Processes that decode for the straightforward side."""
    images: int = 128
    """JPEGs to draw for the data figures."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice (or OMP_NUM_THREADS)."""
    compile: bool = False
    """Run lchp's networks through torch.compile."""
    only: tuple[Figure, ...] = ()
    """Some of the ratios only, and no shares of the steps."""
    baseline: bool = True
    """Measure the straightforward implementation too; without it there are no ratios."""
    peak: float | None = None
    """The device's peak in TFLOP/s, to give what is achieved as a share of it."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Times:
    """Seconds of several measurements."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.seconds)


def in_turns(bench: "Bench", *bodies: Callable[[], Any]) -> list[Times]:
    """Times several bodies one after the other, --repeats times over, after one round that does not count. Each is run
    --steps times between two waits for the device, as a training runs it."""
    device, steps = bench.device, bench.flags.steps or (10 if bench.device.type == "cuda" else 1)
    found: list[list[float]] = [[] for _ in bodies]
    for n in range(bench.flags.repeats + 1):
        for body, seconds in zip(bodies, found, strict=True):
            wait(device)
            begin = time.perf_counter()
            for _ in range(steps):
                body()
            wait(device)
            if n:
                seconds.append((time.perf_counter() - begin) / steps)
    return [Times(tuple(s)) for s in found]


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw_jpegs(folder: Path, count: int, classes: int) -> Split:
    """Pictures of 500 x 375 px with some texture, as a split of files: what a data set's photographs cost to decode."""
    rng = np.random.default_rng(0)
    paths = []
    for n in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += rng.integers(-12, 13, picture.shape, dtype=np.int16)
        paths.append(folder / f"{n:05d}.jpg")
        if not paths[-1].exists():  # drawn for several processes once
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return Split(tuple(p.stem for p in paths), np.arange(count) % classes, tuple(paths))


@dataclass(frozen=True)
class Networks:
    """The networks of both stages in training mode, the classifier's step (Eq. 2) and what follows it (Eq. 7), and the
    pseudo boxes that it notes."""

    classifier: Classifier
    teacher: Classifier
    localizer: Localizer
    boxes: ViewTable
    step: Step
    updated: Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """What is measured on: the config, the device, the images and a batch of them."""

    flags: Flags
    config: TrainConfig
    device: torch.device
    precision: str
    split: Split
    images: Images

    def index(self, n: int) -> list[int]:
        """Positions of a batch in random order, another for each n."""
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(n))
        return order[: self.flags.batch_size].tolist()

    def views(self, n: int) -> Batch:
        """lchp's batch n, from its cache."""
        return self.seen(self.images.batch(self.index(n)), n)

    def stream(self) -> Iterator[Batch]:
        """lchp's batches one after the other without end, as its trainings take them: on a GPU pinned, a step ahead."""
        order = (self.index(n) for n in count())
        source = batches(self.images, list(islice(order, 10_000)), workers=0, pin=self.device.type == "cuda")
        yield from (self.seen(batch, n) for n, batch in enumerate(source))

    def seen(self, batch: Stored, n: int) -> Batch:
        """General views of a batch, on the device."""
        data = self.config.data
        offsets, flip = sample_general(len(batch.index), data.resize, data.image_size, generator(n))
        pixels = batch.images.to(self.device, non_blocking=True)
        view = to_float(general_view(pixels, offsets, flip, data.image_size))
        labels, index = (t.to(self.device, non_blocking=True) for t in (batch.labels, batch.index))
        return Batch(view, labels, generator(n), index=index)

    def plain_stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The straightforward batches without end: decoded by a DataLoader's workers where there are any."""
        assert self.split.paths is not None
        data = self.config.data
        source = baseline.Decoded(self.split.paths, self.split.labels, data.resize, data.image_size)
        sampler = RandomSampler(source, replacement=True, num_samples=10_000 * data.batch_size)
        loader = DataLoader(source, data.batch_size, sampler=sampler, num_workers=self.flags.workers, pin_memory=False)
        for images, labels in loader:
            yield images.to(self.device), labels.to(self.device)

    def amp(self) -> Any:
        """The context of lchp's side."""
        return autocast(self.device, self.precision)

    def networks(self) -> Networks:
        """Networks of lchp's side."""
        nets = build(chain_of(self.config, ""), self.flags.classes, self.device)
        classifier, localizer = nets.classifier.train(), nets.localizer.train()
        teaching = teach(classifier, self.config, len(self.split))
        teacher, boxes = (teaching.modules[name].to(self.device) for name in ("teacher", "boxes"))
        assert isinstance(teacher, Classifier)
        assert isinstance(boxes, ViewTable)
        if self.flags.compile:
            for net in (classifier, teacher, localizer):
                net.compile()
        return Networks(classifier, teacher, localizer, boxes, teaching.step, teaching.updated)

    def trained(
        self, net: nn.Module, step: Step, *, fp32: bool = False, updated: Callable[[], object] = lambda: None
    ) -> "Ours":
        """A step as lchp's loop takes it; the loss."""
        training = Training(
            "bench",
            1,
            self.flags.batch_size,
            {"network": net},
            step,
            lambda *_: (),
            "network",
            self.optimizer(net),
            autocast=nullcontext if fp32 else self.amp,
            updated=updated,
        )
        forward: Any = lambda part, epoch: step(net, part, epoch)  # noqa: E731
        return lambda batch: take_step(training, forward, batch, 0)["loss"]

    def optimizer(self, net: nn.Module, **more: Any) -> torch.optim.SGD:
        """SGD as lchp's, at a rate that changes next to nothing while it is timed."""
        more = more or ({"fused": True} if self.device.type == "cuda" else {})
        return torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-5, **more)


def generator(n: int) -> torch.Generator:
    """The draws of batch n."""
    return torch.Generator().manual_seed(n)


def open_bench(flags: Flags, folder: Path) -> Bench:
    """Draws the images and fills the cache. Raises ConfigError."""
    device = resolve_device(flags.device)
    config = override(
        TrainConfig(),
        {
            "data.name": "folder",
            "data.resize": flags.size + 2 * round(flags.size / 14),
            "data.image_size": flags.size,
            "data.batch_size": flags.batch_size,
            "data.cache": str(folder / "cache"),
            "model.classifier": flags.backbone,
            "model.localizer": flags.backbone,
            "model.pretrained": False,
            "device": flags.device,
            "threads": flags.threads,
        },
    )
    for name, value, least in (
        ("repeats", flags.repeats, 1),
        ("images", flags.images, flags.batch_size),
        ("classes", flags.classes, 2),
        ("steps", flags.steps, 0),
        ("workers", flags.workers, 0),
    ):
        if value < least:
            raise ConfigError(f"--{name} = {value}: expected at least {least}")
    if flags.peak is not None and not flags.peak > 0:
        raise ConfigError(f"--peak = {flags.peak}: expected the device's peak in TFLOP/s, above 0")
    prepare(config, device)
    split = draw_jpegs(folder, flags.images, flags.classes)
    images = open_images(split, config.data, show_progress=False)
    return Bench(flags, config, device, resolve_precision(flags.precision, device), split, images)


def wants_steps(flags: Flags) -> bool:
    """Whether networks are to be measured at all."""
    return not flags.only or any(name.endswith("_step") for name in flags.only)


def check_that_both_agree(bench: Bench) -> str:
    """The boxes of both sides, of attention and of strong views, and in fp32 their first L_init on the same images;
    AssertionError where they differ by more than stated."""
    size, first, second = bench.flags.size, bench.config.initialization, bench.config.refinement
    attention = torch.rand(64, 28, 28, generator=generator(1)) ** 4
    ours = attention_boxes(attention.to(bench.device), (size, size), first)[0].cpu() * size
    theirs = torch.tensor(baseline.attention_boxes(attention, size, first.threshold), dtype=torch.float32)
    assert (ours - theirs).abs().max() < 1e-3, "boxes of the attention differ"
    strong = sample_strong(64, second, generator(2))
    boxes = torch.rand(64, 2, 2, generator=generator(3)).sort(1).values.flatten(1)
    mapped = strong.axis_map().boxes(boxes)
    plain = torch.tensor([baseline.strong_box(box, strong, i) for i, box in enumerate(boxes.tolist())])
    assert (mapped - plain).abs().max() < 1e-4, "boxes of the strong view differ"
    said = "boxes of attention agree to 1e-3 px, of strong views to 1e-4"
    if not wants_steps(bench.flags):
        return said
    batch, nets = bench.views(0), bench.networks()
    steps = (ours_classifier(bench, nets, fp32=True), ours_localizer(bench, nets, fp32=True))
    plain = plain_stage1(bench, bench.networks())
    losses = [sum(float(step(batch)) for step in steps), float(plain(batch.images, batch.labels))]
    # masked images come in the same batch here and in one of their own there, which the classifier's BatchNorm sees
    assert abs(losses[0] - losses[1]) < 0.1 * losses[1], f"L_init is {losses[0]:.4f} here and {losses[1]:.4f} there"
    return f"{said}; L_init of the first batch {losses[0]:.4f} and {losses[1]:.4f}"


Ours = Callable[[Batch], Tensor]
Plain = Callable[[Tensor, Tensor], Tensor]


def ours_classifier(bench: Bench, nets: Networks, *, fp32: bool = False) -> Ours:
    """lchp's stage 1: the classifier, with its teacher."""
    return bench.trained(nets.classifier, nets.step, fp32=fp32, updated=nets.updated)


def ours_localizer(bench: Bench, nets: Networks, *, fp32: bool = False) -> Ours:
    """lchp's stage 1: the localizer, on the boxes that the classifier's training noted."""
    boxes, alpha = Boxes(nets.boxes, whole=False), bench.config.initialization.alpha

    def step(net: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        index, frame = batch.index, batch.frame
        return localizer_step(net, batch, *boxes.of(index, epoch, frame), alpha)  # pyright: ignore

    return bench.trained(nets.localizer, step, fp32=fp32)


def ours_stage1(bench: Bench, nets: Networks) -> Callable[[Iterator[Batch]], None]:
    """lchp's stage 1 on batches of a stream: the two trainings, each of which reads its own batch."""
    classifier, localizer = ours_classifier(bench, nets), ours_localizer(bench, nets)

    def step(stream: Iterator[Batch]) -> None:
        classifier(next(stream))
        localizer(next(stream))

    return step


def plain_stage1(bench: Bench, nets: Networks) -> Plain:
    """The straightforward stage 1."""
    first = bench.config.initialization
    optimizers = [bench.optimizer(n, fused=False) for n in (nets.classifier, nets.localizer)]
    return lambda x, y: baseline.initialization_step(
        nets.classifier,
        nets.teacher,
        nets.localizer,
        optimizers,
        x,
        y,
        source=first.attention,
        delta=first.threshold,
        alpha=first.alpha,
        beta=first.beta,
        fill=nets.teacher.mean,
    )


def plain_networks(bench: Bench) -> Networks:
    """Networks of the straightforward side: in PyTorch's default layout, not compiled."""
    nets = replace(bench, flags=replace(bench.flags, compile=False)).networks()
    for net in (nets.classifier, nets.teacher, nets.localizer):
        net.to(memory_format=torch.contiguous_format)
    return nets


def ours_stage2(bench: Bench, nets: Networks) -> Ours:
    """lchp's stage 2, with the localizer's own labels."""
    config, localizer, classifier = bench.config.refinement, nets.localizer, nets.classifier
    classifier.eval().requires_grad_(False)
    numbers = count()

    def step(net: nn.Module, batch: Batch, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        def label(batch: Batch) -> Labels:
            return label_views(localizer, classifier, batch.images, config)

        strong = sample_strong(len(batch), config, generator(next(numbers)))
        return refinement_step(net, replace(batch, strong=strong), label, config, localizer.mean)

    return bench.trained(localizer, step)


def plain_stage2(bench: Bench, nets: Networks) -> Plain:
    """The straightforward stage 2."""
    optimizer, tau = bench.optimizer(nets.localizer, fused=False), bench.config.refinement.tau
    nets.classifier.eval().requires_grad_(False)
    return lambda x, _: baseline.refinement_step(nets.classifier, nets.localizer, optimizer, x, tau)


def parts(bench: Bench) -> dict[str, dict[str, Callable[[], Any]]]:
    """The pieces of each of lchp's steps, on ready tensors; the networks' passes are those of `network`."""
    nets, first, second = bench.networks(), bench.config.initialization, bench.config.refinement
    batch = bench.views(0)
    x, y = batch.images, batch.labels
    both, strong = torch.cat([x, x]), sample_strong(len(x), second, generator(0))
    with torch.no_grad(), bench.amp():
        a = nets.teacher(x).attention(first.attention)
        b = predict_boxes(nets.localizer.eval(), x)
    nets.localizer.train()
    optimizers = [bench.optimizer(n) for n in (nets.classifier, nets.localizer)]
    loss = nn.functional.cross_entropy

    def train_classifier() -> None:
        with bench.amp():
            loss(nets.classifier(both).logits.float(), torch.cat([y, y])).backward()

    def train_localizer() -> None:
        with bench.amp():
            nets.localizer(x).square().mean().backward()

    def look(net: nn.Module, images: Tensor) -> None:
        training = net.training
        net.eval()
        with torch.no_grad(), bench.amp():
            net(images)
        net.train(training)

    def ask_teacher() -> None:
        look(nets.teacher, x)
        look(nets.teacher, x)

    def update(chosen: Sequence[torch.optim.Optimizer], *, teacher: bool) -> None:
        for optimizer in chosen:
            optimizer.step()
        if teacher:
            update_teacher(nets.teacher, nets.classifier, first.beta, first.teacher_buffers)

    train_classifier()
    train_localizer()  # the optimizers need gradients
    fill, stream = padding(nets.localizer.mean, second), bench.stream()
    return {
        "stage1": {
            "data, for each of the two trainings": lambda: (next(stream), next(stream)),
            "teacher": ask_teacher,
            "boxes and masks": lambda: algorithm_1(lambda _: a, x, first, nets.teacher.mean),
            "classifier": train_classifier,
            "localizer": train_localizer,
            "optimizer and teacher's update": lambda: update(optimizers, teacher=True),
        },
        "stage2": {
            "data": lambda: next(stream),
            "labels (localizer)": lambda: look(nets.localizer, x),
            "crop": lambda: crop(x, b),
            "confidence (classifier)": lambda: look(nets.classifier, x),
            "strong view": lambda: strong_view(x, strong, fill, second.augmenter),
            "localizer": train_localizer,
            "optimizer": lambda: update(optimizers[1:], teacher=False),
        },
    }


NETWORK = {
    "stage1": ("teacher", "classifier", "localizer"),
    "stage2": ("labels (localizer)", "confidence (classifier)", "localizer"),
}
"""Pieces that are the networks' own passes: what no implementation of the method can do without."""


def measure(bench: Bench) -> dict[str, Any]:
    """All figures: see `report`."""
    flags, device = bench.flags, bench.device
    out: dict[str, Any] = {
        "device": device_name(device),
        "precision": bench.precision,
        "ratios": {},
        "network_share": {},
    }
    out |= {"size": flags.size, "backbone": flags.backbone, "batch_size": flags.batch_size}
    out |= {"threads": torch.get_num_threads(), "seconds": {}, "spread": {}, "parts": {}, "memory_mb": {}}
    size, first, second = flags.size, bench.config.initialization, bench.config.refinement
    attention = (torch.rand(flags.batch_size, 28, 28, generator=generator(1)) ** 4).to(device)
    strong, x = sample_strong(flags.batch_size, second, generator(2)), bench.views(0).images
    boxes, black = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(flags.batch_size, 4), torch.zeros(3)
    stream, plain_stream = bench.stream(), bench.plain_stream()
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "boxes": (
            lambda: attention_boxes(attention, (size, size), first),
            lambda: baseline.attention_boxes(attention, size, first.threshold),
        ),
        "strong_augmentation": (
            lambda: strong_view(x, strong, black, second.augmenter),
            lambda: baseline.strong_views(x, boxes),
        ),
        "data": (lambda: next(stream), lambda: next(plain_stream)),
    }
    if wants_steps(flags):
        stage1, stage2 = ours_stage1(bench, bench.networks()), ours_stage2(bench, bench.networks())
        # networks in PyTorch's default layout, and never compiled
        plain1, plain2 = plain_stage1(bench, plain_networks(bench)), plain_stage2(bench, plain_networks(bench))
        pairs |= {
            "stage1_step": (lambda: stage1(stream), lambda: plain1(*next(plain_stream))),
            "stage2_step": (lambda: stage2(next(stream)), lambda: plain2(*next(plain_stream))),
        }
    for name, bodies in pairs.items():
        if flags.only and name not in flags.only:
            continue
        found = in_turns(bench, *(bodies if flags.baseline else bodies[:1]))
        out["seconds"][name] = [t.median for t in found]
        if flags.baseline:
            ratios = [b / a for a, b in zip(found[0].seconds, found[1].seconds, strict=True)]
            out["ratios"][name] = statistics.median(ratios)
            out["spread"][name] = [min(ratios), max(ratios)]
    if flags.only:
        out["memory_mb"]["process, both sides"] = peak_memory_mb(device)["process"]
        return out
    for stage, bodies in parts(bench).items():

        def networks(passes: Sequence[Callable[[], Any]] = [bodies[name] for name in NETWORK[stage]]) -> None:
            for one in passes:
                one()

        *each, alone, whole = in_turns(bench, *bodies.values(), networks, pairs[f"{stage}_step"][0])
        seconds = dict(zip(bodies, (t.median for t in each), strict=True))
        out["parts"][stage] = seconds | {"the networks' passes alone": alone.median, "step": whole.median}
        shares = [a / b for a, b in zip(alone.seconds, whole.seconds, strict=True)]
        out["network_share"][stage] = statistics.median(shares)
    out["images_per_second"] = {s: flags.batch_size / out["seconds"][f"{s}_step"][0] for s in NETWORK}
    out["tflops"] = {s: flops(bench, s) / out["seconds"][f"{s}_step"][0] / 1e12 for s in NETWORK}
    if device.type == "cuda":
        for stage in NETWORK:
            for side, step in zip(("lchp", "straightforward"), pairs[f"{stage}_step"], strict=True):
                torch.cuda.reset_peak_memory_stats(device)
                step()
                out["memory_mb"][f"{side}, {stage}"] = peak_memory_mb(device)["gpu"]
        out["busy_share"] = {s: busy_share(pairs[f"{s}_step"][0]) for s in NETWORK}
    out["memory_mb"]["process, both sides"] = peak_memory_mb(device)["process"]
    return out


def flops(bench: Bench, stage: str) -> float:
    """Floating-point operations of a step's networks, as torch counts them (matrix products and convolutions)."""
    from torch.utils.flop_counter import FlopCounterMode

    bodies = parts(replace(bench, flags=replace(bench.flags, compile=False)))[stage]  # compiled code is not counted
    with FlopCounterMode(display=False) as counter:
        for name in NETWORK[stage]:
            bodies[name]()
    return float(counter.get_total_flops())


def busy_share(step: Callable[[], Any], steps: int = 10) -> float:
    """Share of the wall time in which the GPU computes: kernels' time over the time of several steps."""
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
    # kernels one after the other on one stream; copies and the profiler's own marks are not computing
    kernels = (e for e in trace.events() or () if not e.name.startswith(("Mem", "Optimizer", "ProfilerStep")))
    return sum(event.device_time_total for event in kernels) / 1e6 / wall


def report(out: dict[str, Any], flags: Flags) -> str:
    """The figures as tables."""
    titles = {
        "boxes": "boxes of a batch's attention",
        "strong_augmentation": "strong views of a batch",
        "data": "a batch of training images",
        "stage1_step": "stage 1: disk to updated weights",
        "stage2_step": "stage 2: disk to updated weights",
    }
    rows = []
    for name, title in titles.items():
        if name not in out["seconds"]:
            continue
        ours, *theirs = (1e3 * s for s in out["seconds"][name])
        ratio = (
            f"{out['ratios'][name]:.1f} ({out['spread'][name][0]:.1f}-{out['spread'][name][1]:.1f})" if theirs else ""
        )
        rows.append([title, f"{ours:.1f}", *(f"{t:.1f}" for t in theirs), ratio])
    head = ["", "lchp (ms)", *(["straightforward (ms)"] if flags.baseline else []), "ratio (min-max)"]
    texts = [
        f"{out['device']}, {out['threads']} CPU thread(s), {out['backbone']}, {out['size']} px, "
        f"batch {out['batch_size']}, lchp in {out['precision']}{', compiled' if flags.compile else ''}, "
        f"median of {flags.repeats}",
        tabulate(rows, head, disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1))),
    ]
    for stage, title in (("stage1", "stage 1"), ("stage2", "stage 2")) if not flags.only else ():
        whole = out["parts"][stage]["step"]
        named = [[n, f"{1e3 * s:.1f}", f"{100 * s / whole:.1f}"] for n, s in out["parts"][stage].items()]
        speed, share = out["images_per_second"][stage], out["network_share"][stage]
        texts.append(
            tabulate(named, [title, "ms", "% of the step"], disable_numparse=True, colalign=("left", "right", "right"))
            + f"\n\nthe networks' own passes are {100 * share:.1f} % of the step; {speed:.1f} images/s, "
            f"{out['tflops'][stage]:.2f} TFLOP/s"
            + (f" ({100 * out['tflops'][stage] / flags.peak:.0f} % of {flags.peak:g})" if flags.peak else "")
            + (f", GPU busy {100 * out['busy_share'][stage]:.0f} %" if "busy_share" in out else "")
        )
    if not flags.only:
        hours = sum(40 * CUB / out["images_per_second"][s] for s in NETWORK) / 3600
        texts.append(f"CUB-200-2011, 40 + 40 epochs at this speed: {hours:.1f} hours")
    texts.append("peak memory: " + ", ".join(f"{name} {mb:.0f} MB" for name, mb in out["memory_mb"].items()))
    return "\n\n".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes --json; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: Flags = parse(Flags, arguments, "benchmark.py")
        if flags.json:
            require_file(flags.json, "json", json_of("device", "precision", "ratios"), "result of this script")
        with tempfile.TemporaryDirectory() as folder:
            bench = open_bench(flags, Path(folder))
            if flags.baseline:
                print(check_that_both_agree(bench))
            found = measure(bench)
        print(report(found, flags))
        if flags.json:
            write_json(flags.json, found)
        return 0

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
