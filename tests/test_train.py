"""A whole run: what it writes, that it repeats itself, goes on where it stopped, and takes every open choice."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import killed
import pyarrow as pa
import pytest
import torch
from squares import small_config, small_flags, small_values, write_images

import lchp.train as train_module
from lchp import runs
from lchp.config import TrainConfig, field_types, override
from lchp.context import open_context
from lchp.errors import ConfigError, DataError, RunError
from lchp.locks import HeldError
from lchp.loop import DivergedError, epoch_seed
from lchp.measure import known_kept
from lchp.predict import load_run
from lchp.records import read_predictions, summarize
from lchp.train import Result, build, settle_statistics, train
from lchp.views import epoch_order

STOP_AFTER = [("initialization", 1), ("initialization", 2), ("refinement", 1), ("refinement", 2)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of both stages without a break."""
    return train(small_config(root), output=tmp_path_factory.mktemp("straight") / "run")


def predictions(run: Path) -> bytes:
    return (run / "predictions.parquet").read_bytes()


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"{stage}.pt", weights_only=True)
    return {f"{name}.{k}": v for name, module in state["modules"].items() for k, v in module.items()}


def assert_same_run(one: Path, other: Path, stages: tuple[str, ...] = ("initialization", "refinement")) -> None:
    """Bitwise: predictions, summary, weights, and the losses of each epoch."""
    assert predictions(one) == predictions(other)
    assert (one / "summary.json").read_text() == (other / "summary.json").read_text()
    for stage in stages:
        a, b = weights(one, stage), weights(other, stage)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)

    def losses(run: Path) -> list[Any]:
        return [(m["stage"], m["epoch"], m["loss"]) for m in runs.read_metrics(run) if m["stage"] in stages]

    assert losses(one) == losses(other)


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
    assert [(m["stage"], m["epoch"]) for m in runs.read_metrics(run)] == STOP_AFTER
    environment = runs.read_json(run / "environment.json")
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["device"] == "cpu"
    assert set(environment["wall_seconds"]) >= {"initialization", "refinement", "total"}


def test_config_written_is_config_received(straight: Result, root: Path) -> None:
    assert runs.read_config(straight.run) == straight.config == small_config(root)


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
    assert_same_run(straight.run, train(small_config(root), output=tmp_path / "again").run)
    other = train(small_config(root, {"seed": 1}), output=tmp_path / "other")
    assert predictions(other.run) != predictions(straight.run)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", STOP_AFTER, ids=str)
def test_resume_after_any_epoch_equals_the_straight_run(straight: Result, root: Path, tmp_path: Path, after) -> None:
    def stop(metrics: dict[str, Any]) -> None:
        if (metrics["stage"], metrics["epoch"]) == after:
            raise Stopped

    with pytest.raises(Stopped):
        train(small_config(root), stop, output=tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    seen = []
    train(small_config(root), lambda m: seen.append((m["stage"], m["epoch"])), output=tmp_path / "run", resume=True)
    assert seen == STOP_AFTER[STOP_AFTER.index(after) + 1 :]
    assert_same_run(straight.run, tmp_path / "run")


def test_resume_with_one_cycle_schedules_and_a_moving_labeller(root: Path, tmp_path: Path) -> None:
    """State that only some configs have: schedulers that step per batch, and a second localizer."""
    config = small_config(
        root,
        {
            "initialization.schedule": "onecycle",
            "initialization.localizer_schedule": "onecycle",
            "refinement.schedule": "onecycle",
            "refinement.labeller": "ema",
        },
    )
    train(config, output=tmp_path / "straight")
    for after in (STOP_AFTER[0], STOP_AFTER[2]):
        run = tmp_path / after[0]

        def stop(metrics: dict[str, Any], after=after) -> None:
            if (metrics["stage"], metrics["epoch"]) == after:
                raise Stopped

        with pytest.raises(Stopped):
            train(config, stop, output=run)
        train(config, output=run, resume=True)
        assert_same_run(tmp_path / "straight", run)


def test_stages_apart_equal_both_at_once(straight: Result, root: Path, tmp_path: Path) -> None:
    first = train(small_config(root), output=tmp_path / "init", stage="init")
    assert set(first.summary["results"]) == {"pseudo_label", "lchp_i"}
    second = train(small_config(root), output=tmp_path / "refine", stage="refine", source=tmp_path / "init")
    assert predictions(second.run) == predictions(straight.run)
    assert second.summary == straight.summary
    assert_same_run(second.run, straight.run, ("refinement",))


def test_another_tau_reuses_stage_1_and_another_delta_does_not(straight: Result, root: Path, tmp_path: Path) -> None:
    run = straight.run
    train(small_config(root, {"refinement.tau": 0.9}), output=tmp_path / "tau", stage="refine", source=run)
    with pytest.raises(RunError, match="another config"):
        train(small_config(root, {"initialization.delta": 0.4}), output=tmp_path / "d", stage="refine", source=run)
    assert not (tmp_path / "d").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(straight: Result, root: Path) -> None:
    before = predictions(straight.run)
    with pytest.raises(RunError, match="holds a run already"):
        train(small_config(root), output=straight.run)
    with pytest.raises(RunError, match="differs from the config asked for"):
        train(small_config(root, {"seed": 5}), output=straight.run, resume=True)
    assert predictions(straight.run) == before


def test_stage_2_needs_a_finished_stage_1(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the run folder of its stage 1"):
        train(small_config(root), output=tmp_path / "a", stage="refine")
    with pytest.raises(RunError, match="no such checkpoint"):
        train(small_config(root), output=tmp_path / "b", stage="refine", source=tmp_path / "nothing")

    def stop(_metrics: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(small_config(root), stop, output=tmp_path / "half")
    with pytest.raises(RunError, match="stopped after 1 epoch"):
        train(small_config(root), output=tmp_path / "c", stage="refine", source=tmp_path / "half")


def test_images_without_boxes(tmp_path: Path) -> None:
    config = small_config(write_images(tmp_path / "images", boxes=False))
    summary = train(config, output=tmp_path / "run").summary
    assert summary["results"]["lchp_r"]["center_crop"]["gt_known"] is None
    assert set(summary["consistency"]) == {"pseudo_label", "lchp_i", "lchp_r"}
    assert all(0 <= v <= 100 for v in summary["consistency"].values())
    assert summary["kept"]["gt_known"] is None
    assert 0 <= summary["kept"]["mean_confidence"] <= 100
    for parts in summary["unboxed"].values():
        assert parts["score"] == pytest.approx(parts["crop"] - parts["masked"] - parts["area"])
        assert min(parts["crop"], parts["masked"], parts["area"]) >= 0


def test_boxes_change_nothing_but_metrics(straight: Result, tmp_path: Path) -> None:
    """Weak supervision: the run sees class labels only. Without any box its predictions are the same."""
    config = small_config(write_images(tmp_path / "images", boxes=False))
    table, other = straight.predictions(), train(config, output=tmp_path / "run").predictions()
    boxes, scores = ("pseudo_label_box", "lchp_i_box", "lchp_r_box"), ("confidence", "crop_score", "masked_score")
    for column in ("image_id", "frame", "label", "top5", *boxes, *scores):
        assert table[column].to_pylist() == other[column].to_pylist()


OPEN_CHOICES = [
    {name: value}
    for name, hint in field_types().items()
    if name.startswith(("initialization.", "refinement.", "model.")) and get_origin(hint) is Literal
    for value in get_args(hint)
    if value != dict(vars(TrainConfig().__getattribute__(name.split(".")[0])))[name.split(".")[1]]
]


@pytest.mark.parametrize(
    "values",
    [
        *OPEN_CHOICES,
        {"refinement.augmentations": ("scale",)},
        {"refinement.freeze_bn": True},
        {"refinement.views": 2, "auto_batch": True},
        {"initialization.localizer_start": 1, "initialization.epochs": 2},
        {"evaluation.consistency": True},
    ],
    ids=lambda v: ",".join(f"{k.split('.')[-1]}={x}" for k, x in v.items()),
)
def test_every_open_choice_trains(root: Path, tmp_path: Path, values) -> None:
    needs = {"initialization.attention": "features"} if values.get("model.head") == "gap" else {}
    quick = {"initialization.epochs": 1, "refinement.epochs": 1, "data.batch_size": 12, "refinement.tau": 0.0}
    config = override(small_config(root, quick), needs | values)
    result = train(config, output=tmp_path / "run")
    assert all(v == v for m in runs.read_metrics(result.run) for v in m.values())  # no NaN
    assert result.summary["results"]["lchp_r"]["center_crop"]["gt_known"] >= 0


def test_resume_needs_a_run_and_the_same_stage(straight: Result, root: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run to go on with"):
        train(small_config(root), output=tmp_path / "nothing", resume=True)
    with pytest.raises(RunError, match="another --stage than init"):
        train(small_config(root), output=straight.run, stage="init", resume=True)


def test_a_bad_test_image_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    first = train(small_config(images), output=tmp_path / "first")  # which images are the test images
    name = str(read_predictions(first.run)["image_id"][0].as_py())
    (images / name).write_bytes(b"not an image")
    with pytest.raises(DataError, match=re.escape(Path(name).name)):
        train(override(small_config(images), {"data.cache": str(tmp_path / "cache")}), output=tmp_path / "second")
    assert not (tmp_path / "second").exists()


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
    kept = train(override(small_config(root), {"refinement.bn_statistics": "strong"}), output=tmp_path / "run").run
    general, strong = weights(straight.run, "refinement"), weights(kept, "refinement")
    trained = [name for name in general if name.startswith("localizer") and "running" not in name]
    moved = [name for name in general if name.startswith("localizer") and name.endswith("running_mean")]
    assert moved
    assert all(torch.equal(general[n], strong[n]) for n in trained if not n.endswith("num_batches_tracked"))
    assert not any(torch.equal(general[n], strong[n]) for n in moved)
    before, after = straight.predictions(), read_predictions(kept)
    assert before["lchp_i_box"].to_pylist() == after["lchp_i_box"].to_pylist()
    assert before["lchp_r_box"].to_pylist() != after["lchp_r_box"].to_pylist()


def test_statistics_are_those_of_the_views_given(straight: Result) -> None:
    """The mean over batches of each batch's own mean, at the first BatchNorm, which sees what the images give it."""
    context = open_context(straight.config, show_progress=False)
    localizer = build(straight.config, len(context.dataset.class_names), context.device).localizer
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
    localizer = build(straight.config, len(context.dataset.class_names), context.device).localizer
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
    run = train(override(small_config(root), {"compile": True}), output=tmp_path / "run").run
    assert compiled == ["Classifier", "Classifier", "Localizer"]
    assert_same_run(run, straight.run)


def test_a_diverged_training_names_the_images_of_its_batch(root: Path, tmp_path: Path) -> None:
    config = override(small_config(root), {"initialization.localizer_lr": 1e12})
    with pytest.raises(DivergedError) as error:
        train(config, output=tmp_path / "run")
    named = re.search(r"at step (\d+); .*; images of that batch: (.*)$", str(error.value))
    assert named, error.value
    context = open_context(config, show_progress=False)
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, "initialization", 0))
    step = int(named[1]) - 1
    batch = [context.images.split.labels[i] for i in epoch_order(context, generator)[step]]
    known = dict(zip(context.images.split.image_ids, context.images.split.labels, strict=True))
    assert [known[i] for i in named[2].split(", ")] == batch


# --- one run per folder


def contents(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def meanwhile(monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]) -> None:
    """Lets something happen while the next training opens its data: it has looked at its folder, and not claimed it."""
    real, calls = train_module.open_context, iter([event])

    def opened(*args: Any) -> Any:
        next(calls, lambda: None)()
        return real(*args)

    monkeypatch.setattr(train_module, "open_context", opened)


def test_of_two_trainings_into_one_folder_one_wins_and_the_other_writes_nothing(
    straight: Result, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, winner = tmp_path / "run", {}

    def other() -> None:
        train(small_config(root), output=run)
        winner.update(contents(run))

    meanwhile(monkeypatch, other)
    with pytest.raises(RunError) as error:
        train(small_config(root, {"seed": 1}), output=run)
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
    straight: Result, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    config, found = small_config(root), []
    found.append(train(config).run)
    meanwhile(monkeypatch, lambda: found.append(train(config).run))
    found.append(train(config).run)
    name = "folder-seed0-20260101-000000"
    assert found == [Path("runs") / name, Path("runs") / f"{name}-2", Path("runs") / f"{name}-3"]
    for run in found:
        assert_same_run(run, straight.run)


def test_a_running_training_can_be_used_and_not_be_gone_on_with(straight: Result, root: Path, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []

    def look(metrics: dict[str, Any]) -> None:
        before = contents(run)
        with pytest.raises(RunError, match="holds a run already"):
            train(small_config(root), output=run)
        with pytest.raises(HeldError, match=r"run/lock: held by a process that is still running \(pid"):
            train(small_config(root), output=run, resume=True)
        if metrics["stage"] == "refinement":
            seen.append(load_run(run, torch.device("cpu")).result)
            train(small_config(root), output=tmp_path / f"from {len(seen)}", stage="refine", source=run)
        assert contents(run) == before

    train(small_config(root), look, output=run)
    assert seen == ["lchp_i", "lchp_r"]
    assert_same_run(run, straight.run)
    assert not (run / "lock").exists()


def test_a_claimed_folder_that_is_gone_is_not_made_again(root: Path, tmp_path: Path, monkeypatch) -> None:
    """While the data was opened, which may take an hour, its disk was unmounted."""
    run = tmp_path / "disk" / "run"
    run.mkdir(parents=True)
    meanwhile(monkeypatch, lambda: run.parent.rename(tmp_path / "aside"))
    with pytest.raises(RunError, match=r"run/lock: cannot be written \(No such file or directory\)"):
        train(small_config(root), output=run)
    assert [p.name for p in tmp_path.iterdir()] == ["aside"]
