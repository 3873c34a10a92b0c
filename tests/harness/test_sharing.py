"""What cells share, by sweeps without Ray: each link once, whoever needs it, and the same figures as alone."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killed
import pytest
import small
from drained import drain, planned

from lchp.config import TrainConfig, override
from lchp.files import runs
from lchp.harness import store as storage_module
from lchp.harness.cells import Job, Overrides, make_cell, pinned
from lchp.harness.plan import Plan
from lchp.harness.record import outcomes_of
from lchp.training import run as training
from lchp.training.run import train

pytestmark = pytest.mark.usefixtures("coarse_thresholds")
APART = {"initialization.mask_delta": 0.5}
PSOL = {"method.name": "psol", "method.localizer": True}
CELLS: list[Overrides] = [
    {},
    {"refinement.tau": 0.3},
    {"refinement.crop_margin": 0.05},
    {"method.name": "cam"},
    {"method.name": "cam", "method.localizer": True},
    {"method.name": "layer_cam"},
    PSOL,
    {**PSOL, "refinement.tau": 0.5},
    {**PSOL, "method.refine": True},
    {**APART, "initialization.delta": 0.3},
    {**APART, "initialization.delta": 0.6},
    {**APART, "initialization.delta": "auto"},
]
ALIKE: list[Overrides] = [{"method.name": "layer_cam"}, PSOL, {**APART, "initialization.delta": 0.3}]
"""Cells whose links come about as those of another do: CAM's, PSOL's with another tau, those of another delta."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    root = small.make_folder(tmp_path_factory.mktemp("images"))
    values = {"refinement.labeller": "frozen", "refinement.tau": 0.2, "evaluation.confidence": 0.5}
    return pinned(override(small.config(root, first=1, second=1), values), gpu=False)


def results(plan: Plan) -> dict[str, bytes]:
    """Of each cell: its predictions."""
    outcomes = outcomes_of(plan)
    assert {o.state for o in outcomes} == {"done"}, [o.error for o in outcomes]
    return {o.cell.key: (o.run / runs.PREDICTIONS).read_bytes() for o in outcomes if o.run is not None}


def trained(names: Sequence[str], plan: Plan) -> Counter[str]:
    """How many links of each kind these jobs trained."""
    return Counter(link.kind for name in names for link in plan.schedule.jobs[name].job.links)


class Swept:
    """The sweep of CELLS; how often predictions were made, by the link whose result they are of."""

    def __init__(self, base: TrainConfig, storage: Path) -> None:
        self.predicted: Counter[str] = Counter()
        real = training.predictions_of

        def counted(models: Any, context: Any) -> Any:
            self.predicted.update(list(models.localizers) or ["pseudo_label"])
            return real(models, context)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "predictions_of", counted)
            self.plan = planned(storage, base, CELLS)
            self.names = drain(self.plan)


@pytest.fixture(scope="module")
def swept(base: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return Swept(base, tmp_path_factory.mktemp("swept"))


@pytest.fixture
def storage(swept: Swept, tmp_path: Path) -> Path:
    """A storage of one's own that holds the finished sweep."""
    return Path(shutil.copytree(swept.plan.store.storage, tmp_path / "storage"))


def test_every_link_is_trained_once_for_all_methods(swept: Swept) -> None:
    assert trained(swept.names, swept.plan) == {
        "classifier": 4,  # LCHP's, the one of all maps, one with masks of its own, that of what is auto
        "choice": 1,
        "boxes": 6,  # CAM's, LayerCAM's, DDT's, three of the teacher
        "localizer": 6,  # LCHP's, CAM's, PSOL's, three of the teacher
        "labels": 6,  # LCHP's, a margin, PSOL's, three of the teacher
        "refinement": 7,
    }
    assert len(swept.names) == len(set(swept.names))
    assert all(p.state == "done" for p in swept.plan.schedule.jobs.values())


def test_a_link_predicts_once(swept: Swept) -> None:
    """But where more is recorded of it for a cell."""
    assert swept.predicted == {
        "pseudo_label": 1 + 6 + 1,  # each link; what is recorded of CAM's cell
        "lchp_i": 6 + 2,  # of PSOL's two cells
        "lchp_r": 7,
    }


@pytest.mark.parametrize("number", [n for n, cell in enumerate(CELLS) if cell not in ALIKE])
def test_a_cell_equals_the_single_run(swept: Swept, tmp_path: Path, number: int) -> None:
    outcome = outcomes_of(swept.plan)[number]
    assert outcome.run is not None
    alone = train(outcome.cell.config, output=tmp_path / "run")
    assert runs.read_config(outcome.run) == outcome.cell.config
    assert (outcome.run / runs.PREDICTIONS).read_bytes() == (alone.run / runs.PREDICTIONS).read_bytes()
    assert outcome.summary == alone.summary


def test_without_sharing_each_cell_trains_all_and_gives_the_same(
    swept: Swept, base: TrainConfig, tmp_path: Path
) -> None:
    plan = planned(tmp_path, base, CELLS[:2], share=False)
    assert trained(drain(plan), plan) == dict.fromkeys(("classifier", "localizer", "labels", "refinement"), 2)
    shared = results(swept.plan)
    assert results(plan) == {key: shared[key] for key in results(plan)}
    for outcome in outcomes_of(plan):
        assert outcome.run is not None
        assert {place["run"] for place in runs.read_json(outcome.run / runs.ENVIRONMENT)["links"].values()} == {None}


def test_another_sweep_takes_links_from_the_store(base: TrainConfig, storage: Path) -> None:
    plan = planned(storage, base, [{"refinement.tau": 0.1}, {"method.name": "grad_cam"}], "another")
    names = drain(plan)
    assert trained(names, plan) == {"refinement": 1, "boxes": 1}
    assert [p.job.kind for p in plan.schedule.jobs.values() if p.found] == [
        "classifier",
        "classifier",
        "localizer",
        "labels",
    ]


@pytest.mark.parametrize("overrides", [{}, PSOL, {"method.name": "cam"}])
def test_what_differs_only_in_what_is_recorded_trains_nothing_and_equals_the_single_run(
    base: TrainConfig, storage: Path, tmp_path: Path, overrides: Overrides
) -> None:
    cells = [overrides | {"evaluation.confidence": c} for c in (0.6, 0.7)]
    plan = planned(storage, override(base, {"evaluation.consistency": True}), cells, "another")
    names = drain(plan)
    assert trained(names, plan) == {}
    assert len(names) == 2
    for outcome in outcomes_of(plan):
        assert outcome.run is not None
        assert outcome.summary is not None
        assert not (outcome.run / runs.CHECKPOINTS / "refinement.pt").exists()
        assert "consistency" in json.dumps(outcome.summary)
    last = outcomes_of(plan)[-1]
    assert last.summary == train(last.cell.config, output=tmp_path / "run").summary


def test_cells_that_differ_in_what_is_recorded_share_their_link_in_one_sweep(base: TrainConfig, tmp_path: Path) -> None:
    cells = [{**PSOL, "evaluation.confidence": c} for c in (0.6, 0.7)] + [{**PSOL, "refinement.tau": 0.7}]
    plan = planned(tmp_path, base, cells)
    names = drain(plan)
    assert trained(names, plan) == {"classifier": 1, "boxes": 1, "localizer": 1}
    assert len(names) == 5
    assert len(results(plan)) == 3


def test_a_link_serves_although_more_is_recorded_of_it(base: TrainConfig, tmp_path: Path) -> None:
    """PSOL's localizer as a cell of its own, then as what a refinement starts from."""
    first = planned(tmp_path, base, [PSOL])
    drain(first)
    plan = planned(tmp_path, base, [{**PSOL, "method.refine": True}], "another")
    assert trained(drain(plan), plan) == {"labels": 1, "refinement": 1}
    localizer = plan.cells[0].chain["localizer"]
    assert localizer.key not in [p.name for p in (tmp_path / "store" / "localizer").iterdir()]
    record = runs.read_json(plan.folder / "sweep.json")["cells"][0]
    assert record["links"]["localizer"] == first.cells[0].key  # where it is
    assert len(results(plan)) == 1


def test_kept_boxes_are_computed_only_where_a_cell_asks_for_them(
    base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a pass over the training images; LCHP-I's cells share that."""
    scored: list[bool] = []
    real = training.kept_boxes
    monkeypatch.setattr(training, "kept_boxes", lambda *a: scored.append(True) or real(*a))
    off = {"evaluation.kept_by_tau": False}
    plan = planned(tmp_path, base, [off, {**off, "refinement.tau": 0.5}])
    names = drain(plan)
    assert trained(names, plan) == {"classifier": 1, "localizer": 1, "labels": 1, "refinement": 2}
    assert not scored
    assert [o.summary["kept"] for o in outcomes_of(plan) if o.summary] == [{}, {}]
    # a cell that does ask takes the same links
    more = planned(tmp_path, base, [off, {"refinement.tau": 0.6}], "more")
    assert trained(drain(more), more) == {"refinement": 1}
    assert len(scored) == 1
    assert [bool(o.summary["kept"]) for o in outcomes_of(more) if o.summary] == [False, True]
    shutil.copytree(tmp_path / "store" / "classifier", tmp_path / "both" / "store" / "classifier")
    both = planned(tmp_path / "both", base, [off, {"refinement.tau": 0.6}])
    drain(both)
    assert len(scored) == 2  # once, with the link


def meet_and_drain(storage: Path, base: TrainConfig, name: str, meeting: Any) -> None:
    """A sweep that, while it trains the classifier, waits until another does so too."""

    def report(job: Job, result: dict[str, Any]) -> None:
        if job.kind == "classifier" and result["state"] == "running":
            meeting.wait(100)

    drain(planned(storage, base, CELLS[:2], name), report)


def test_two_sweeps_at_once_on_one_storage(base: TrainConfig, swept: Swept, tmp_path: Path) -> None:
    """Both train the same at the same time, and one publishes first."""
    meeting = killed.CONTEXT.Barrier(2)
    both = [killed.start(meet_and_drain, tmp_path, base, name, meeting) for name in ("a", "b")]
    for process in both:
        process.join(200)
        assert process.exitcode == 0
    one, other = (results(planned(tmp_path, base, CELLS[:2], name)) for name in ("a", "b"))
    assert one == other
    assert one.items() <= results(swept.plan).items()
    for name in ("a", "b"):
        jobs = runs.read_json(tmp_path / "sweeps" / name / "sweep.json")["jobs"].values()
        assert {(j["state"], j["attempts"], j["found"]) for j in jobs} == {("done", 0, False)}
    counts = {kind.name: len(list(kind.iterdir())) for kind in (tmp_path / "store").iterdir()}
    assert counts == {"classifier": 1, "localizer": 1, "labels": 1, "refinement": 2}
    assert not list((tmp_path / "store").rglob(".*"))


def test_a_look_up_reads_each_result_once(swept: Swept, base: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many links are looked up."""
    looked: Counter[Path] = Counter()
    real = storage_module._made

    def counted(folder: Path, kind: Any) -> Any:
        looked.update([folder])
        return real(folder, kind)

    monkeypatch.setattr(storage_module, "_made", counted)
    cells = [{"refinement.tau": t / 20, "evaluation.confidence": 0.6} for t in range(1, 20)]
    holder = swept.plan.store.holders()
    expanded = [make_cell(base, cell) for cell in cells]
    assert [holder(cell.chain) for cell in expanded].count(None) == 17  # but tau 0.2 and 0.3
    assert set(looked.values()) == {1}
    assert len(looked) == len([*(swept.plan.store.storage / "store" / "refinement").iterdir()])


def test_a_damaged_link_is_made_again_with_what_needs_it(swept: Swept, base: TrainConfig, storage: Path) -> None:
    """Noticed by the trial that takes it: the sweep has looked before."""
    before = results(swept.plan)
    plan = planned(storage, base, [*CELLS[:2], {"refinement.tau": 0.4}])
    assert [p.job.kind for p in plan.schedule.jobs.values() if p.state == "waiting"] == ["refinement"]
    labels = next(p.job for p in plan.schedule.jobs.values() if p.job.kind == "labels")
    for kind in ("classifier", "localizer", "labels"):
        key = labels.key if kind == "labels" else labels.sources[kind]
        (plan.store.path(kind, key) / runs.CONFIG).write_text("{}")
    names = drain(plan)
    kinds = [name.partition("-")[0] for name in names]
    assert kinds == ["refinement", "classifier", "localizer", "labels", "refinement"]
    assert {k: v for k, v in results(plan).items() if k in before} == before


def test_a_resumed_sweep_makes_a_damaged_link_again_only_where_it_is_needed(
    swept: Swept, base: TrainConfig, storage: Path
) -> None:
    plan = planned(storage, base, CELLS)
    cell = plan.cells[0].chain
    for kind in ("classifier", "refinement"):
        (plan.store.path(kind, cell.until(kind).record if kind != "refinement" else cell.record) / runs.CONFIG).unlink()
    plan = planned(storage, base, CELLS)
    names = drain(plan)
    assert trained(names, plan) == {"refinement": 1, "classifier": 1}  # whose checkpoint the refinement takes
    assert results(plan) == results(swept.plan)


def test_a_failed_link_fails_what_needs_it_with_its_error(base: TrainConfig, tmp_path: Path) -> None:
    cells = [{"initialization.lr": 1e30}, {"initialization.lr": 1e30, "refinement.tau": 0.9}, {"method.name": "cam"}]
    plan = planned(tmp_path, base, cells)
    names = drain(plan)
    assert [name.partition("-")[0] for name in names] == ["classifier", "classifier", "boxes"]
    failed, also, done = outcomes_of(plan)
    classifier = failed.cell.chain["classifier"].key
    assert (failed.state, also.state, done.state) == ("failed", "failed", "done")
    assert failed.error == also.error
    assert (failed.error or "").startswith(f"its classifier ({classifier}) failed: ")
    assert "training diverged" in (failed.error or "")
    record = runs.read_json(plan.folder / "sweep.json")
    assert [c["reason"] for c in record["cells"]] == ["source_failed", "source_failed", None]
    assert record["jobs"][f"classifier-{classifier}"]["reason"] == "diverged"
    assert {j["reason"] for n, j in record["jobs"].items() if n.startswith(("localizer", "labels"))} == {
        "source_failed"
    }


def test_a_link_that_was_begun_before_it_was_there_to_be_taken_is_begun_anew(base: TrainConfig, storage: Path) -> None:
    """Killed while it trained for its own record; meanwhile another sweep finished the same link."""
    new = {"refinement.tau": 0.45}
    cell = new | {"evaluation.confidence": 0.6}
    plan = planned(storage, base, [cell], "mine")

    def killed(job: Job, result: dict[str, Any]) -> None:
        if job.kind == "refinement" and result["state"] == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drain(plan, killed)
    other = planned(storage, base, [new | {"evaluation.confidence": 0.7}], "other")
    assert trained(drain(other), other) == {"refinement": 1}
    again = planned(storage, base, [cell], "mine")
    assert trained(drain(again), again) == {}
    assert len(results(again)) == 1


def test_a_record_of_before_there_were_links_is_gone_on_with(base: TrainConfig, storage: Path) -> None:
    plan = planned(storage, base, CELLS[:2], "old")
    assert drain(plan) == []
    record = runs.read_json(plan.folder / "sweep.json")
    for cell in record["cells"]:
        cell |= {"stage1": "0" * 16, "stage2": "1" * 16, "run": "store/stage2/" + "1" * 16}
        for name in ("key", "links", "job", "reason"):
            del cell[name]
    record["jobs"] = {"stage1-" + "0" * 16: {"state": "done", "found": False, "error": None, "attempts": 1}}
    runs.write_json(plan.folder / "sweep.json", record | {"version": 1})
    again = planned(storage, base, [{"refinement.tau": 0.5}], "old")
    assert [c.overrides for c in again.cells] == [*CELLS[:2], {"refinement.tau": 0.5}]
    assert trained(drain(again), again) == {"refinement": 1}
    assert runs.read_json(plan.folder / "sweep.json")["version"] == 2
    assert results(plan).items() <= results(again).items()


def test_only_a_refinement_reports_the_objective_and_not_in_its_last_epoch(base: TrainConfig, tmp_path: Path) -> None:
    """By it bad trials are stopped early: neither what others share nor what is finished."""
    held_out = override(base, {"data.validation": 0.3, "initialization.epochs": 2, "refinement.epochs": 3})
    said: list[tuple[str, int]] = []
    epochs: Counter[str] = Counter()

    def report(job: Job, result: dict[str, Any]) -> None:
        if result["state"] == "running":
            epochs[job.kind] += 1
            assert result["done_epochs"] == epochs[job.kind]
        if "objective" in result:
            said.append((job.kind, result["train_epoch"]))

    plan = planned(tmp_path, held_out, [{}])
    drain(plan, report, "validation_score")
    assert said == [("refinement", 1), ("refinement", 2)]
    assert epochs == {"classifier": 2, "localizer": 2, "labels": 3, "refinement": 3}
    assert {p.job.kind: p.job.epochs for p in plan.schedule.jobs.values()} == epochs
