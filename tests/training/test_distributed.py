import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import torch.distributed as dist
from killed import CONTEXT
from torch import nn
from torch.multiprocessing.spawn import start_processes

from lchp.config import override, to_dict
from lchp.errors import ConfigError
from lchp.files import runs
from lchp.method.batch import Batch
from lchp.system import distributed
from lchp.system.interrupt import Interrupted, Stop
from lchp.training import fit
from lchp.training.checkpoints import load_checkpoint
from lchp.training.definition import Training
from lchp.training.fit import stepper, take_step

TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the run of each method, by one worker and by two."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    config = small.config(small.make_folder(tmp_path_factory.mktemp("images")), first=1, second=1)
    config = override(config, {"data.validation": 0.25, "evaluation.batch_size": 5})
    return {name: to_dict(override(config, method)) for name, method in METHODS.items()}


@pytest.fixture(scope="module")
def both(folder: Path, configs: dict[str, dict[str, Any]]) -> list[Any]:
    """What two gloo workers found in all that the tests ask of two: they take seconds to start."""
    # forked from one that has imported what a training imports
    start_processes(worker, (folder, configs), 2, start_method=CONTEXT.get_start_method())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def worker(rank: int, folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {
        "step": batch_norm_worker(),
        "exchange": exchange_worker(rank),
        "trained": {name: train_in(folder / "two" / name, values) for name, values in configs.items()},
        "stopped": stop_in(folder / "stopped", configs["lchp"]),
    }
    train_in(folder / "stopped", configs["lchp"], resume=True)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def batch_norm_step(x: torch.Tensor) -> tuple[nn.Module, float]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    net = distributed.share_batch_statistics(net)
    batch = Batch(x[distributed.part(len(x))], torch.zeros(len(x)))

    def step(net: nn.Module, batch: Batch, _epoch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (net(batch.images) ** 3).mean(), {}  # of a cube: its gradient does not vanish behind BatchNorm

    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    training = Training("line", 1, 6, {"net": net}, step, lambda *_: [batch], "net", optimizer)
    scalars = take_step(training, stepper(training), batch, 0)
    return net, distributed.mean_over_workers({"loss": float(scalars["loss"])}, 1)["loss"]


def images() -> torch.Tensor:
    return torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 2 + 1


def batch_norm_worker() -> Any:
    net, loss = batch_norm_step(images())
    return {"loss": loss, "state": {k: v.tolist() for k, v in net.state_dict().items()}}


def test_batch_statistics_and_gradients_are_those_of_the_global_batch(both: list[Any]) -> None:
    net, loss = batch_norm_step(images())
    for found in (each["step"] for each in both):
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        for name, value in net.state_dict().items():
            np.testing.assert_allclose(found["state"][name], value.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def exchange_worker(rank: int) -> Any:
    dealt = list(distributed.dealt(list(range(7))))
    try:
        distributed.part(7)
        refused = False
    except ConfigError:
        refused = True
    return {
        "dealt": dealt,
        "collected": distributed.collected([10 * i for i in dealt]),
        "first": distributed.from_first(lambda: f"of {rank}"),
        "part": [distributed.part(8).start, distributed.part(8).stop],
        "refused": refused,
        "mean": distributed.mean_over_workers({"a": float(rank)}, 2),
        "of one": distributed.mean_over_workers({"a": 6.0} if rank else {}, 3 * rank),
    }


def test_workers_exchange(both: list[Any]) -> None:
    one, two = (each["exchange"] for each in both)
    assert one["dealt"] == [0, 2, 4, 6]
    assert two["dealt"] == [1, 3, 5]
    assert one["collected"] == two["collected"] == [0, 10, 20, 30, 40, 50, 60]
    assert one["first"] == two["first"] == "of 0"
    assert one["part"] == [0, 4]
    assert two["part"] == [4, 8]
    assert one["refused"]
    assert one["mean"] == two["mean"] == {"a": 0.25}
    assert one["of one"] == two["of one"] == {"a": 2.0}  # the other had no batch left


def test_one_process_does_nothing() -> None:
    assert distributed.size() == 1
    assert distributed.part(7) == slice(0, 7)
    assert distributed.collected([3, 1]) == [3, 1]
    net = nn.BatchNorm2d(3)
    assert type(distributed.share_batch_statistics(net)) is nn.BatchNorm2d


def train_in(run: Path, values: dict[str, Any], **how: Any) -> Any:
    from lchp.config import from_dict
    from lchp.training.run import train

    seen: list[dict[str, Any]] = []
    result = train(from_dict(values), seen.append, output=run, **how)
    return {"metrics": seen, "summary": result.summary}


def stop_in(run: Path, values: dict[str, Any]) -> list[int]:
    """Where a run stops that is asked to after its first step, and looks every two: whole epochs, and steps."""
    keeper, stop = fit._keeper, Stop()

    def asking(*given: Any) -> Any:
        keep = keeper(*given)
        assert keep is not None

        def after_step(partial: Any) -> None:
            if not stop.asked:
                stop.ask()
            keep(partial)

        return after_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "_keeper", asking)
        patch.setattr(fit, "_AGREE_EVERY", 2)
        with pytest.raises(Interrupted):
            train_in(run, values, stop=stop)
    distributed.barrier()
    state = load_checkpoint(run / "checkpoints" / "initialization.pt")
    if distributed.rank() == 0:  # for one worker to go on with
        shutil.copytree(run, run.with_name("halted"))
    distributed.barrier()
    return [state["epoch"], state["within"]["steps"]]


@pytest.mark.slow
def test_two_workers_stop_within_an_epoch_and_go_on_bitwise(
    both: list[Any], folder: Path, configs: dict[str, dict[str, Any]]
) -> None:
    assert both[0]["stopped"] == both[1]["stopped"] == [0, 2]
    straight, stopped = folder / "two" / "lchp", folder / "stopped"
    assert (stopped / "predictions.parquet").read_bytes() == (straight / "predictions.parquet").read_bytes()
    lines = [runs.read_metrics(run) for run in (straight, stopped)]
    for one, other in zip(*lines, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}
    alone = train_in(folder / "halted", configs["lchp"], resume=True)  # another number of workers
    for one, other in zip(lines[0], alone["metrics"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3, abs=1e-4)


METHODS: dict[str, dict[str, Any]] = {
    "lchp": {},
    "psol": {
        "method.name": "psol",
        "method.localizer": True,
        "method.refine": True,
        "refinement.labeller": "frozen",
        # the boxes of all training images are one batch, which one of the workers gets
        "evaluation.batch_size": 64,
    },
}
LINES = {"lchp": 3, "psol": 5}
"""Epochs of all links: the classifier's one, PSOL's boxes, the localizer's one, labels' one, the refinement's one."""


@pytest.mark.slow
def test_two_workers_train_as_one(both: list[Any], folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Same losses (to fp32 rounding) as one worker with the same global batch, and nearly the same boxes; and of PSOL
    with LCHP's refinement: of its classifier, of DDT's boxes of all training images, of its localizer, of labels made
    once."""
    from lchp.evaluation.predictions import read_predictions

    torch.set_num_threads(1)
    one = {name: train_in(folder / "one" / name, values) for name, values in configs.items()}
    assert one.keys() == METHODS.keys() == LINES.keys()
    names = ("l_cls", "l_reg", "loss", "top1", "confidence", "kept", "pseudo_area", "box_area", "validation_score")
    for method, alone in one.items():
        two = [found["trained"][method] for found in both]
        assert two[0]["summary"] == two[1]["summary"]
        for found in two:
            assert [m["stage"] for m in found["metrics"]] == [m["stage"] for m in alone["metrics"]]
            for mine, theirs in zip(found["metrics"], alone["metrics"], strict=True):
                for name in [n for n in names if n in theirs]:
                    at = (method, name, theirs["epoch"])
                    assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), at
        a, b = (read_predictions(folder / workers / method) for workers in ("one", "two"))
        assert a["image_id"] == b["image_id"]
        for name in ("lchp_i_box", "lchp_r_box", *(["pseudo_label_box"] if method == "psol" else [])):
            np.testing.assert_allclose(np.array(a[name].to_pylist()), np.array(b[name].to_pylist()), atol=5e-3)
        lines = (folder / "two" / method / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == LINES[method] == len(alone["metrics"])  # worker 0 alone writes
