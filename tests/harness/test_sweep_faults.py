"""What fails in the driver of a sweep while Tune runs: it ends the sweep, and is raised once Tune has ended."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lchp.config import preset
from lchp.errors import RunError
from lchp.files import runs
from lchp.files.locks import LOCK, locked
from lchp.harness import Options, Sweep, running
from lchp.harness.cluster import Resources
from lchp.harness.plan import make_plan
from lchp.harness.record import write_record
from lchp.harness.running import run_trials


class FakeTuner:
    """Calls what Tune calls, for a trial that fails; notes whether anything was raised, or went on after a fault."""

    made: "FakeTuner"

    def __init__(self, _trainable: object, *, tune_config: Any, run_config: Any) -> None:
        self.searcher, self.callbacks, self.stop = tune_config.search_alg, run_config.callbacks, run_config.stop
        self.ended, self.state = False, Path(run_config.storage_path) / run_config.name
        FakeTuner.made = self

    def fit(self) -> None:
        config = self.searcher.suggest("a")
        trial = SimpleNamespace(config=config, run_metadata=SimpleNamespace(metric_analysis={}, metric_n_steps={}))
        assert not self.stop.stop_all()
        for callback in self.callbacks:
            callback.on_trial_start(1, [trial], trial)
        shutil.rmtree(Path(config["setting"]["storage"]) / "sweeps")
        self.searcher.on_trial_complete("a", {"state": "failed", "error": "the folder is gone", "reason": "error"})
        for callback in self.callbacks:
            callback.on_trial_complete(1, [trial], trial)
            callback.on_trial_complete(1, [trial], trial)  # nothing more is written, or raised
        self.ended = self.stop.stop_all()
        self.state.mkdir(parents=True)
        (self.state / "tuner.pkl").write_bytes(b"its own")


def test_a_fault_of_the_driver_ends_the_sweep_without_a_traceback_of_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    from ray import tune

    monkeypatch.setattr(tune, "Tuner", FakeTuner)
    monkeypatch.setattr(running, "cluster", lambda *_, **__: nullcontext(Resources(1, 0, 1)))
    options, folder = Options(tmp_path / "results"), tmp_path / "results" / "sweeps" / "s"
    runs.make_folder(folder)
    with locked(folder / LOCK) as claim:
        plan = replace(make_plan(Sweep("s", preset("parts"), [{}]), options), claim=claim)
        write_record(plan)
        with pytest.raises(RunError) as error:
            run_trials(plan, show_progress=False)
    assert str(error.value).startswith(f"{folder}: the folder is gone or was replaced (lock: No such file")
    assert FakeTuner.made.ended
    assert not folder.parent.exists()
