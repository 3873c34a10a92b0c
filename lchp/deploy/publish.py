"""A finished run as a model to hand on: a folder with its networks, and a card made from its record."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lchp.deploy.card import Record, card
from lchp.deploy.model_folder import ABOUT, CARD, is_model, load_model, open_model, write_model
from lchp.deploy.predict import published
from lchp.deploy.trained import ModuleName, TrainedRun, load_networks, modules_of, open_run
from lchp.errors import ConfigError, RunError
from lchp.evaluation.frames import FRAMES
from lchp.evaluation.inference import predict_batch
from lchp.evaluation.predictions import read_predictions, rows_in
from lchp.files import runs
from lchp.files.targets import require_new_folder
from lchp.training.chain import method_of


def publish(run: str | Path, output: str | Path, *, licence: str | None = None) -> TrainedRun:
    """Writes the model folder `output` of a finished run; returns what it predicts by.

    licence: of the model, by the name that the hub has for it (`cc-by-4.0`). What was written is read again and must
    predict bitwise what the run does, before the folder takes its name. It takes the place of an earlier model, if
    nothing else lies there. Raises RunError where the run is unfinished or the folder cannot be written, ConfigError
    where `output` holds anything else.
    """
    run, output, cpu = Path(run), Path(output), torch.device("cpu")
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise ConfigError(f"--license {licence}: expected a licence's name on the hub, such as apache-2.0 or cc-by-4.0")
    replaces = _require_target(output)
    networks = open_run(run)
    trained = load_networks(networks, cpu)
    if not (run / runs.SUMMARY).exists():
        raise RunError(f"{run}: is not finished, having no {runs.SUMMARY}; go on with lchp train and --resume first")
    summary, environment = runs.read_summary(run), runs.read_environment(run)
    if trained.result not in summary["results"]:
        raise RunError(f"{run / runs.SUMMARY}: has no figures of {trained.result}; finish the run with --resume first")
    images = rows_in(read_predictions(run), FRAMES[0]).num_rows
    record = Record(
        networks.config,
        networks.class_names,
        trained.result,
        summary,
        environment,
        images,
        None if licence is None else licence.lower(),
    )
    states: dict[ModuleName, Mapping[str, Tensor]] = {m: networks.state(m)[0] for m in modules_of(networks.config)}
    with published(output, replaces=replaces) as folder:
        assert folder is not None
        write_model(folder, networks, trained.result, states, environment.get("recipe"), card(record))
        _require_same(trained, load_model(folder, cpu), output)
        if trained.localizer is not None and not method_of(networks.config).from_file:  # for --several
            pseudo = [load_networks(each, cpu, localizer=False) for each in (networks, open_model(folder))]
            _require_same(pseudo[0], pseudo[1], output)
    return trained


def _require_target(output: Path) -> bool:
    """Whether an earlier model lies there. Raises ConfigError where anything else does."""
    if output.is_symlink() or not os.path.lexists(output / ABOUT):
        require_new_folder(output)
        return False
    if not is_model(output):
        raise ConfigError(
            f"--output {output}: holds more than a model, or its {CARD} was edited; name another folder, or remove it"
        )
    return True


def _require_same(run: TrainedRun, model: TrainedRun, output: Path) -> None:
    """Raises RunError where a model does not answer bitwise as its run does."""
    size = run.config.data.image_size
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = [_answer(trained, noise) for trained in (run, model)]
    if not all(torch.equal(ours, theirs) for ours, theirs in zip(*answers, strict=True)):
        raise RunError(f"{output}: what was written does not answer as the run does; it is not kept")


def _answer(trained: TrainedRun, images: Tensor) -> list[Tensor]:
    seen = predict_batch(trained.models, images)
    masks = [] if trained.source is None else [trained.source.masks(images, seen.top5[:, 0])]
    return [seen.scores, seen.boxes[trained.result], seen.confidence, *masks]
