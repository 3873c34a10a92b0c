"""What a training promises when it is killed, interrupted, out of memory, or left with a damaged checkpoint."""

import logging
import random
import shutil
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed
import pytest
import torch
from squares import cached_config, small_flags, small_values, write_images

from lchp.config import TrainConfig, override
from lchp.errors import ConfigError, RunError
from lchp.files import runs
from lchp.method import steps as stages
from lchp.system.interrupt import Interrupted, Stop
from lchp.training import fit as loop
from lchp.training import links
from lchp.training import run as training_run
from lchp.training.checkpoints import load_checkpoint, newest_checkpoint, previous, save_checkpoint
from lchp.training.run import Result, train

KILLS = 10


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return cached_config(write_images(tmp_path_factory.mktemp("images")), {"threads": 1})


@pytest.fixture(scope="module")
def straight(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of both stages without a break."""
    return train(config, output=tmp_path_factory.mktemp("straight") / "run")


@pytest.fixture(scope="module")
def longest(config: TrainConfig) -> TrainConfig:
    """Of every kind of link."""
    values = {"method.name": "psol", "method.localizer": True, "method.refine": True, "refinement.labeller": "frozen"}
    return override(config, values)


def comparable(run: Path) -> tuple[Any, ...]:
    """All that a run leaves behind but times: predictions bitwise, summary, weights, the metrics of each epoch."""
    lines = [{k: v for k, v in m.items() if "second" not in k} for m in runs.read_metrics(run)]
    lines.sort(key=lambda m: (m["stage"], m["epoch"]))  # one that was trained twice stands where it was last
    weights = {}
    for path in sorted((run / "checkpoints").glob("*.pt")):
        if ".previous" in path.suffixes:
            continue
        for name, module in load_checkpoint(path)["modules"].items():
            weights |= {f"{path.stem} {name} {k}": v.numpy().tobytes() for k, v in module.items()}
    return (run / "predictions.parquet").read_bytes(), (run / "summary.json").read_text(), lines, weights


@pytest.mark.parametrize("which", ["config", "longest"])
def test_killed_at_random_moments_and_resumed_it_ends_as_if_nothing_had_happened(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In a step, between steps, with half a checkpoint written, before and after a rename, between the links, while
    predictions are written; most kills hit a training that was killed before. Every second run writes a checkpoint
    after each step."""
    # one epoch of each link of stage 1, and two of those of stage 2
    config = override(request.getfixturevalue(which), {"initialization.epochs": 1})
    draw, kills, whole = random.Random(0), 0, comparable(train(config, output=tmp_path / "straight").run)
    count = killed.CONTEXT.Value("i", 0)
    process = killed.start(killed.body, config, tmp_path / "whole", None, count, 0.0)
    begin = time.monotonic()
    process.join()
    seconds, moments = time.monotonic() - begin, count.value
    assert process.exitcode == 0
    assert moments > 60
    assert comparable(tmp_path / "whole") == whole
    for number in range(2 * KILLS):
        run = tmp_path / f"run{number}"
        last = KILLS // 2
        for attempt in range(last + 1):
            # one in four at a moment of the clock; the others at one of the moments, evenly
            timed = attempt < last and draw.random() < 0.25
            # what is left of a run that was killed before is shorter
            at = draw.randrange(moments // (3 if attempt else 1)) if attempt < last and not timed else None
            process = killed.start(killed.body, config, run, at, count, (600.0, 0.0)[number % 2])
            process.join(draw.uniform(0, seconds / 3) if timed else None)
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:  # it ended before its moment came
                break
            assert process.exitcode == -signal.SIGKILL
        assert comparable(run) == whole
        assert not list(run.rglob(".*")), "a temporary file is left"
        if kills >= KILLS:
            break
    assert kills >= KILLS


@pytest.mark.parametrize(("signum", "at"), [(signal.SIGTERM, 3), (signal.SIGINT, 16), (signal.SIGTERM, 27)])
def test_a_signal_writes_a_checkpoint_at_the_steps_end(
    config: TrainConfig, straight: Result, tmp_path: Path, signum: int, at: int
) -> None:
    flags = small_flags(small_values(Path(config.data.root or "")) | {"threads": 1})
    arguments = ["train", *flags, "--output", str(tmp_path / "run"), "--no-forecast"]
    process = killed.start(killed.command, arguments, at, signum, tmp_path / "said")
    process.join(120)  # most of it is the start; that it ends in mid-epoch is shown below
    assert process.exitcode == 128 + signum
    said = (tmp_path / "said").read_text()
    assert f"lchp: stopped; what was trained is kept: go on with the same command, --output {tmp_path / 'run'}" in said
    found = max((tmp_path / "run" / "checkpoints").glob("*.pt"), key=lambda p: p.stat().st_mtime_ns)
    assert load_checkpoint(found)["within"] is not None, "the checkpoint is of the middle of an epoch"
    with warnings.catch_warnings(action="error", category=UserWarning):
        train(config, output=tmp_path / "run", resume=True)
    assert comparable(tmp_path / "run") == comparable(straight.run)


def test_who_asks_twice_does_not_wait() -> None:
    stop = Stop()

    def twice() -> None:
        with stop.deferred():
            stop.ask(signal.SIGTERM)
            assert stop.asked
            stop.ask(signal.SIGTERM)
            raise AssertionError("the second was not heard")

    with pytest.raises(Interrupted):
        twice()
    with pytest.raises(Interrupted) as error:
        Stop().ask(signal.SIGTERM)
    assert error.value.status == 143


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]


def test_a_flipped_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    state = {"identity": "mine", "modules": {"net": {"weight": torch.arange(300.0)}}, "epoch": 1}
    path = tmp_path / "c.pt"
    save_checkpoint(path, state)
    content, noticed = path.read_bytes(), 0
    for position in range(0, len(content), 7):
        path.write_bytes(flipped(content, position))
        try:
            read = load_checkpoint(path)
        except RunError:
            noticed += 1
        else:
            assert torch.equal(read["modules"]["net"]["weight"], state["modules"]["net"]["weight"])
            assert (read["identity"], read["epoch"]) == ("mine", 1)
    assert noticed > 300 * 4 / 7  # every byte of the weights, at least


def test_the_last_two_are_kept_and_the_newest_intact_one_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.pt"
    assert newest_checkpoint(path, "mine") is None
    for epoch in (1, 2, 3):
        save_checkpoint(path, {"identity": "mine", "modules": {}, "epoch": epoch})
    assert [load_checkpoint(p)["epoch"] for p in (path, previous(path))] == [3, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.previous.pt", "c.pt"]
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        state = newest_checkpoint(path, "mine")
    assert state is not None
    assert state["epoch"] == 2
    assert f"{path}: damaged" in caplog.text
    assert "going on from the checkpoint before it, c.previous.pt" in caplog.text
    previous(path).write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint of this link is intact"):
        newest_checkpoint(path, "mine")


def test_a_damaged_checkpoint_costs_an_epoch_and_nothing_else(
    config: TrainConfig, straight: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in ("initialization", "regression", "refinement"):
        run = shutil.copytree(straight.run, tmp_path / stage)
        path = run / "checkpoints" / f"{stage}.pt"
        path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))
        seen: list[tuple[str, int]] = []
        train(config, lambda m: seen.append((m["stage"], m["epoch"])), output=run, resume=True)  # noqa: B023
        assert seen == [(stage, 2)]
        assert comparable(run) == comparable(straight.run)
    assert "damaged" in caplog.text


def out_of_memory_beyond(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier's link runs out of memory for more images than that at a time, once it has taken some steps."""
    of, steps = links.training_of, iter(range(10**6))

    def limited(work: Any, link: Any) -> Any:
        training = of(work, link)

        def step(net: Any, batch: Any, epoch: int) -> Any:
            if len(batch) > images and next(steps) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
            return training.step(net, batch, epoch)

        return replace(training, step=step) if link.kind == "classifier" else training

    monkeypatch.setattr(training_run, "training_of", limited)


@pytest.mark.parametrize("method", ["lchp", "cam"])
def test_auto_batch_goes_on_with_parts_of_a_batch(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    out_of_memory_beyond(2, monkeypatch)
    config = override(config, {"method.name": method})
    asked = override(config, {"auto_batch": True})
    result = train(asked, output=tmp_path / "run")
    assert "the GPU's memory ran out" in caplog.text
    assert "each batch goes in 4 parts" in caplog.text
    lines = runs.read_metrics(result.run)
    later = 4 if method == "lchp" else 1
    assert [m.get("chunks") for m in lines] == [4, 4, *[None] * later]  # the other links fit
    assert all(m.get("loss", 0.0) == m.get("loss", 0.0) for m in lines)  # boxes have none
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        out_of_memory_beyond(1, patch)
        with pytest.raises(RunError, match=r"memory ran out .* with 2 images at a time; lower --data.image-size"):
            train(asked, output=tmp_path / "small")
    with monkeypatch.context() as patch:
        out_of_memory_beyond(2, patch)
        with pytest.raises(RunError, match=r"memory ran out .*--auto-batch"):
            train(config, output=tmp_path / "not asked")


@pytest.mark.parametrize("method", ["spg", "csoa", "gr", "cutmix", "has"])
def test_auto_batch_is_refused_where_a_loss_needs_the_whole_batch(
    config: TrainConfig, tmp_path: Path, method: str
) -> None:
    with pytest.raises(ConfigError) as error:
        train(override(config, {"auto_batch": True, "method.name": method}), output=tmp_path / "run")
    assert str(error.value) == f"auto_batch = True: expected False, since the method {method!r} takes batches whole"
    assert not (tmp_path / "run").exists()


def test_a_tau_that_rejects_everything_is_a_failure_with_its_reason_when_resumed_too(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never = override(config, {"refinement.tau": 1.0, "refinement.epochs": 5})
    with pytest.raises(
        RunError, match=r"refinement, epoch 3: no box was more confident than refinement.tau = 1 .* 3 e"
    ):
        train(never, output=tmp_path / "run")
    assert len([r for r in caplog.records if "learnt nothing" in r.message]) == 2
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(RunError, match=r"refinement, epoch 3: no box was more confident"):
        train(never, output=tmp_path / "run", resume=True)


def test_an_operation_without_a_deterministic_kernel_is_named(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism\nmore"
        )

    monkeypatch.setattr(stages, "pseudo_boxes", refused)
    with pytest.raises(RunError) as error:
        train(config, output=tmp_path / "run")
    assert str(error.value) == (
        "initialization: adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation; "
        "leave --deterministic out to train on this device"
    )


def test_deterministic_asks_torch_for_it_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from lchp.system.devices import prepare

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    asked = override(TrainConfig(), {"deterministic": True})
    try:
        prepare(asked, torch.device("cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        prepare(asked, torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        prepare(TrainConfig(), torch.device("cuda"))
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_weights_that_are_not_finite_are_never_kept(config: TrainConfig, tmp_path: Path) -> None:
    """A signal after a step whose loss was finite and whose weights are not: the checkpoint before it stays."""
    stop, steps = Stop(), iter(range(100))
    real = loop.take_step

    def spoil(training: loop.Training, *rest: Any) -> Any:
        scalars = real(training, *rest)
        if training.name == "regression" and next(steps) == 4:  # the second epoch's second step
            for p in training.modules["localizer"].parameters():
                p.data.fill_(float("inf"))
            stop.ask(signal.SIGTERM)
        return scalars

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", spoil)
        with pytest.raises(loop.DivergedError, match="weights of the localizer are not finite"):
            train(config, output=tmp_path / "run", stop=stop)
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "regression.pt")
    assert (state["epoch"], state["within"]) == (1, None)
    assert all(v.isfinite().all() for m in state["modules"].values() for v in m.values())
