"""train(config) -> Result: one run, free of Ray: the links of its chain one after the other, and its run folder."""

import contextlib
import copy
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lchp.config import FILES, PLACES, TrainConfig, show, to_flat
from lchp.errors import ConfigError, RunError
from lchp.evaluation.inference import Models
from lchp.evaluation.predictions import joined, read_predictions, write_predictions
from lchp.files import runs
from lchp.files.locks import LOCK, Claim, HeldError, locked
from lchp.files.runs import CHECKPOINTS, ENVIRONMENT, SUMMARY
from lchp.files.targets import OF_A_RUN
from lchp.method.batch import nothing
from lchp.system import distributed
from lchp.system.devices import peak_memory_mb
from lchp.system.interrupt import Interrupted, Stop
from lchp.tracking import TrackerName, required
from lchp.tracking.feed import Picture, Subject
from lchp.tracking.follow import Followers, followed
from lchp.tracking.samples import layers_of, sample_grid, shown_images
from lchp.training.box_links import pseudo_source
from lchp.training.chain import (
    RECIPE_VERSION,
    Chain,
    Kind,
    Link,
    chain_of,
    config_until,
    contents_of,
    label,
    method_of,
    stage1_kinds,
    taken_kinds,
)
from lchp.training.checkpoints import fill
from lchp.training.context import Context, describe_environment, open_context
from lchp.training.definition import Metrics, Session
from lchp.training.fit import fit
from lchp.training.links import require_whole_batches, training_of
from lchp.training.map_boxes import map_source, require_every_class
from lchp.training.measure import given_boxes, kept_boxes, known_kept, predictions_of, stage2_gain, summary_of, validate
from lchp.training.networks import build
from lchp.training.own_classifier import start_from
from lchp.training.work import Work

log = logging.getLogger(__name__)

StageChoice = Literal["both", "init", "refine"]


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, the config it received, and its summary
    (see `lchp.evaluation.predictions.summarize`)."""

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
    track: Sequence[TrackerName] = (),
) -> Result:
    """Trains, predicts the test split in both frames, and writes the run folder `output` (None: runs/DATA-seedN-TIME, a
    name that no other run has). The folder is locked for as long as that takes.

    stage: `both`, `init` (stage 1 alone), or `refine` (stage 2 alone, from stage 1 of the run folder `source`).
    resume: go on from the newest checkpoint in `output`. on_epoch: called with each epoch's metrics. stop: where it is
    asked, a checkpoint is written at the end of the step and Interrupted is raised. track: trackers that follow the run
    (`mlflow`, `wandb`, `tensorboard`); one that is away is a warning.
    Raises an LchpError for anything a user can mend.
    """
    last, found = require_startable(config, output=output, stage=stage, source=source, resume=resume)
    how = Session(config.seed, resume, on_epoch=on_epoch or nothing, show_progress=show_progress, stop=stop)
    return train_links(config, None if output is None else Path(output), how, last=last, found=found, track=track)


def require_startable(
    config: TrainConfig,
    *,
    output: str | Path | None,
    stage: StageChoice,
    source: str | Path | None,
    resume: bool,
) -> tuple[Kind | None, dict[Kind, Path]]:
    """Raises an LchpError for arguments of `train` that contradict each other, or an `output` that it cannot begin or
    go on with, whatever the data are. Returns the last link that they ask for, and those that lie in `source`."""
    if stage not in get_args(StageChoice):
        raise ConfigError(f"stage = {stage!r}: expected one of {', '.join(get_args(StageChoice))}")
    if (stage == "refine") != (source is not None):
        raise ConfigError("stage = 'refine' needs the run folder of its stage 1 (--from DIR), and only it takes one")
    if output is None and resume:
        raise ConfigError("--resume needs --output DIR, the run folder to go on with")
    method_of(config)  # fields that contradict it are said before the data is read
    last = stage1_kinds(config)[-1] if stage == "init" else None
    found: dict[Kind, Path] = {} if source is None else dict.fromkeys(taken_kinds(config), Path(source))
    if output is not None:
        _check_claim(Path(output), config, last, found, resume=resume)
    return last, found


def train_links(
    config: TrainConfig,
    output: Path | None,
    session: Session,
    *,
    last: Kind | None = None,
    found: Mapping[Kind, Path] | None = None,
    track: Sequence[TrackerName] = (),
) -> Result:
    """Trains the links of a config up to `last`, but those that are found in other run folders (`found`), and writes
    the run folder; as `train`."""
    found = found or {}
    trackers = required([*track, *(["tensorboard"] if config.tensorboard else [])])
    method_of(config)  # fields that contradict it are said before the data is read
    name = f"{config.data.name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = output or Path("runs") / name
    if output is not None:
        _check_claim(run, config, last, found, resume=session.resume)
    made = output is not None and run.is_dir()
    distributed.barrier()  # worker 0 claims the folder below: not before all have looked
    with contextlib.ExitStack() as held:
        if session.resume:
            mine = distributed.from_first(lambda: held.enter_context(locked(run / LOCK, remove=True)))
            claim = partial(_claim_again, mine, config)
        else:
            claim = partial(_claim, held, run, config, made=made, unique=output is None)
        return _train(config, claim, session, last, found, trackers)


def _train(
    config: TrainConfig,
    claim: Callable[[], Claim],
    session: Session,
    last: Kind | None,
    found: Mapping[Kind, Path],
    trackers: Sequence[TrackerName],
) -> Result:
    """As `train_links`, into the run folder that `claim` makes this run's own."""
    writes = distributed.rank() == 0
    context = open_context(config, session.show_progress)
    begin = time.perf_counter()
    chain = chain_of(config, context.training_fingerprint, last=last)
    environment = describe_environment(context) | {
        "links": {link.kind: _place(link, found.get(link.kind)) for link in chain},
        "method": label(config),
        **({"files": dict(files)} if (files := contents_of(config)) else {}),
    }
    if "classifier" not in found:
        require_whole_batches(chain)
    if "boxes" in chain and "boxes" not in found:
        require_every_class(chain.method, context.images.split.labels, context.dataset.class_names)
    work = Work(context, chain, build(chain, len(context.dataset.class_names), context.device), {})
    if config.model.classifier_weights is not None and "classifier" not in found:
        start_from(work.nets.classifier, config.model, context.dataset.class_names)
    if config.compile:
        for net in (work.nets.classifier, work.nets.loc):
            if net is not None:
                net.compile()  # in place: the names of the weights stay
    for link in chain:
        if link.kind in found:
            work = _take(work, link, found[link.kind])
    claimed = distributed.from_first(claim)  # only now: a config that cannot start leaves no folder behind
    run = claimed.path.parent
    earlier = runs.read_metrics(run)
    work = replace(work, earlier=earlier if session.resume else [])
    if writes:
        runs.write_json(run / ENVIRONMENT, environment, parents=False)  # a stopped run needs its class names too
        runs.make_folder(run / CHECKPOINTS)
    subject = partial(_subject, run, config, claimed)
    with _named_where_stopped(run), followed(trackers if writes else (), subject) as followers:

        def record(metrics: Metrics) -> None:
            claimed.check()
            runs.append_metrics(run, metrics)
            followers.update()

        trained = _train_each(work, replace(session, record=record), run, found, followers)
        summary = _summary(chain, trained, context)
        if not writes:
            return Result(run, config, summary)
        claimed.check()
        if summary:
            write_predictions(run, trained.table)
        seconds = sum(line.get("seconds", 0.0) for line in earlier) + time.perf_counter() - begin
        runs.write_json(run / ENVIRONMENT, environment | _figures(run, seconds, context), parents=False)
        if summary:
            runs.write_json(run / SUMMARY, summary, parents=False)
    return Result(run, config, summary)


@contextlib.contextmanager
def _named_where_stopped(run: Path) -> Iterator[None]:
    """Who stops the block learns where it goes on: a run folder's default name holds the time."""
    try:
        yield
    except Interrupted as stop:
        stop.kept = run
        raise


def _subject(run: Path, config: TrainConfig, claimed: Claim, tracker: TrackerName) -> Subject:
    """What a tracker is to know of a run, and where it is noted what it has."""
    notes = run / runs.TRACKERS / f"{tracker}.json"
    return Subject(run, run.absolute().name, None, config, {"method": label(config)}, notes, run, claimed.check)


@dataclass(frozen=True)
class _Trained:
    """What a chain has come to: the models of all its results, what they predict (a table of predictions.parquet; None
    where no link has a result), the kept boxes of LCHP-I, and what was chosen (see `lchp.method.choice`)."""

    models: Models
    table: Any
    kept: dict[str, Any]
    chosen: dict[str, Any] | None


def _train_each(work: Work, session: Session, run: Path, found: Mapping[Kind, Path], followers: Followers) -> _Trained:
    """Trains the links but those that are found elsewhere, one after the other, each of which predicts for itself."""
    context, chain, classifier = work.context, work.chain, work.nets.classifier
    config = context.config
    models = Models(classifier, None, {}, config.initialization, config.refinement.crop_margin)
    table, kept = None, dict[str, Any]()
    for link in chain:
        taken = found.get(link.kind)
        if taken is None:
            training = training_of(work, link)
            fit(training, session, run / CHECKPOINTS / f"{link.stage}.pt", link.key)
            work = replace(work, done={**work.done, link.kind: training.modules})
        elif link.kind in ("localizer", "refinement"):  # Loc has the weights of the last that was taken
            work = _take(work, link, taken)
        if link.result is None or chain.last.result is None:  # without one, it is for other links alone
            continue
        own = models_of(work, link)
        models = replace(models, pseudo=own.pseudo or models.pseudo, localizers=models.localizers | own.localizers)
        recorded = None
        if taken is not None and link != chain.last:
            recorded = distributed.from_first(partial(_predicted, taken, link, context))
        table = joined(table, predictions_of(own, context) if recorded is None else recorded)
        if followers and taken is None:
            followers.picture(link.stage, Picture(link.epochs, _samples(table, context)))
        if link.kind == "localizer" and config.evaluation.kept_by_tau:
            known = distributed.from_first(partial(known_kept, taken, config))
            kept = known or kept_boxes(classifier, own.localizers["lchp_i"], context)
    if chain.last.kind == "boxes" and chain.method.boxes != "teacher":
        models = replace(models, score_maps=map_source(chain.method, classifier))
    return _Trained(models, table, kept, work.done["choice"]["choice"].record() if "choice" in chain else None)


def _summary(chain: Chain, trained: _Trained, context: Context) -> dict[str, Any]:
    """The summary of a run's results; empty where its last link has none, being for other links alone."""
    if chain.last.result is None:
        return {}
    summary = summary_of(trained.table, trained.models, context) | {"kept": trained.kept}
    if trained.chosen is not None:
        summary["chosen"] = trained.chosen
    if {"lchp_i", "lchp_r"} <= trained.models.localizers.keys():
        summary["stage2"] = stage2_gain(trained.models, context)
    if context.box_file is not None:
        summary["given"] = given_boxes(context.box_file, context)
    if context.held_out is not None:
        summary["validation"] = validate(trained.models, context, context.held_out)
    return summary


def _figures(run: Path, total: float, context: Context) -> dict[str, Any]:
    """What environment.json says of a finished run, of all its sessions. total: its seconds."""
    seconds = {"total": total}
    for line in runs.read_metrics(run):
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line.get("seconds", 0.0)
    return {
        "wall_seconds": {k: round(v, 2) for k, v in seconds.items()},
        "peak_memory_mb": peak_memory_mb(context.device),
        "recipe": RECIPE_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _place(link: Link, source: Path | None) -> dict[str, str | None]:
    """What environment.json says of a link: its identity, and the run folder that it was taken from."""
    return {"key": link.key, "run": None if source is None else str(runs.link_folder(source, link.kind).resolve())}


def _take(work: Work, link: Link, source: Path) -> Work:
    """The work with a link's modules from the run folder `source`. Raises RunError."""
    folder = runs.link_folder(source, link.kind)
    path = folder / CHECKPOINTS / f"{link.stage}.pt"
    if path.exists() and (other := _other_fields(runs.read_config(folder), work.chain, link.kind)):
        raise RunError(f"{path}: its {link.kind} is of another config: {', '.join(other[:4])}")
    training = training_of(work, link)
    fill(training, path, link.key)
    return replace(work, done={**work.done, link.kind: training.modules})


def _other_fields(there: TrainConfig, chain: Chain, kind: Kind) -> list[str]:
    """Fields in which a link of a run is not the one asked for. The data's content and what `auto` became are left to
    its identity."""
    mine = to_flat(config_until(chain, kind))
    try:
        theirs = to_flat(config_until(chain_of(there, chain.data), kind))
    except (ConfigError, StopIteration):
        return [f"method.name {there.method.name} (asked for: {chain.config.method.name})"]
    free = PLACES | {"data.name", "device", "precision", "evaluation.batch_size", *FILES}
    return _differing({name: value for name, value in theirs.items() if name not in free}, mine)


def _differing(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Fields of a run that are not those asked for, with both values."""
    return [f"{n} {show(v)} (asked for: {show(mine[n])})" for n, v in theirs.items() if v != mine[n]]


def models_of(work: Work, link: Link) -> Models:
    """What predicts a link's own result."""
    config, nets = work.context.config, work.nets
    localizers = {}
    if link.result is not None and link.result != "pseudo_label":
        more = link.kind == "localizer" and "refinement" in work.chain  # which trains it on
        localizers[link.result] = copy.deepcopy(nets.localizer) if more else nets.localizer
    pseudo = pseudo_source(work) if link.result == "pseudo_label" else None
    return Models(nets.classifier, pseudo, localizers, config.initialization, config.refinement.crop_margin)


def _predicted(run: Path, link: Link, context: Context) -> Any:
    """A link's predictions as its run folder has them; None where there are none, or they are of other images."""
    folder = runs.link_folder(run, link.kind)
    if not (folder / runs.PREDICTIONS).is_file() or not (folder / SUMMARY).is_file():
        return None
    if runs.read_environment(folder).get("data_fingerprint") != context.fingerprint:
        return None
    table = read_predictions(folder)
    return table if f"{link.result}_box" in table.column_names else None


def _check_claim(
    run: Path, config: TrainConfig, last: Kind | None, found: Mapping[Kind, Path], *, resume: bool
) -> None:
    """Refuses a folder that holds another run, or this one without `resume`, or with `resume` none at all."""
    there = run / runs.CONFIG
    if run.is_file():
        raise RunError(f"{run}: is a file; name a folder by --output")
    if not there.exists():
        if resume:
            raise RunError(f"{run}: holds no run to go on with; leave --resume out to start one there")
        return
    if not resume:
        raise _taken(run)
    if other := _differing(_trained_by(runs.read_config(run)), _trained_by(config)):
        raise RunError(
            f"{there}: differs from the config asked for: {', '.join(other[:4])}; resume with the same flags, or use "
            "another --output"
        )
    if _begun_otherwise(run, config, last, found):
        stage = "refine" if found else "both" if last is None else "init"
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
                others = sorted(name for name in OF_A_RUN if os.path.lexists(folder / name))
                if others and runs.CONFIG not in others:
                    raise RunError(f"{folder}: holds {', '.join(others)}, but no run; move it or take another --output")
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


def _begun_otherwise(run: Path, config: TrainConfig, last: Kind | None, found: Mapping[Kind, Path]) -> bool:
    """Whether a run has a link that is not asked for, or took from elsewhere what is to be trained, or the other way
    round. A run that ended with an earlier link may go on to later ones."""
    begun = runs.read_environment(run).get("links", {}) if (run / ENVIRONMENT).exists() else {}
    asked = {link.kind for link in chain_of(config, "", last=last)}
    return any(kind not in asked or (place["run"] is not None) != (kind in found) for kind, place in begun.items())


def _trained_by(config: TrainConfig) -> dict[str, Any]:
    """The fields that a training depends on; the others may differ when it is resumed, and so may the place of a file,
    whose content the links' keys hold."""
    flat = to_flat(config)
    return {k: v for k, v in flat.items() if k not in (*PLACES, *FILES) and not k.startswith("evaluation.")}


def _samples(table: Any, context: Context) -> np.ndarray:
    """Test images with the boxes of a table of predictions, H x W x 3 uint8."""
    shown = shown_images(len(context.test), context.config.seed)
    pixels = context.test.batch(shown).images.numpy()
    return sample_grid(pixels, layers_of(table, shown), context.config.data.image_size)


__all__ = ["Result", "models_of", "train", "train_links"]
