"""Run folders and the loop: atomic writes, damaged or foreign checkpoints, metrics, schedules."""

import errno
import math
import os
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lchp.config import TrainConfig, preset
from lchp.errors import RunError
from lchp.files import runs
from lchp.method.batch import Batch
from lchp.training import fit as loop
from lchp.training.checkpoints import load_checkpoint
from lchp.training.definition import Chunks, DivergedError, Session, Training, epoch_seed, make_schedule
from lchp.training.fit import fit


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_atomic_write_leaves_nothing_when_the_writer_raises(tmp_path: Path) -> None:
    def broken(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(RunError, match=r"new: cannot be written \(disk full\); "):
        runs.write_atomically(tmp_path / "new", broken)
    assert files(tmp_path) == []
    runs.write_atomically(tmp_path / "old", lambda file: file.write(b"whole"))
    with pytest.raises(RunError, match="disk full"):
        runs.write_atomically(tmp_path / "old", broken)
    assert (tmp_path / "old").read_bytes() == b"whole"
    assert files(tmp_path) == ["old"]
    assert os.stat(tmp_path / "old").st_mode & 0o777 == 0o644


def test_config_round_trips(tmp_path: Path) -> None:
    config = preset("cub50_cpu")
    runs.write_config(tmp_path, config)
    assert runs.read_config(tmp_path) == config


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", '{"seed": 0}', '{"data": 3}'])
def test_unreadable_config_is_one_line(tmp_path: Path, content) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError) as error:
        runs.read_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: ")
    assert "\n" not in str(error.value)


def test_metrics_replace_a_repeated_epoch(tmp_path: Path) -> None:
    runs.write_config(tmp_path, preset("parts"))
    assert runs.read_metrics(tmp_path) == []
    for stage, epoch, loss in (("a", 1, 1.0), ("a", 2, 0.9), ("b", 1, 0.8), ("a", 2, 0.7)):
        runs.append_metrics(tmp_path, {"stage": stage, "epoch": epoch, "loss": loss})
    lines = [(m["stage"], m["epoch"], m["loss"]) for m in runs.read_metrics(tmp_path)]
    assert lines == [("a", 1, 1.0), ("b", 1, 0.8), ("a", 2, 0.7)]


def test_digest_does_not_depend_on_key_order() -> None:
    assert runs.digest({"a": 1, "b": [2]}) == runs.digest({"b": [2], "a": 1}) != runs.digest({"a": 1, "b": [3]})


# --- the loop


def line(epochs: int = 3, *, lr: float = 0.1, blow_up: bool = False) -> tuple[Training, nn.Linear]:
    """Fits a line to random batches of 4 draws each, two per epoch."""
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)

    def step(net: nn.Module, batch: Batch, _epoch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = batch.images
        return (net(x) - 3 * x).square().mean() * (math.inf if blow_up else 1), {}

    schedule = make_schedule(optimizer, "exponential", decay=0.5, epochs=epochs, steps_per_epoch=2)

    def batches(_epoch: int, generator: torch.Generator, start: int) -> list[Batch]:
        return [Batch(torch.rand(4, 1, generator=generator), torch.zeros(4)) for _ in range(2)][start:]

    training = Training("line", epochs, 8, {"net": net}, step, batches, "net", optimizer, schedule, steps_per_epoch=2)
    return training, net


def run(training: Training, path: Path, **options: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    fit(training, Session(1, on_epoch=seen.append, show_progress=False, **options), path, "mine")
    return seen


def test_fit_reports_each_epoch_and_decays(tmp_path: Path) -> None:
    seen = run(line()[0], tmp_path / "c.pt")
    assert [(m["stage"], m["epoch"], m["epochs"]) for m in seen] == [("line", 1, 3), ("line", 2, 3), ("line", 3, 3)]
    assert [m["lr_net"] for m in seen] == pytest.approx([0.1, 0.05, 0.025])
    assert seen[2]["loss"] < seen[0]["loss"]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_loop_equals_the_straight_one(tmp_path: Path, cut) -> None:
    straight, net = line()
    run(straight, tmp_path / "straight.pt")

    def stop(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(line()[0], Session(1, on_epoch=stop, show_progress=False), tmp_path / "c.pt", "mine")
    resumed, other = line()
    with torch.no_grad():
        other.weight.fill_(99)
    assert [m["epoch"] for m in run(resumed, tmp_path / "c.pt", resume=True)] == list(range(cut + 1, 4))
    assert torch.equal(other.weight, net.weight)
    assert torch.equal(other.bias, net.bias)


def test_metrics_are_recorded_before_the_checkpoint(tmp_path: Path) -> None:
    """A crash between the two repeats an epoch instead of losing its line."""
    path, there = tmp_path / "c.pt", []
    run(line(1)[0], path, record=lambda _metrics: there.append(path.exists()))
    assert there == [False]


def test_divergence_is_said_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    run(line(1)[0], path)
    before = path.read_bytes()
    with pytest.raises(DivergedError, match=r"line, epoch 2: loss is (inf|nan)"):
        run(line(2, blow_up=True)[0], path, resume=True)
    assert path.read_bytes() == before


def test_divergence_names_the_step_and_its_images(tmp_path: Path) -> None:
    losses = torch.tensor([1.0] * 130 + [math.inf, math.nan] + [1.0] * 500)
    seen: list[Batch] = []

    def step(net: nn.Module, batch: Batch, _: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen.append(batch)
        return 0 * net(torch.ones(1, 1)).sum() + batch.labels[0], {}

    training = replace(
        line(1)[0],
        batches=lambda _epoch, _generator, start: [Batch(torch.ones(1, 1), x[None]) for x in losses[start:]],
        step=step,
        images=lambda epoch, n: [f"image {epoch}.{n}.{k}" for k in range(10)],
    )
    with pytest.raises(DivergedError) as error:
        run(training, tmp_path / "c.pt")
    assert "epoch 1: loss is inf at step 131; training diverged" in str(error.value)
    assert "image 0.130.0, image 0.130.1" in str(error.value)
    assert str(error.value).endswith("image 0.130.7 and 2 more")
    assert len(seen) == 200  # not the whole epoch


def raises(error: Exception) -> Callable[..., Any]:
    def step(*_: object) -> Any:
        raise error

    return step


MEMORY = {
    "gpu": (
        raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")),
        "GPU's .*2.00 GiB",
    ),
    "cublas": (raises(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `f`")), "GPU's .*ALLOC_FAILED"),
    "torch": (lambda *_: torch.empty(2**60), r"machine's .*\(DefaultCPUAllocator.* allocate 4611686018427387904 bytes"),
    "numpy": (lambda *_: np.empty(2**59), "machine's .*Unable to allocate 4.00 EiB"),
    "python": (lambda *_: bytearray(2**60), "machine's .*no memory for Python"),
    "system": (raises(OSError(errno.ENOMEM, "Cannot allocate memory")), "machine's .*Cannot allocate"),
    "loader": (
        raises(RuntimeError("Caught RuntimeError in worker 0.\nTraceback\nstd::bad_alloc")),
        "machine's .*bad_alloc",
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_runs_out_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    """As the libraries really say it, of the GPU and of the machine."""
    step, said = MEMORY[name]
    with pytest.raises(RunError, match=rf"line, epoch 1: the {said}.*--data.batch-size") as error:
        run(replace(line(1)[0], step=step), tmp_path / "c.pt")
    assert "\n" not in str(error.value)


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes do not fit"), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)) as found:
            run(replace(line(1)[0], step=raises(error)), tmp_path / "c.pt")
        assert found.value is error


def test_smaller_chunks_begin_when_the_failed_step_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are what filled the memory; an error that is still handled would hold them."""
    kept: list[weakref.ref[torch.Tensor]] = []
    real = line(1)[0]

    def step(net: Any, batch: Batch, epoch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not kept:
            large = torch.ones(8)
            kept.append(weakref.ref(large))
            torch.empty(2**60)
        return real.step(net, batch, epoch)

    halve, chunks = loop.halve, Chunks(batch=8)

    def halved(*arguments: Any) -> None:
        assert kept[0]() is None
        halve(*arguments)

    monkeypatch.setattr(loop, "halve", halved)
    run(replace(real, step=step, chunks=chunks), tmp_path / "c.pt")
    assert chunks.number == 2


def test_smaller_chunks_begin_with_the_first_epoch_that_is_trained(tmp_path: Path) -> None:
    """A training that passes over its first epochs goes on there where the first of its steps took too much memory,
    with the learning rates that it would have had."""
    straight = run(replace(line(3)[0], first=1), tmp_path / "straight.pt")
    real, chunks = line(3)[0], Chunks(batch=8)

    def step(net: Any, batch: Batch, epoch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return real.step(net, torch.empty(2**60) if chunks.number == 1 else batch, epoch)  # pyright: ignore

    seen = run(replace(real, step=step, chunks=chunks, first=1), tmp_path / "c.pt")
    assert [m["epoch"] for m in seen] == [m["epoch"] for m in straight] == [2, 3]
    for mine, theirs in zip(seen, straight, strict=True):
        assert (mine["lr_net"], mine["loss"]) == pytest.approx((theirs["lr_net"], theirs["loss"]))


def test_what_trains_no_network_goes_through_in_parts_too(tmp_path: Path) -> None:
    """Labels are of the same batches as the steps that they teach; their mean is that of the images."""

    def step(_net: None, batch: Batch, _epoch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert not torch.is_grad_enabled()
        if len(batch) > 2:
            torch.empty(2**60)
        mean = batch.labels.mean()
        return mean, {"mean": mean}

    def batches(_epoch: int, _generator: torch.Generator, start: int) -> list[Batch]:
        return [Batch(torch.zeros(5, 1), torch.arange(5.0))][start:]

    chunks = Chunks(batch=8)
    (seen,) = run(Training("labels", 1, 5, {}, step, batches, chunks=chunks), tmp_path / "c.pt")
    assert seen["chunks"] == chunks.number == 4
    assert seen["mean"] == pytest.approx(2.0)
    assert not [name for name in seen if name.startswith("lr_")]


def one_line(path: Path, identity: str | None = "mine") -> str:
    with pytest.raises(RunError) as error:
        load_checkpoint(path, identity)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def test_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    run(line()[0], tmp_path / "c.pt")
    assert "another config" in one_line(tmp_path / "c.pt", "other")
    with pytest.raises(RunError, match="another config"):
        fit(line()[0], Session(1, resume=True, show_progress=False), tmp_path / "c.pt", "other")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "scrambled", "text", "folder"])
def test_damaged_checkpoints(tmp_path: Path, damage) -> None:
    path = tmp_path / "c.pt"
    run(line()[0], path)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "truncated": content[: len(content) // 2],
                "scrambled": content[:200] + b"\0" * 200 + content[400:],
                "text": b"hello",
            }[damage]
        )
    assert ("no such checkpoint" if damage == "missing" else "damaged") in one_line(path)


def test_a_crafted_checkpoint_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    state = {"identity": "mine", "modules": {}, "epoch": Evil()}
    torch.save(state, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(state))
    for name in ("new.pt", "old.pt"):
        one_line(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "c.pt")
    assert "not a checkpoint of lchp" in one_line(tmp_path / "c.pt")
    torch.save({"identity": "mine", "modules": {}, "epoch": 1}, tmp_path / "c.pt")
    with pytest.raises(RunError, match="does not fit this training"):
        run(line()[0], tmp_path / "c.pt", resume=True)


def test_schedules() -> None:
    def rates(kind: str) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = make_schedule(optimizer, kind, decay=0.9, epochs=4, steps_per_epoch=5)
        out = []
        for _ in range(4):
            for _ in range(5):
                out.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if schedule.per_step:
                    schedule.scheduler.step()
            if not schedule.per_step:
                schedule.scheduler.step()
        return out

    assert rates("constant") == [0.1] * 20
    assert rates("exponential") == pytest.approx([0.1 * 0.9**e for e in range(4) for _ in range(5)])
    cycle = rates("onecycle")
    assert cycle[0] < 0.01
    assert max(cycle) == pytest.approx(0.1, rel=0.05)
    assert cycle[-1] < 1e-4


def test_epoch_seeds_differ() -> None:
    seeds = {epoch_seed(s, name, e) for s in range(5) for name in ("initialization", "refinement") for e in range(20)}
    assert len(seeds) == 200


def test_default_config_has_no_path_of_its_own() -> None:
    assert TrainConfig().data.root is None
