"""A whole run: what it writes, that it repeats itself, goes on where it stopped, and takes every open choice."""

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import killed
import pyarrow as pa
import pytest
import torch
from squares import (
    assert_same_run,
    cached_config,
    predictions,
    small_config,
    small_flags,
    small_values,
    stages_of,
    weights,
    write_images,
)

from lchp.config import TrainConfig, field_types, override
from lchp.deploy.trained import load_run
from lchp.errors import ConfigError, DataError, RunError
from lchp.evaluation.predictions import read_predictions, summarize
from lchp.files import runs
from lchp.files.locks import HeldError
from lchp.system.interrupt import Interrupted, Stop
from lchp.training import box_links, links
from lchp.training import fit as loop
from lchp.training import run as training_run
from lchp.training.batches import epoch_order
from lchp.training.chain import STAGES, chain_of, epochs_of
from lchp.training.context import Context, open_context
from lchp.training.definition import DivergedError, epoch_seed
from lchp.training.links import settle_statistics
from lchp.training.measure import known_kept
from lchp.training.networks import Networks, build
from lchp.training.run import Result, train

CHAINS: dict[str, dict[str, Any]] = {
    "lchp": {},
    "psol refined": {
        "method.name": "psol",
        "method.localizer": True,
        "method.refine": True,
        "refinement.labeller": "frozen",
    },
}
EPOCHS = {"initialization": 2, "boxes": 1, "regression": 2, "labels": 2, "refinement": 2}
LINKS = {
    "lchp": ["initialization", "regression", "refinement"],
    "psol refined": ["initialization", "boxes", "regression", "labels", "refinement"],
}


def ends(name: str) -> list[tuple[str, int]]:
    """The epochs of a chain's links, in order."""
    return [(stage, epoch + 1) for stage in LINKS[name] for epoch in range(EPOCHS[stage])]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of both stages without a break."""
    return train(cached_config(root), output=tmp_path_factory.mktemp("straight") / "run")


@pytest.fixture(scope="module")
def unbroken(root: Path, straight: Result, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a chain without a break."""
    found = {"lchp": straight.run}

    def of(name: str) -> Path:
        if name not in found:
            found[name] = train(cached_config(root, CHAINS[name]), output=tmp_path_factory.mktemp("chain") / "run").run
        return found[name]

    return of


def test_run_folder(straight: Result) -> None:
    run = straight.run
    assert {p.name for p in run.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "predictions.parquet",
        "summary.json",
        "environment.json",
        "checkpoints",
    }
    assert not list(run.rglob(".*"))  # no temporary file stays
    assert [(m["stage"], m["epoch"]) for m in runs.read_metrics(run)] == ends("lchp")
    assert stages_of(run) == ("initialization", "regression", "refinement")
    assert epochs_of(straight.config) == dict.fromkeys(stages_of(run), 2)
    environment, context = runs.read_json(run / "environment.json"), open_context(straight.config, show_progress=False)
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["device"] == "cpu"
    assert set(environment["wall_seconds"]) == {*stages_of(run), "total"}
    assert environment["links"] == {
        link.kind: {"key": link.key, "run": None} for link in chain_of(straight.config, context.training_fingerprint)
    }


def test_config_written_is_config_received(straight: Result, root: Path) -> None:
    assert runs.read_config(straight.run) == straight.config == cached_config(root)


def test_predictions_have_a_row_per_image_and_frame(straight: Result) -> None:
    table = straight.predictions()
    assert table.num_rows == 2 * 9
    assert table["frame"].to_pylist() == ["center_crop"] * 9 + ["full_image"] * 9
    assert set(table["label"].to_pylist()) == {0, 1, 2}
    for name in ("pseudo_label", "lchp_i", "lchp_r"):
        for x1, y1, x2, y2 in table[f"{name}_box"].to_pylist():
            assert 0 <= x1 <= x2 <= 1
            assert 0 <= y1 <= y2 <= 1
        assert all(0 <= v <= 1 for v in table[f"{name}_iou"].to_pylist())
    for top, score in zip(table["top5"].to_pylist(), table["top5_score"].to_pylist(), strict=True):
        assert sorted(top) == [0, 1, 2]  # fewer than five classes: all of them
        assert score == sorted(score, reverse=True)
        assert sum(score) == pytest.approx(1, abs=1e-5)


def test_summary_follows_from_the_predictions(straight: Result) -> None:
    written = json.loads((straight.run / "summary.json").read_text())
    assert written == straight.summary
    shown = ("results", "classification", "floors", "unboxed")
    assert summarize(read_predictions(straight.run)) == {k: written[k] for k in shown}
    kept = written["kept"]
    assert kept["total"] == 24
    assert kept["count"] == kept["by_tau"]["0.3"]["count"]
    assert kept["by_tau"]["0"]["count"] == 24


def test_the_same_seed_twice_is_bitwise_equal_and_another_is_not(straight: Result, root: Path, tmp_path: Path) -> None:
    assert_same_run(straight.run, train(cached_config(root), output=tmp_path / "again").run)
    other = train(cached_config(root, {"seed": 1}), output=tmp_path / "other", stage="init")
    for name in ("pseudo_label_box", "lchp_i_box"):
        assert other.predictions()[name] != straight.predictions()[name]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("chain", CHAINS)
def test_broken_off_after_each_epoch_it_equals_the_straight_run(unbroken, root: Path, tmp_path: Path, chain) -> None:
    """Also between two links, where the last epoch of one is over."""
    config, run = cached_config(root, CHAINS[chain]), tmp_path / "run"
    for number, end in enumerate(ends(chain)):
        assert go_on(config, run, until=end, resume=number > 0) == [end]
        assert not (run / "summary.json").exists()
    assert go_on(config, run) == []
    assert_same_run(unbroken(chain), run)


def go_on(
    config: TrainConfig, run: Path, until: tuple[str, int] | None = None, *, resume: bool = True
) -> list[tuple[str, int]]:
    """Trains on, to the end of an epoch or of all; returns the epochs."""
    seen: list[tuple[str, int]] = []

    def on_epoch(metrics: dict[str, Any]) -> None:
        seen.append((metrics["stage"], metrics["epoch"]))
        if seen[-1] == until:
            raise Stopped

    with contextlib.nullcontext() if until is None else pytest.raises(Stopped):
        train(config, on_epoch, output=run, resume=resume)
    return seen


@pytest.mark.parametrize("chain", CHAINS)
def test_resumed_in_the_middle_of_an_epoch_of_each_link_it_equals_the_straight_run(
    unbroken, root: Path, tmp_path: Path, chain: str
) -> None:
    """Every link writes a checkpoint at the end of the step in which it is asked to stop."""
    config, run, real = cached_config(root, CHAINS[chain]), tmp_path / "run", loop.take_step

    def broken_off(stage: str, *, resume: bool) -> None:
        stop, taken = Stop(), []

        def take(training: loop.Training, *rest: Any) -> Any:
            if training.name == stage:
                taken.append(rest)
                if len(taken) == (2 if stage == "boxes" else 5):  # of 6 batches of one epoch, or 3 of each of two
                    stop.ask(signal.SIGTERM)
            return real(training, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "take_step", take)
            with pytest.raises(Interrupted):
                train(config, output=run, stop=stop, resume=resume)
        state = torch.load(run / "checkpoints" / f"{stage}.pt", weights_only=True)
        assert state["within"]["steps"] == 2

    for number, stage in enumerate(LINKS[chain]):
        broken_off(stage, resume=number > 0)
    train(config, output=run, resume=True)
    assert_same_run(unbroken(chain), run)


def test_resume_with_one_cycle_schedules_and_a_moving_labeller(root: Path, tmp_path: Path) -> None:
    """State that only some configs have: schedulers that step per batch, and a second localizer."""
    config = cached_config(
        root,
        {
            "initialization.schedule": "onecycle",
            "initialization.localizer_schedule": "onecycle",
            "refinement.schedule": "onecycle",
            "refinement.labeller": "ema",
        },
    )
    train(config, output=tmp_path / "straight")
    for stage in LINKS["lchp"]:
        go_on(config, tmp_path / "run", until=(stage, 1), resume=stage != "initialization")
    go_on(config, tmp_path / "run")
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize(
    ("chain", "stage1", "taken", "results"),
    [
        ("lchp", ("initialization", "regression"), ("initialization", "regression"), {"pseudo_label", "lchp_i"}),
        # a threshold or another method may be tried on its classifier
        ("psol refined", ("initialization", "boxes"), ("initialization",), {"pseudo_label"}),
    ],
)
def test_stages_apart_equal_both_at_once(unbroken, root: Path, tmp_path: Path, chain, stage1, taken, results) -> None:
    config = cached_config(root, CHAINS[chain])
    first = train(config, output=tmp_path / "init", stage="init")
    assert set(first.summary["results"]) == results
    second = train(config, output=tmp_path / "refine", stage="refine", source=tmp_path / "init")
    assert stages_of(first.run) == stage1
    assert stages_of(second.run) == tuple(stage for stage in LINKS[chain] if stage not in taken)
    assert_same_run(second.run, unbroken(chain))
    for stage in stage1:
        a, b = weights(first.run, stage), weights(unbroken(chain), stage)
        assert all(torch.equal(a[k], b[k]) for k in a)
    places = runs.read_environment(second.run).get("links", {})
    there = str(first.run.resolve())
    found = {stage for kind, stage in STAGES.items() if kind in places and places[kind]["run"] == there}
    assert found == set(taken)


def test_the_localizer_may_start_late(root: Path, tmp_path: Path) -> None:
    """Its first epochs are passed over, with their views and rates; a break changes nothing."""
    late = {"initialization.epochs": 3, "initialization.localizer_start": 1, "refinement.epochs": 1}
    config = cached_config(root, late)
    straight = train(config, output=tmp_path / "straight").run
    lines = [m for m in runs.read_metrics(straight) if m["stage"] == "regression"]
    assert [m["epoch"] for m in lines] == [2, 3]
    assert epochs_of(config) == {"initialization": 3, "regression": 2, "refinement": 1}
    early = override(config, {"initialization.localizer_start": 0})
    whole = train(early, output=tmp_path / "whole", stage="init").run
    rates = {m["epoch"]: m["lr_localizer"] for m in runs.read_metrics(whole) if m["stage"] == "regression"}
    assert {m["epoch"]: m["lr_localizer"] for m in lines} == {epoch: rates[epoch] for epoch in (2, 3)}
    go_on(config, tmp_path / "run", until=("regression", 2), resume=False)
    go_on(config, tmp_path / "run")
    assert_same_run(straight, tmp_path / "run")


def test_another_tau_reuses_stage_1_and_another_delta_does_not(straight: Result, root: Path, tmp_path: Path) -> None:
    run = straight.run
    train(cached_config(root, {"refinement.tau": 0.9}), output=tmp_path / "tau", stage="refine", source=run)
    with pytest.raises(RunError, match="another config"):
        train(cached_config(root, {"initialization.delta": 0.4}), output=tmp_path / "d", stage="refine", source=run)
    assert not (tmp_path / "d").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(straight: Result, root: Path) -> None:
    before = predictions(straight.run)
    with pytest.raises(RunError, match="holds a run already"):
        train(cached_config(root), output=straight.run)
    with pytest.raises(RunError, match="differs from the config asked for"):
        train(cached_config(root, {"seed": 5}), output=straight.run, resume=True)
    assert predictions(straight.run) == before


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "checkpoints", "predictions.parquet"])
def test_a_folder_with_files_of_the_users_that_a_run_would_replace_is_refused(
    root: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=f"^{tmp_path}: holds {name}, but no run; move it or take another --output$"):
        train(cached_config(root), output=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", name}


def test_stage_2_needs_a_finished_stage_1(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the run folder of its stage 1"):
        train(cached_config(root), output=tmp_path / "a", stage="refine")
    with pytest.raises(RunError, match=r"nothing/environment.json: no such file; is .*/nothing a run folder"):
        train(cached_config(root), output=tmp_path / "b", stage="refine", source=tmp_path / "nothing")
    for after, said in (
        (1, "initialization.pt: stopped after 1 of 2 epochs"),
        (2, r"until 2: the run is not finished, it has no regression.pt yet; lchp train --output .*until 2 --resume, "),
    ):

        def stop(metrics: dict[str, Any], after: int = after) -> None:
            if metrics["epoch"] == after:
                raise Stopped

        with pytest.raises(Stopped):
            train(cached_config(root), stop, output=tmp_path / f"until {after}")
        with pytest.raises(RunError, match=said):
            train(cached_config(root), output=tmp_path / "c", stage="refine", source=tmp_path / f"until {after}")
        assert not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def boxless(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The straight run on the same images, without any box."""
    root = write_images(tmp_path_factory.mktemp("boxless") / "images", boxes=False)
    return train(cached_config(root), output=root.parent / "run")


def test_images_without_boxes(boxless: Result) -> None:
    summary = boxless.summary
    assert summary["results"]["lchp_r"]["center_crop"]["gt_known"] is None
    assert set(summary["consistency"]) == {"pseudo_label", "lchp_i", "lchp_r"}
    assert all(0 <= v <= 100 for v in summary["consistency"].values())
    assert summary["kept"]["gt_known"] is None
    assert 0 <= summary["kept"]["mean_confidence"] <= 100
    for parts in summary["unboxed"].values():
        assert parts["score"] == pytest.approx(parts["crop"] - parts["masked"] - parts["area"])
        assert min(parts["crop"], parts["masked"], parts["area"]) >= 0


def test_boxes_change_nothing_but_metrics(straight: Result, boxless: Result) -> None:
    """Weak supervision: the run sees class labels only. Without any box its predictions are the same."""
    table, other = straight.predictions(), boxless.predictions()
    boxes, scores = ("pseudo_label_box", "lchp_i_box", "lchp_r_box"), ("confidence", "crop_score", "masked_score")
    for column in ("image_id", "frame", "label", "top5", *boxes, *scores):
        assert table[column].to_pylist() == other[column].to_pylist()


def choices(section: str) -> list[dict[str, Any]]:
    """Every value of its fields of a few values that is not the default."""
    default = getattr(TrainConfig(), section)
    return [
        {name: value}
        for name, hint in field_types().items()
        if name.startswith(f"{section}.") and get_origin(hint) is Literal
        for value in get_args(hint)
        if value != getattr(default, name.split(".")[1])
    ]


# a choice of stage 1 or of a network, and one of stage 2, which do not meet
OPEN_CHOICES = zip_longest(
    [
        *choices("initialization"),
        {"initialization.localizer_start": 1, "initialization.epochs": 2},
        *choices("model"),
    ],
    [
        *choices("refinement"),
        {"refinement.augmentations": ("scale",)},
        {"refinement.freeze_bn": True},
        {"refinement.views": 2, "auto_batch": True},
        {"evaluation.consistency": True},
    ],
    fillvalue={},
)


@pytest.mark.parametrize(
    "values",
    [one | other for one, other in OPEN_CHOICES],
    ids=lambda v: ",".join(f"{k.split('.')[-1]}={x}" for k, x in v.items()),
)
def test_every_open_choice_trains(root: Path, tmp_path: Path, values) -> None:
    needs = {"initialization.attention": "features"} if values.get("model.head") == "gap" else {}
    quick = {"initialization.epochs": 1, "refinement.epochs": 1, "data.batch_size": 12, "refinement.tau": 0.0}
    config = override(cached_config(root, quick), needs | values)
    result = train(config, output=tmp_path / "run")
    assert all(v == v for m in runs.read_metrics(result.run) for v in m.values())  # no NaN
    assert result.summary["results"]["lchp_r"]["center_crop"]["gt_known"] >= 0


def test_resume_needs_a_run_and_the_same_stage(straight: Result, root: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run to go on with"):
        train(cached_config(root), output=tmp_path / "nothing", resume=True)
    with pytest.raises(RunError, match="another --stage than init"):
        train(cached_config(root), output=straight.run, stage="init", resume=True)


def test_a_bad_test_image_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    name = open_context(small_config(images), show_progress=False).test.split.image_ids[0]
    (images / name).write_bytes(b"not an image")
    with pytest.raises(DataError, match=re.escape(Path(name).name)):
        train(cached_config(images), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_changed_boxes_do_not_pass_for_the_recorded_ones(straight: Result) -> None:
    table = read_predictions(straight.run)
    at = table.column_names.index("lchp_r_box")
    moved = table.set_column(at, "lchp_r_box", pa.array([[0.0, 0.0, 0.01, 0.01]] * len(table), pa.list_(pa.float32())))
    with pytest.raises(RunError, match="lchp_r_iou does not follow"):
        summarize(moved)


def test_kept_boxes_of_stage_1_are_taken_only_for_the_same_crop(squares_config: TrainConfig, tmp_path: Path) -> None:
    """They are what a shared stage 1 has measured; a wider crop has other confidences."""
    first = train(squares_config, output=tmp_path / "first", stage="init").run
    known = known_kept(first, override(squares_config, {"refinement.tau": 0.5}))
    assert known is not None
    assert known["count"] == known["by_tau"]["0.5"]["count"]
    assert known_kept(first, override(squares_config, {"refinement.tau": 0.5, "refinement.crop_margin": 0.3})) is None
    older = json.loads((first / "config.json").read_text())
    del older["refinement"]["bn_statistics"]  # a stage 1 of a version without that field serves all the same
    (first / "config.json").write_text(json.dumps(older))
    assert known_kept(first, override(squares_config, {"refinement.tau": 0.5})) == known


def test_lchp_r_is_left_with_the_statistics_of_general_views(straight: Result, root: Path, tmp_path: Path) -> None:
    """The weights are those of a training that keeps the strong views' statistics; the running means are not."""
    config = cached_config(root, {"refinement.bn_statistics": "strong"})
    kept = train(config, output=tmp_path / "run", stage="refine", source=straight.run).run
    general, strong = weights(straight.run, "refinement"), weights(kept, "refinement")
    trained = [name for name in general if name.startswith("localizer") and "running" not in name]
    moved = [name for name in general if name.startswith("localizer") and name.endswith("running_mean")]
    assert moved
    assert all(torch.equal(general[n], strong[n]) for n in trained if not n.endswith("num_batches_tracked"))
    assert not any(torch.equal(general[n], strong[n]) for n in moved)
    before, after = straight.predictions(), read_predictions(kept)
    assert before["lchp_i_box"].to_pylist() == after["lchp_i_box"].to_pylist()
    assert before["lchp_r_box"].to_pylist() != after["lchp_r_box"].to_pylist()


def networks_of(config: TrainConfig, context: Context) -> Networks:
    """The networks of a config at their start."""
    return build(chain_of(config, ""), len(context.dataset.class_names), context.device)


def test_statistics_are_those_of_the_views_given(straight: Result) -> None:
    """The mean over batches of each batch's own mean, at the first BatchNorm, which sees what the images give it."""
    context = open_context(straight.config, show_progress=False)
    localizer = networks_of(straight.config, context).localizer
    seen: list[torch.Tensor] = []
    first = next(m for m in localizer.modules() if isinstance(m, torch.nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().mean((0, 2, 3))))
    settle_statistics(localizer.train(), context)
    assert localizer.training
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(0))
    assert first.momentum == 0.1  # as it was


def test_statistics_are_taken_uncompiled(straight: Result) -> None:
    """What `update_bn` changes of the BatchNorms would have a compiled network built anew, in dozens of pieces."""
    context = open_context(straight.config, show_progress=False)
    localizer = networks_of(straight.config, context).localizer
    built: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        built.append(graph)
        return graph.forward

    localizer.compile(backend=backend)
    settle_statistics(localizer, context)
    assert not built
    localizer(torch.rand(2, 3, 32, 32))
    assert built  # it is compiled, and stays so


def test_compiled_networks_train_the_same(
    straight: Result, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch.compile's backend that builds nothing; the checkpoints keep the names of the weights."""
    compiled: list[str] = []

    def compile_eagerly(self: torch.nn.Module) -> None:
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")  # pyright: ignore

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    run = train(override(cached_config(root), {"compile": True}), output=tmp_path / "run").run
    assert compiled == ["Classifier", "Localizer", "Classifier"]  # theta_1, Loc and theta_2
    assert_same_run(run, straight.run)


@pytest.mark.parametrize(
    ("field", "stage"),
    [
        ("initialization.lr", "initialization"),
        ("initialization.localizer_lr", "regression"),
        ("refinement.lr", "refinement"),
    ],
)
def test_a_diverged_training_names_its_link_and_the_images_of_its_batch(
    root: Path, tmp_path: Path, field: str, stage: str
) -> None:
    config = override(cached_config(root, {"refinement.labeller": "frozen", "refinement.tau": 0.0}), {field: 1e18})
    with pytest.raises(DivergedError) as error:
        train(config, output=tmp_path / "run")
    said = str(error.value)
    named = re.search(rf"^{stage}, epoch 1: loss is .* at step (\d+); .*; images of that batch: (.*)$", said)
    assert named, error.value
    context = open_context(config, show_progress=False)
    draws = "refinement" if stage == "refinement" else "initialization"
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, draws, 0))
    step = int(named[1]) - 1
    batch = [context.images.split.labels[i] for i in epoch_order(context, generator)[step]]
    known = dict(zip(context.images.split.image_ids, context.images.split.labels, strict=True))
    assert [known[i] for i in named[2].split(", ")] == batch


@pytest.mark.parametrize(
    ("part", "said"),
    [("pseudo_source", "boxes, epoch 1: pseudo_area is nan"), ("label_views", "labels, epoch 1: confidence is nan")],
)
def test_boxes_and_labels_that_are_not_finite_are_named_by_their_link(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, said: str
) -> None:
    broken: dict[str, Callable[..., Any]] = {
        "pseudo_source": lambda _work: lambda images, _labels: images.new_full((len(images), 4), torch.nan),
        "label_views": lambda *at: links.Labels(
            at[2].new_zeros(len(at[2]), 4), *[at[2].new_full((len(at[2]),), torch.nan)] * 2
        ),
    }
    monkeypatch.setattr(links if part == "label_views" else box_links, part, broken[part])
    with pytest.raises(DivergedError, match=f"{said}; training diverged"):
        train(cached_config(root, CHAINS["psol refined"]), output=tmp_path / "run")


# --- one run per folder


def contents(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def meanwhile(monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]) -> None:
    """Lets something happen while the next training opens its data: it has looked at its folder, and not claimed it."""
    real, calls = training_run.open_context, iter([event])

    def opened(*args: Any) -> Any:
        next(calls, lambda: None)()
        return real(*args)

    monkeypatch.setattr(training_run, "open_context", opened)


def test_of_two_trainings_into_one_folder_one_wins_and_the_other_writes_nothing(
    straight: Result, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, winner = tmp_path / "run", {}

    def other() -> None:
        train(cached_config(root), output=run)
        winner.update(contents(run))

    meanwhile(monkeypatch, other)
    with pytest.raises(RunError) as error:
        train(cached_config(root, {"seed": 1}), output=run)
    assert str(error.value) == f"{run}: holds a run already; go on with it by --resume, or name another --output"
    assert contents(run) == winner
    assert_same_run(run, straight.run)


def test_two_commands_at_once_with_one_folder(straight: Result, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", *small_flags(small_values(root)), "--output", str(run)]
    started = [killed.start(killed.command, command, -1, 0, tmp_path / f"said{n}") for n in range(2)]
    for process in started:
        process.join(200)
    assert sorted(p.exitcode or 0 for p in started) == [0, 2]
    loser = next(n for n, p in enumerate(started) if p.exitcode == 2)
    lines = (tmp_path / f"said{loser}").read_text().splitlines()
    assert len([line for line in lines if line.startswith(f"lchp: error: {run}")]) == 1
    assert_same_run(run, straight.run)


def test_trainings_without_a_folder_of_the_same_second_are_two(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    config, found = cached_config(root, {"method.name": "cam", "initialization.epochs": 1}), []
    found.append(train(config).run)
    meanwhile(monkeypatch, lambda: found.append(train(config).run))
    found.append(train(config).run)
    name = "folder-seed0-20260101-000000"
    assert found == [Path("runs") / name, Path("runs") / f"{name}-2", Path("runs") / f"{name}-3"]
    for run in found[1:]:
        assert_same_run(run, found[0])


def test_a_running_training_can_be_used_and_not_be_gone_on_with(straight: Result, root: Path, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []

    def look(metrics: dict[str, Any]) -> None:
        before = contents(run)
        with pytest.raises(RunError, match="holds a run already"):
            train(cached_config(root), output=run)
        with pytest.raises(HeldError, match=r"run/lock: held by a process that is still running \(pid"):
            train(cached_config(root), output=run, resume=True)
        if metrics["stage"] == "refinement":
            seen.append(load_run(run, torch.device("cpu")).result)
            config = cached_config(root, {"refinement.epochs": 1})
            train(config, output=tmp_path / f"from {len(seen)}", stage="refine", source=run)
        assert contents(run) == before

    train(cached_config(root), look, output=run)
    assert seen == ["lchp_i", "lchp_r"]
    assert_same_run(run, straight.run)
    assert not (run / "lock").exists()


def test_a_claimed_folder_that_is_gone_is_not_made_again(root: Path, tmp_path: Path, monkeypatch) -> None:
    """While the data was opened, which may take an hour, its disk was unmounted."""
    run = tmp_path / "disk" / "run"
    run.mkdir(parents=True)
    meanwhile(monkeypatch, lambda: run.parent.rename(tmp_path / "aside"))
    with pytest.raises(RunError, match=r"run/lock: cannot be written \(No such file or directory\)"):
        train(cached_config(root), output=run)
    assert [p.name for p in tmp_path.iterdir()] == ["aside"]
