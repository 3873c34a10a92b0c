"""train(config) -> Result: one run of both stages, free of Ray."""

import contextlib
import copy
import itertools
import logging
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from lchp import distributed, runs
from lchp.augment import StrongParameters
from lchp.backbones import weights_identity
from lchp.checkpoints import load_checkpoint
from lchp.compared import (
    REGRESSION,
    after_stage1,
    box_source,
    build_classifier,
    chosen,
    label,
    map_source,
    regress,
    stage1_of,
    train_classifier,
)
from lchp.config import PLACES, TrainConfig, show, to_flat
from lchp.context import Context, describe_environment, open_context
from lchp.devices import peak_memory_mb, resolve_device, resolve_precision
from lchp.distributed import share_batch_statistics
from lchp.errors import ConfigError, RunError
from lchp.inference import Models
from lchp.interrupt import Stop
from lchp.locks import LOCK, Claim, HeldError, locked
from lchp.loop import Chunks, Metrics, Stage, epoch_seed, fit, make_schedule
from lchp.measure import kept_boxes, known_kept, record_predictions, validate
from lchp.networks import Classifier, Localizer
from lchp.pseudo import make_teacher
from lchp.records import read_predictions
from lchp.runs import CHECKPOINTS, ENVIRONMENT, SUMMARY
from lchp.stages import Networks, freeze_batch_norm, initialization_step, refinement_step
from lchp.views import epoch_order, general_batches, images_of, strong_batches

log = logging.getLogger(__name__)

RECIPE_VERSION = 4
"""Raise it when the maths changes, so that a result trained by the old one is not taken for the new."""

INITIALIZATION, REFINEMENT = "initialization", "refinement"
STATISTICS_BATCHES = 200
"""At most so many batches give the BatchNorm statistics that LCHP-R is left with; more would change nothing."""
IDLE_EPOCHS = 3
"""Stage 2 fails after so many epochs in a row in which no box was confident enough to teach."""
StageChoice = Literal["both", "init", "refine"]


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, the config it received, and its summary (see `lchp.records.summarize`)."""

    run: Path
    config: TrainConfig
    summary: dict[str, Any]

    def predictions(self) -> Any:
        """predictions.parquet as a pyarrow Table."""
        return read_predictions(self.run)


def train(
    config: TrainConfig,
    on_epoch: Callable[[Metrics], None] | None = None,
    *,
    output: str | Path | None = None,
    stage: StageChoice = "both",
    source: str | Path | None = None,
    resume: bool = False,
    show_progress: bool = False,
    stop: Stop | None = None,
) -> Result:
    """Trains, predicts the test split in both frames, and writes the run folder `output` (None: runs/DATA-seedN-TIME, a
    name that no other run has). The folder is locked for as long as that takes.

    stage: `both`, `init` (stage 1 alone), or `refine` (stage 2 alone, from stage 1 of the run folder `source`).
    resume: go on from the newest checkpoint in `output`. on_epoch: called with each epoch's metrics. stop: where it is
    asked, a checkpoint is written at the end of the step and Interrupted is raised.
    Raises an LchpError for anything a user can mend.
    """
    unique = output is None
    if output is None:
        if resume:
            raise ConfigError("--resume needs --output DIR, the run folder to go on with")
        output = Path("runs") / f"{config.data.name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = Path(output)
    if stage not in get_args(StageChoice):
        raise ConfigError(f"stage = {stage!r}: expected one of {', '.join(get_args(StageChoice))}")
    if (stage == "refine") != (source is not None):
        raise ConfigError("stage = 'refine' needs the run folder of its stage 1 (--from DIR), and only it takes one")
    if not unique:
        _check_claim(run, config, stage, resume)
    made = not unique and run.is_dir()
    distributed.barrier()  # worker 0 claims the folder below: not before all have looked
    with contextlib.ExitStack() as held:
        if resume:
            mine = distributed.from_first(lambda: held.enter_context(locked(run / LOCK, remove=True)))
            claim = partial(_claim_again, mine, config)
        else:
            claim = partial(_claim, held, run, config, made=made, unique=unique)
        options = {"resume": resume, "on_epoch": on_epoch, "show_progress": show_progress, "stop": stop}
        return _train(config, claim, stage, source, options)


def _train(
    config: TrainConfig,
    claim: Callable[[], Claim],
    stage: StageChoice,
    source: str | Path | None,
    options: dict[str, Any],
) -> Result:
    """As `train`, into the run folder that `claim` makes this run's own."""
    writes = distributed.rank() == 0
    context = open_context(config, options["show_progress"])
    begin = time.perf_counter()
    identity = initialization_identity(config, context.training_fingerprint)
    first = Path(source or "") / CHECKPOINTS / f"{INITIALIZATION}.pt"
    stage1 = {"checkpoint": str(first.resolve()), "identity": identity} if stage == "refine" else None
    # stage1: where stage 2 alone found its classifier
    environment = describe_environment(context) | {"stage1": stage1, "method": label(config)}

    nets = build(config, len(context.dataset.class_names), context.device)
    if stage == "refine":
        _load_initialization(nets, first, context)
    if config.compile:
        for net in (nets.classifier, nets.teacher, nets.localizer):
            net.compile()  # in place: the names of the weights stay
    claimed = distributed.from_first(claim)  # only now: a config that cannot start leaves no folder behind
    run = claimed.path.parent
    earlier = sum(line.get("seconds", 0.0) for line in runs.read_metrics(run))
    if stage != "refine":
        first = run / CHECKPOINTS / f"{INITIALIZATION}.pt"
    if writes:
        runs.write_json(run / ENVIRONMENT, environment, parents=False)  # a stopped run needs its class names too
        runs.make_folder(run / CHECKPOINTS)
    board = _open_board(run, context) if config.tensorboard and writes else None

    def record(metrics: Metrics) -> None:
        claimed.check()
        runs.append_metrics(run, metrics)
        if board is not None:
            board.scalars(metrics)

    plan = Plan(run, first, stage, source, board, options | {"record": record})
    models, kept = (_train_lchp if chosen(config) is None else _train_compared)(nets, context, plan)
    if board is not None:
        board.close()
    summary = record_predictions(run, models, context, check=claimed.check) | {"kept": kept}
    if context.held_out is not None:
        summary["validation"] = validate(models, context, context.held_out)
    if not writes:
        return Result(run, config, summary)
    claimed.check()
    seconds = {"total": earlier + time.perf_counter() - begin}
    for line in runs.read_metrics(run):  # of all sessions of a run that was resumed
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line.get("seconds", 0.0)
    runs.write_json(
        run / ENVIRONMENT,
        environment
        | {
            "wall_seconds": {k: round(v, 2) for k, v in seconds.items()},
            "peak_memory_mb": peak_memory_mb(context.device),
            "recipe": RECIPE_VERSION,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        parents=False,
    )
    runs.write_json(run / SUMMARY, summary, parents=False)
    return Result(run, config, summary)


@dataclass(frozen=True)
class Plan:
    """What of a run is to be trained, and where: stage 1's checkpoint is `first`; `options` are those of `fit`."""

    run: Path
    first: Path
    stage: StageChoice
    source: str | Path | None
    board: Any
    options: dict[str, Any]


def _train_lchp(nets: Networks, context: Context, plan: Plan) -> tuple[Models, dict[str, Any]]:
    """LCHP's stages; what predicts afterwards, and the kept training boxes."""
    config, board = context.config, plan.board
    if plan.stage != "refine":
        initialize(nets, context, plan.first, **plan.options)
    lchp_i = copy.deepcopy(nets.localizer)
    localizers = {"lchp_i": lchp_i}
    margin = config.refinement.crop_margin
    models = Models(nets.classifier, nets.teacher, localizers, config.initialization, margin)
    if board is not None and plan.stage != "refine":
        board.pictures(INITIALIZATION, config.initialization.epochs, models, context.autocast)
    kept = {}
    if config.evaluation.kept_by_tau:
        kept = distributed.from_first(lambda: known_kept(plan.source, config)) or kept_boxes(nets, context)
    if plan.stage != "init":
        refine(nets, context, plan.run / CHECKPOINTS / f"{REFINEMENT}.pt", **plan.options)
        localizers["lchp_r"] = nets.localizer
        if board is not None:
            board.pictures(REFINEMENT, config.refinement.epochs, models, context.autocast)
    return models, kept


def _train_compared(nets: Networks, context: Context, plan: Plan) -> tuple[Models, dict[str, Any]]:
    """A compared method's classifier, its boxes, and the localizer where it is asked for; as `_train_lchp`."""
    config, data = context.config, context.training_fingerprint
    found = chosen(config)
    assert found is not None
    if plan.stage != "refine":
        train_classifier(nets, context, plan.first, initialization_identity(config, data), found, **plan.options)
    nets.classifier.eval()
    maps = map_source(found, nets.classifier)
    boxes = box_source(config, maps, nets.classifier, context)
    localizers: dict[str, Localizer] = {}
    margin = config.refinement.crop_margin
    models = Models(nets.classifier, None, localizers, config.initialization, margin, boxes)
    kept: dict[str, Any] = {}

    def show(stage: str, epochs: int) -> None:
        if plan.board is not None:
            plan.board.pictures(stage, epochs, models, context.autocast)

    if plan.stage != "refine":
        show(INITIALIZATION, config.initialization.epochs)
    if plan.stage == "init":
        return models, kept
    if not config.method.localizer:
        return replace(models, score_maps=maps), kept
    checkpoints = plan.run / CHECKPOINTS
    regress(nets, context, checkpoints / f"{REGRESSION}.pt", refinement_identity(config, data), boxes, **plan.options)
    localizers["lchp_i"] = copy.deepcopy(nets.localizer)
    show(REGRESSION, config.initialization.epochs)
    if config.evaluation.kept_by_tau:
        kept = kept_boxes(nets, context)
    if config.method.refine:
        refine(nets, context, checkpoints / f"{REFINEMENT}.pt", **plan.options)
        localizers["lchp_r"] = nets.localizer
        show(REFINEMENT, config.refinement.epochs)
    return models, kept


def probe(config: TrainConfig, batches: int = 3) -> dict[str, float]:
    """Seconds per epoch of each training of a run, measured on a few batches. Nothing of what it trains is kept."""
    first = replace(config.initialization, epochs=2, localizer_start=0)
    # tau 0: networks that have hardly begun are confident of nothing
    short = replace(config, initialization=first, refinement=replace(config.refinement, epochs=2, tau=0.0))
    context = open_context(short, show_progress=False)
    whole = max(1, len(context.images) // config.data.batch_size)
    some = np.arange(min(len(context.images), batches * config.data.batch_size))
    context = replace(context, images=context.images.select(some), held_out=None)
    steps = len(epoch_order(context, torch.Generator()))
    nets = build(short, len(context.dataset.class_names), context.device)
    found: dict[str, float] = {}

    def record(metrics: Metrics) -> None:  # the second epoch, which has warmed up, is the last to be noted
        found[metrics["stage"]] = metrics["seconds"] / steps * whole

    compared = chosen(config)
    steps_of: list[Callable[..., None]] = [initialize, refine]
    if compared is not None:
        steps_of = [partial(train_classifier, identity="", found=compared)]
        # boxes cost little; DDT's would need images of every class
        steps_of += [partial(regress, identity="", source=_whole_views)] if config.method.localizer else []
        steps_of += [refine] if config.method.refine else []
    with tempfile.TemporaryDirectory() as folder:
        for n, train_stage in enumerate(steps_of):
            train_stage(nets, context, checkpoint=Path(folder) / str(n), record=record, show_progress=False)
    return found


def _whole_views(images: Tensor, _labels: Tensor) -> Tensor:
    return torch.tensor([0.0, 0.0, 1.0, 1.0], device=images.device).expand(len(images), 4)


def initialization_identity(config: TrainConfig, data: str) -> str:
    """Hash of all that a stage-1 result depends on; `data` is the data set's fingerprint."""
    compared, config = chosen(config), stage1_of(config)
    parts = asdict(config)
    for name in ("root", "workers", "cache", "skip_bad"):
        parts["data"].pop(name)
    # both train on the same images: with --from a threshold found on one is tried on the other
    parts["data"]["name"] = config.data.name.removesuffix("_fullsup")
    parts["model"].pop("weights_dir")
    networks, scheme = [config.model.classifier, config.model.localizer], {}
    if compared is not None:  # its stage 1 trains no localizer
        networks.pop()
        parts["model"].pop("localizer")
        scheme = {"scheme": compared.scheme.name}
        if config.model.pretrained:
            scheme |= {"lr_classifier_ratio": config.method.lr_classifier_ratio}
    precision = config.precision
    if precision == "auto":  # a named precision gives a key on machines without the device, too
        precision = resolve_precision(precision, resolve_device(config.device))
    return runs.digest(
        {
            "recipe": RECIPE_VERSION,
            "weights": [_weights(config, name) for name in networks],
            "data": data,
            "precision": precision,
            "seed": config.seed,
            "config": {k: parts[k] for k in ("data", "model", "initialization")},
        }
        | ({"auto_batch": True} if config.auto_batch else {})  # batches in parts are another BatchNorm
        | scheme
    )


def refinement_identity(config: TrainConfig, data: str) -> str:
    """Hash of all that a stage-2 result depends on."""
    first = initialization_identity(config, data)
    if chosen(config) is None:
        return runs.digest([first, asdict(config.refinement)])
    localizer = _weights(config, config.model.localizer) if config.method.localizer else None
    return runs.digest([first, after_stage1(config), localizer])


def _weights(config: TrainConfig, backbone: str) -> Any:
    return weights_identity(backbone, pretrained=config.model.pretrained, weights_dir=config.model.weights_dir)


def build(config: TrainConfig, num_classes: int, device: torch.device) -> Networks:
    """Networks at their start, drawn from the seed."""
    torch.manual_seed(config.seed)
    compared = chosen(config)
    classifier: Any = (
        Classifier(config.model, num_classes, config.data.image_size)
        if compared is None
        else build_classifier(config, compared, num_classes)
    )
    localizer = Localizer(config.model, config.data.image_size)
    layout = {"device": device, "memory_format": torch.channels_last}
    classifier, localizer = classifier.to(**layout), localizer.to(**layout)
    classifier, localizer = share_batch_statistics(classifier), share_batch_statistics(localizer)
    return Networks(classifier, make_teacher(classifier), localizer)


def initialize(nets: Networks, context: Context, checkpoint: Path, **options: Any) -> None:
    """Stage 1: trains classifier, teacher and localizer in place."""
    config, stage1 = context.config, context.config.initialization
    rates: dict[str, Any] = {"momentum": stage1.momentum, "weight_decay": stage1.weight_decay}
    rates |= {"fused": True} if context.device.type == "cuda" else {}
    optimizers = {
        "classifier": torch.optim.SGD(nets.classifier.parameters(), lr=stage1.lr, **rates),
        "localizer": torch.optim.SGD(nets.localizer.parameters(), lr=stage1.localizer_lr, **rates),
    }
    steps = len(epoch_order(context, torch.Generator()))
    schedule = {"decay": stage1.lr_decay, "epochs": stage1.epochs, "steps_per_epoch": steps}
    nets.classifier.train()
    nets.localizer.train()
    chunks = Chunks(batch=config.data.batch_size if config.auto_batch else None)

    def step(batch: tuple[Tensor, Tensor, None], epoch: int) -> dict[str, Tensor]:
        i_r, y, _ = batch
        return initialization_step(
            nets,
            tuple(optimizers.values()),
            i_r,
            y,
            stage1,
            context.autocast,
            train_localizer=epoch >= stage1.localizer_start,
            chunks=chunks.number,
        )

    fit(
        Stage(
            INITIALIZATION,
            stage1.epochs,
            steps * min(config.data.batch_size, len(context.images)),
            {"classifier": nets.classifier, "teacher": nets.teacher, "localizer": nets.localizer},
            optimizers,
            {
                "classifier": make_schedule(optimizers["classifier"], stage1.schedule, **schedule),
                "localizer": make_schedule(optimizers["localizer"], stage1.localizer_schedule, **schedule),
            },
            lambda _epoch, generator, start: general_batches(context, generator, start),
            step,
            count=lambda batch: len(batch[0]),
            images=lambda epoch, step: images_of(context, INITIALIZATION, epoch, step),
            chunks=chunks,
            describe=lambda m: (
                f"stage 1 epoch {m['epoch']}/{m['epochs']}  L_cls {m['l_cls']:.4f}  L_reg {m['l_reg']:.5f}  "
                f"train top-1 {m['top1']:.1f} %  pseudo box area {m['pseudo_area']:.1f} %  "
                f"lr {m['lr_classifier']:.2e} / {m['lr_localizer']:.2e}  {m['images_per_second']:.0f} images/s"
            ),
        ),
        seed=config.seed,
        checkpoint=checkpoint,
        identity=initialization_identity(config, context.training_fingerprint),
        **options,
    )


def refine(nets: Networks, context: Context, checkpoint: Path, **options: Any) -> None:
    """Stage 2: trains the localizer in place; the classifier is frozen."""
    config, stage2 = context.config, context.config.refinement
    modules: dict[str, torch.nn.Module] = {"localizer": nets.localizer}
    if stage2.labeller != "online":
        labeller = copy.deepcopy(nets.localizer).requires_grad_(False).eval()
        if config.compile:  # a copy is not compiled
            labeller.compile()
        nets = replace(nets, labeller=labeller)
        modules["labeller"] = labeller
    rates: dict[str, Any] = {"momentum": stage2.momentum, "weight_decay": stage2.weight_decay}
    rates |= {"fused": True} if context.device.type == "cuda" else {}
    optimizer = torch.optim.SGD(nets.localizer.parameters(), lr=stage2.lr, **rates)
    nets.classifier.eval().requires_grad_(False)
    nets.localizer.train()
    if stage2.freeze_bn:
        freeze_batch_norm(nets.localizer)
    steps = len(epoch_order(context, torch.Generator()))
    chunks = Chunks(batch=config.data.batch_size if config.auto_batch else None)

    def step(batch: tuple[Tensor, Tensor, StrongParameters], _epoch: int) -> dict[str, Tensor]:
        i_r, _, strong = batch
        beta = config.initialization.beta
        return refinement_step(nets, optimizer, i_r, strong, stage2, beta, context.autocast, chunks=chunks.number)

    def evaluate() -> dict[str, float]:
        if context.held_out is None:
            return {}
        lchp_r = copy.deepcopy(nets.localizer)  # as it would be, if this epoch were the last
        settle_statistics(lchp_r, context)
        models = Models(nets.classifier, None, {"lchp_r": lchp_r}, config.initialization, stage2.crop_margin)
        found = validate(models, context, context.held_out)
        return {f"validation_{k}": v for k, v in found.items()}

    stage = Stage(
        REFINEMENT,
        stage2.epochs,
        steps * min(config.data.batch_size, len(context.images)),
        modules,
        {"localizer": optimizer},
        {
            "localizer": make_schedule(
                optimizer, stage2.schedule, decay=stage2.lr_decay, epochs=stage2.epochs, steps_per_epoch=steps
            )
        },
        lambda _epoch, generator, start: strong_batches(context, generator, start),
        step,
        count=lambda batch: len(batch[0]),
        images=lambda epoch, step: images_of(context, REFINEMENT, epoch, step),
        evaluate=evaluate,
        judge=_refuse_idle(stage2.tau, runs.read_metrics(checkpoint.parents[1]) if options.get("resume") else []),
        finish=lambda: settle_statistics(nets.localizer, context),
        chunks=chunks,
        describe=lambda m: (
            f"stage 2 epoch {m['epoch']}/{m['epochs']}  L_refine {m['loss']:.5f}  kept {m['kept']:.1f} %  "
            f"confidence {m['confidence']:.1f} %  vanished {m['vanished']:.2f} %  lr {m['lr_localizer']:.2e}  "
            f"{m['images_per_second']:.0f} images/s"
        ),
    )
    identity = refinement_identity(config, context.training_fingerprint)
    fit(stage, seed=config.seed, checkpoint=checkpoint, identity=identity, **options)


def _refuse_idle(tau: float, earlier: Sequence[Metrics]) -> Callable[[Metrics], None]:
    """Warns of an epoch in which tau rejected every box, and raises RunError after `IDLE_EPOCHS` of them in a row,
    those of a training that is gone on with (`earlier`, its metrics) included."""
    idle = 0

    def judge(metrics: Metrics) -> None:
        nonlocal idle
        idle = 0 if metrics["kept"] > 0 else idle + 1
        if not idle:
            return
        said = (
            f"{REFINEMENT}, epoch {metrics['epoch']}: no box was more confident than refinement.tau = {tau:g} (mean "
            f"confidence {metrics['confidence']:.1f} %), so the localizer learnt nothing"
        )
        if idle == IDLE_EPOCHS:
            raise RunError(f"{said} for {idle} epochs; lower --refinement.tau, or train stage 1 for longer")
        log.warning("%s", said)

    for line in earlier:
        if line["stage"] == REFINEMENT and {"kept", "confidence"} <= line.keys():
            judge(line)
    return judge


def settle_statistics(localizer: Localizer, context: Context) -> None:
    """Estimates the localizer's BatchNorm statistics anew, on general views, if the config asks for it.

    Strong views show borders, and objects at other scales; test images do not. With the statistics of the former, boxes
    on the latter come out too large (Wu and Johnson, arXiv 2105.07576, on such shifts and this remedy).
    """
    config = context.config
    if config.refinement.bn_statistics == "strong" or config.refinement.freeze_bn:
        return
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, "statistics", 0))
    views = (i_r for i_r, _, _ in islice(general_batches(context, generator), STATISTICS_BATCHES))
    training = localizer.training
    # uncompiled: what it changes of the BatchNorms would have all of it compiled anew
    with context.autocast, torch.compiler.set_stance("force_eager"):
        update_bn(views, localizer)
    localizer.train(training)


def _check_claim(run: Path, config: TrainConfig, stage: StageChoice, resume: bool) -> None:
    """Refuses a folder that holds another run, or this one without `resume`, or with `resume` none at all."""
    there = run / runs.CONFIG
    if not there.exists():
        if resume:
            raise RunError(f"{run}: holds no run to go on with; leave --resume out to start one there")
        return
    if not resume:
        raise _taken(run)
    if _trained_by(runs.read_config(run)) != _trained_by(config):
        raise RunError(
            f"{there}: differs from the config asked for; resume with the same flags, or use another --output"
        )
    if _begun_otherwise(run, stage):
        raise RunError(f"{run}: was begun with another --stage than {stage}; resume with the same flags")


def _taken(run: Path) -> RunError:
    return RunError(f"{run}: holds a run already; go on with it by --resume, or name another --output")


def _claim(held: contextlib.ExitStack, run: Path, config: TrainConfig, *, made: bool, unique: bool) -> Claim:
    """Makes a folder this run's own: locks it, until `held` is closed, and is the first to write config.json there.

    made: whether the folder was there before; if it is not now, its disk is gone. unique: where another run has the
    folder, a like name is taken. Raises RunError.
    """
    for folder in itertools.chain([run], (run.with_name(f"{run.name}-{n}") for n in itertools.count(2))):
        with contextlib.ExitStack() as mine:
            try:
                if not made:
                    runs.make_folder(folder)
                if (folder / runs.CONFIG).exists():
                    raise FileExistsError
                claim = mine.enter_context(locked(folder / LOCK, remove=True))
                runs.write_config(folder, config, new=True)
            except FileExistsError:
                if not unique:
                    raise _taken(folder) from None
            except HeldError:
                if not unique:
                    raise
            else:
                held.enter_context(mine.pop_all())
                return claim
    raise AssertionError("there is always another name")


def _claim_again(claim: Claim, config: TrainConfig) -> Claim:
    """A locked run folder whose run is gone on with, its config written anew: the data may lie elsewhere by now."""
    claim.check()
    runs.write_config(claim.path.parent, config)
    return claim


def _begun_otherwise(run: Path, stage: StageChoice) -> bool:
    """Whether a run has a stage that `stage` does not ask for. Stage 1 alone may go on to both."""
    first, *later = ((run / CHECKPOINTS / f"{name}.pt").exists() for name in (INITIALIZATION, REGRESSION, REFINEMENT))
    begun = runs.read_environment(run) if (run / ENVIRONMENT).exists() else {}
    summary = runs.read_summary(run) if (run / SUMMARY).exists() else {}
    alone = begun.get("stage1") is not None  # stage 2 alone names where its stage 1 is
    if stage == "refine":
        return first or ("stage1" in begun and not alone)
    if stage == "init":  # that a compared method's map is scored is all that tells its stage 2
        return alone or any(later) or "score_maps" in summary
    return alone or (any(later) and not first)


def _trained_by(config: TrainConfig) -> dict[str, Any]:
    """The fields that a training depends on; the others may differ when it is resumed."""
    flat = to_flat(config)
    return {k: v for k, v in flat.items() if k not in PLACES and not k.startswith("evaluation.")}


def _open_board(run: Path, context: Context) -> Any:
    from lchp.board import open_board  # tensorboardX is for those who ask for it

    config = context.config
    return open_board(run, context.test, config.data.image_size, config.seed)


def _load_initialization(nets: Networks, path: Path, context: Context) -> None:
    if path.exists() and (other := _other_stage_1(runs.read_config(path.parents[1]), context.config)):
        raise RunError(f"{path}: its stage 1 is of another config: {', '.join(other[:4])}")
    state = load_checkpoint(path, initialization_identity(context.config, context.training_fingerprint))
    if state["epoch"] < context.config.initialization.epochs:
        raise RunError(f"{path}: stage 1 stopped after {state['epoch']} epochs; finish it with --resume first")
    for name, weights in state["modules"].items():  # a compared method's stage 1 has the classifier alone
        getattr(nets, name).load_state_dict(weights)


def _other_stage_1(there: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields in which the stage 1 of a run is not the one asked for. The data's content and what `auto` became are left
    to its identity."""
    mine, theirs = to_flat(stage1_of(asked)), to_flat(stage1_of(there))
    free = PLACES | {"data.name", "device", "precision"} | (set() if chosen(asked) is None else {"model.localizer"})
    return [f"{n} {show(v)} (asked for: {show(mine[n])})" for n, v in theirs.items() if n not in free and v != mine[n]]


class _CallableModule(types.ModuleType):
    """Importing this module binds it to the name `train` of its package, so `from lchp import train` finds the module
    rather than the function: it is called like the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

__all__ = ["Result", "build", "initialize", "refine", "train"]
