"""The compared methods as runs: what they share, what they write, and that they go on where they stopped."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from squares import cached_config, small_config, write_images
from wsol_folder import write_clone

from lchp.backbones import build_trunk
from lchp.baselines import METHODS
from lchp.baselines.cam import cam
from lchp.cli import main
from lchp.config import PRESETS, TrainConfig, override, preset
from lchp.data import load
from lchp.deploy.predict import predict as predict_files
from lchp.deploy.second_classifier import second_classifier, ten_crops
from lchp.deploy.trained import load_classifier, load_run
from lchp.errors import ConfigError, DataError, RunError
from lchp.evaluation.frames import Frame
from lchp.evaluation.inference import Models, predict, view_boxes
from lchp.evaluation.metrics import FRAMES
from lchp.evaluation.predictions import summary_table
from lchp.evaluation.scoring import score_maps
from lchp.evaluation.scoring.scoremaps import in_its_frame
from lchp.files import runs
from lchp.harness.cells import Sweep, expand, jobs_of, make_cell
from lchp.harness.grids import SWEEPS
from lchp.method.batch import Batch
from lchp.report.read import collect, result_of
from lchp.report.select import rows
from lchp.training import links, map_boxes, measure
from lchp.training.chain import Chain, Kind, chain_of, depends_on, epochs_of, label
from lchp.training.context import held_out_images, open_context
from lchp.training.definition import Session
from lchp.training.links import require_whole_batches
from lchp.training.networks import build_classifier, by_rate
from lchp.training.run import Result, train, train_links

pytestmark = pytest.mark.usefixtures("coarse_thresholds")
COMPARED = [name for name, method in METHODS.items() if not method.complete]


def without(fields: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in others}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def config_of(root: Path, name: str, **values: Any) -> TrainConfig:
    """Of one epoch of each stage."""
    short = {"initialization.epochs": 1, "refinement.epochs": 1, "threads": 1}
    return cached_config(root, {"method.name": name, **short, **{f"method.{k}": v for k, v in values.items()}})


@pytest.fixture(scope="module")
def psol(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Regressed on DDT's boxes, and refined."""
    return train(config_of(root, "psol", localizer=True, refine=True), output=tmp_path_factory.mktemp("psol") / "run")


@pytest.fixture(scope="module")
def of_method(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The run of a compared method without a localizer."""
    return lru_cache(lambda name: train(config_of(root, name), output=tmp_path_factory.mktemp("runs") / name))


@pytest.mark.parametrize("name", COMPARED)
def test_every_method_trains_and_is_recorded(root: Path, of_method: Callable[[str], Result], name: str) -> None:
    result = of_method(name)
    assert set(result.summary["results"]) == {"pseudo_label"}
    trained, *found = runs.read_metrics(result.run)
    assert np.isfinite(trained["loss"])
    assert [(m["stage"], 0 < m["pseudo_area"] <= 100) for m in found] == [("boxes", True)]  # once
    boxes = np.array(result.predictions()["pseudo_label_box"].to_pylist())
    assert boxes.shape == (2 * 9, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    environment = runs.read_json(result.run / runs.ENVIRONMENT)
    assert environment["method"] == (METHODS[name].title if METHODS[name].map else "DDT")
    predicted_again(result, root)


def predicted_again(result: Result, root: Path) -> None:
    """What lchp predict says of the run's own held-out images is what the run recorded of them: the box of the map of
    their class; and where the class is not told, of those that are taken for it."""
    trained = load_run(result.run, torch.device("cpu"))
    assert (trained.result, trained.localizer) == ("pseudo_label", None)
    for frame in FRAMES:
        rows = [row for row in result.predictions().to_pylist() if row["frame"] == frame]
        images = [(row["image_id"], root / row["image_id"]) for row in rows]
        labels = {row["image_id"]: row["label"] for row in rows}
        how: dict[str, Any] = {"frame": frame, "batch_size": trained.config.evaluation.batch_size}
        told, untold = ([p for p, _ in predict_files(trained, images, labels=known, **how)] for known in (labels, {}))
        seen = Frame.of(frame, trained.config.data)
        for row, known, guessed in zip(rows, told, untold, strict=True):
            box = seen.back(np.array([row["pseudo_label_box"]]), np.array([[known.width, known.height]]))[0]
            np.testing.assert_allclose(np.array(known.box), box, atol=1e-3)
            assert known.class_id == row["label"]
            assert known.confidence == pytest.approx(row["confidence"], abs=1e-5)
            assert guessed.class_id == row["top5"][0]
            assert guessed.score == pytest.approx(row["top5_score"][0], abs=1e-5)
            if guessed.class_id == row["label"]:
                assert guessed == known


def test_a_regressed_and_refined_run_has_all_three_results_and_predicts(psol: Result) -> None:
    assert list(psol.summary["results"]) == ["pseudo_label", "lchp_i", "lchp_r"]
    stages = ["initialization", "boxes", "regression", "refinement"]
    assert [m["stage"] for m in runs.read_metrics(psol.run)] == stages
    assert load_run(psol.run, torch.device("cpu")).result == "lchp_r"
    assert psol.summary["kept"]["total"] == 24


def test_a_classifier_of_the_same_scheme_serves(
    psol: Result, of_method: Callable[[str], Result], tmp_path: Path
) -> None:
    """As the harness trains it, link by link, and by hand with --stage."""
    first = of_method("cam")
    own = train(psol.config, output=tmp_path / "own", stage="init")
    assert list(own.summary["results"]) == ["pseudo_label"]
    for n, source in enumerate((first, own)):
        second = train(psol.config, output=tmp_path / f"second{n}", stage="refine", source=source.run)
        assert (second.run / runs.PREDICTIONS).read_bytes() == (psol.run / runs.PREDICTIONS).read_bytes()
        places = runs.read_json(second.run / runs.ENVIRONMENT)["links"]
        assert {kind for kind, place in places.items() if place["run"] is not None} == {"classifier"}
    alone = train_links(psol.config, tmp_path / "alone", Session(psol.config.seed), last="classifier")
    assert alone.summary == {}  # a classifier of theirs is for other links
    assert not (alone.run / runs.PREDICTIONS).exists()
    found: dict[Kind, Path] = {"classifier": alone.run, "boxes": own.run, "localizer": psol.run}
    joined = train_links(psol.config, tmp_path / "joined", Session(psol.config.seed), found=found)
    assert (joined.run / runs.PREDICTIONS).read_bytes() == (psol.run / runs.PREDICTIONS).read_bytes()
    assert [m["stage"] for m in runs.read_metrics(joined.run)] == ["refinement"]


def test_methods_of_one_scheme_share_their_classifier(root: Path) -> None:
    base = small_config(root)
    cells = SWEEPS["methods"].cells
    preset = replace(PRESETS["parts"], config=base, classifiers=("tiny_deep",))
    wanted = expand(Sweep("methods", base, cells(preset)))
    assert len({cell.key for cell in wanted}) == 2 * len(COMPARED) + 3
    jobs = jobs_of(wanted)
    schemes = {METHODS[name].scheme.name for name in COMPARED}
    assert Counter(link.kind for job in jobs.values() for link in job.links) == {
        "classifier": 2 * len(schemes) + 1,
        "boxes": 2 * len(COMPARED),  # LCHP's come from its classifier's training
        "localizer": 2 + 1 + 1,  # PSOL's of each trunk, CAM's, LCHP's
        "refinement": 1 + 1,
    }
    plain = {make_cell(base, {"method.name": n}).chain["classifier"].key for n in PLAIN}
    assert len(plain) == 1
    assert {c["method.name"] for c in cells(preset)[:5]} == PLAIN  # what --limit trains for one classifier's price
    (refined,) = (j for j in jobs.values() if j.kind == "refinement" and j.config.method.refine)
    assert refined.epochs == 2
    assert set(refined.sources) == {"classifier", "boxes", "localizer"}
    alone = next(j for j in jobs_of(wanted, share=False).values() if j.config.method.refine)
    assert alone.epochs == 2 + 1 + 2 + 2
    assert alone.finished_epochs("regression", 1) == 2 + 1 + 1


def test_lchp_s_keys_do_not_depend_on_the_methods(root: Path) -> None:
    """A threshold of theirs is none of LCHP's."""
    base = small_config(root)
    assert make_cell(base, {}).key == make_cell(base, {"method.threshold": 0.3}).key
    assert epochs_of(base) == {"initialization": 2, "regression": 2, "refinement": 2}


PLAIN = {"cam", "grad_cam", "layer_cam", "info_cam", "psol"}

CLASSIFIER = {"seed": 3, "initialization.lr": 0.5, "model.classifier": "tiny_deep", "data.batch_size": 7}
TEACHER = {
    "model.head": "gap",
    "model.attention_maps": 3,
    "model.bap_scale": 2.0,
    "initialization.delta": 0.3,
    "initialization.beta": 0.5,
    "initialization.boxes": "single",
    "initialization.mask": "black",
}
"""What LCHP's classifier and its pseudo boxes depend on beside."""
MAP = {"method.threshold": 0.3, "method.component": "all"}
REGRESSED = {
    "model.localizer": "tiny_deep",
    "model.localizer_head": "gap",
    "model.box_encoding": "sigmoid",
    "initialization.localizer_lr": 0.5,
    "initialization.localizer_schedule": "onecycle",
}
L_REG = {"initialization.alpha": 2.0, "initialization.localizer_start": 1}
LABELS = {"refinement.crop_margin": 0.1, "refinement.temperature": 0.7, "refinement.views": 2}
REFINED = {
    "refinement.tau": 0.2,
    "refinement.lr": 0.5,
    "refinement.scale": (0.9, 1.1),
    "refinement.loss_weight": 3.0,
    "refinement.padding": "mean",
    "refinement.epochs": 3,
}
FREE = {"threads": 2, "data.workers": 1, "evaluation.batch_size": 3, "tensorboard": True}
"""Changes no result."""
MASK, MARGIN = {"initialization.mask": "black"}, {"refinement.crop_margin": 0.1}
"""What the recorded scores of a compared method's box look at."""
FROZEN = {"refinement.labeller": "frozen"}
ONLINE = {"threads": 1, "refinement.labeller": "online", "initialization.attention": "features"}


@pytest.mark.parametrize(
    ("values", "by_link", "recorded", "inert"),
    [
        (
            {"method.name": "lchp"},
            {"classifier": CLASSIFIER | TEACHER, "localizer": REGRESSED | L_REG, "refinement": LABELS | REFINED},
            {},
            MAP,
        ),
        (
            {"method.name": "lchp", **FROZEN},
            {
                "classifier": CLASSIFIER | TEACHER,
                "localizer": REGRESSED | L_REG,
                "labels": LABELS | {"refinement.epochs": 3},
                "refinement": {k: v for k, v in REFINED.items() if k != "refinement.epochs"},
            },
            {},
            MAP,
        ),
        (
            {"method.name": "cam"},
            {"classifier": CLASSIFIER, "boxes": MAP},
            MASK | MARGIN,
            without(TEACHER, MASK) | REGRESSED | L_REG | without(LABELS, MARGIN) | REFINED,
        ),
        (
            {"method.name": "psol"},
            {"classifier": CLASSIFIER, "boxes": {}},
            MASK | MARGIN,
            MAP | without(TEACHER, MASK) | REGRESSED | L_REG | without(LABELS, MARGIN) | REFINED,
        ),
        (
            {"method.name": "cam", "method.localizer": True},
            {"classifier": CLASSIFIER, "boxes": MAP, "localizer": REGRESSED},
            MASK | MARGIN | {"refinement.tau": 0.2},  # what is recorded as kept
            without(TEACHER, MASK) | L_REG | without(LABELS, MARGIN) | without(REFINED, {"refinement.tau": 0}),
        ),
        (
            {"method.name": "psol", "method.localizer": True},
            {"classifier": CLASSIFIER, "boxes": {}, "localizer": REGRESSED},
            MASK | MARGIN | {"refinement.tau": 0.2},
            MAP | without(TEACHER, MASK) | L_REG | without(LABELS, MARGIN) | without(REFINED, {"refinement.tau": 0}),
        ),
        (
            {"method.name": "psol", "method.localizer": True, "method.refine": True},
            {
                "classifier": CLASSIFIER,
                "boxes": {},
                "localizer": REGRESSED,
                "refinement": LABELS | REFINED | {"initialization.beta": 0.5},  # of a labeller that is an average
            },
            MASK,
            MAP | L_REG | without(TEACHER, MASK | {"initialization.beta": 0}),
        ),
        (
            {"method.name": "psol", "method.localizer": True, "method.refine": True, **FROZEN},
            {
                "classifier": CLASSIFIER,
                "boxes": {},
                "localizer": REGRESSED,
                "labels": LABELS | {"refinement.epochs": 3},
                "refinement": without(REFINED, {"refinement.epochs": 0}),
            },
            MASK,
            MAP | L_REG | without(TEACHER, MASK | {"initialization.beta": 0}),
        ),
    ],
)
def test_a_key_holds_what_a_result_depends_on(
    root: Path, values: dict[str, Any], by_link: dict[str, Any], recorded: dict[str, Any], inert: dict[str, Any]
) -> None:
    """So that no link is trained twice for a field that it does not use, and none is taken for another."""
    config = small_config(root, ONLINE | values)
    chain, kinds = chain_of(config, "data"), list(by_link)
    assert [link.kind for link in chain] == kinds
    assert chain_of(config, "other").links[0].key != chain.links[0].key

    def changed(field: str, value: Any) -> Chain:
        other = override(config, {field: value})
        assert other != config, field
        return chain_of(other, "data")

    for first, fields in by_link.items():
        for field, value in fields.items():
            found = changed(field, value)
            differ = [link.kind for link in chain if found[link.kind].key != link.key]
            assert differ == kinds[kinds.index(first) :], field  # its link and those that hang on it
            assert found.record != chain.record, field
            assert field in depends_on(config), field
    for field, value in (recorded | inert | FREE).items():
        found = changed(field, value)
        assert [link.key for link in found] == [link.key for link in chain], field
        assert (found.record != chain.record) == (field in recorded), field
        assert (field in depends_on(config)) == (field in recorded), field  # what tables say differs


def test_a_link_s_key_is_that_of_every_chain_that_has_it(root: Path) -> None:
    """One classifier of a scheme, one localizer of a method's boxes, whatever comes after."""

    def keys(**values: Any) -> dict[str, str]:
        return {link.kind: link.key for link in chain_of(config_of(root, **values), "data")}

    refined, regressed = keys(name="psol", localizer=True, refine=True), keys(name="psol", localizer=True)
    assert refined.items() > regressed.items() > keys(name="psol").items()
    by_cam = keys(name="cam", localizer=True)
    assert by_cam["classifier"] == refined["classifier"] != keys(name="has")["classifier"]
    assert len({refined["boxes"], by_cam["boxes"], keys(name="grad_cam")["boxes"]}) == 3
    assert by_cam["localizer"] != refined["localizer"] != keys(name="lchp")["localizer"]
    assert keys(name="lchp")["classifier"] != by_cam["classifier"]
    chain = chain_of(config_of(root, "psol", localizer=True, refine=True), "data")
    for link in chain:
        assert chain.until(link.kind).last.key == link.key
    assert chain.until("classifier").config == chain_of(config_of(root, "cam"), "data").until("classifier").config


def test_layers_that_imagenet_weights_do_not_hold_learn_faster(shared_data: Path) -> None:
    """As in the methods' own codes and in wsolevaluation; networks from random weights have one rate."""
    weights = {"model.weights_dir": str(shared_data / "weights"), "method.name": "acol"}
    config = override(PRESETS["cub50_cpu"].config, weights)
    found = METHODS["acol"]
    classifier = build_classifier(config, found, 5)
    slow, fast = by_rate(classifier, config, found)
    names = {id(p): n for n, p in classifier.named_parameters()}
    assert fast["lr"] == 10 * slow["lr"] == 10 * config.initialization.lr
    assert {names[id(p)].split(".")[0] for p in slow["params"]} == {"classifier"}
    assert {names[id(p)].split(".")[0] for p in fast["params"]} == {"branch_a", "branch_b"}
    assert len(slow["params"]) + len(fast["params"]) == len(names)
    other = override(config, {"method.lr_classifier_ratio": 3.0})
    assert chain_of(other, "data")["classifier"].key != chain_of(config, "data")["classifier"].key
    tiny = override(PRESETS["parts"].config, {"method.name": "acol"})
    lchp = override(config, {"method.name": "lchp"})
    assert [g["lr"] for g in by_rate(build_classifier(tiny, found, 5), tiny, found)] == [tiny.initialization.lr]
    other = override(tiny, {"method.lr_classifier_ratio": 3.0})
    assert chain_of(other, "data").record == chain_of(tiny, "data").record
    assert len(by_rate(build_classifier(lchp, METHODS["lchp"], 5), lchp, METHODS["lchp"])) == 1  # LCHP has one rate


def test_an_oracle_without_held_out_boxes_says_that_it_is_idle(root: Path, caplog) -> None:
    config = override(config_of(root, "cam"), {"evaluation.oracle": True})
    open_context(config, show_progress=False)
    assert "evaluation.oracle: without effect" in caplog.text
    assert "data.validation = 0" in caplog.text
    caplog.clear()
    open_context(override(config, {"data.validation": 0.25}), show_progress=False)
    assert "without effect" not in caplog.text


def test_score_maps_are_scored_and_what_an_oracle_chose_is_named(root: Path, psol: Result, tmp_path: Path) -> None:
    values = {"data.validation": 0.25, "evaluation.oracle": True, "method.threshold": 0.5}
    result = train(override(config_of(root, "cam"), values), output=tmp_path / "run")
    maps = result.summary["score_maps"]
    assert maps["threshold"] == 0.5
    assert maps["boxacc"] <= maps["oracle_maxboxacc"]
    assert maps["oracle_validation_boxacc"] <= maps["oracle_maxboxacc"]
    assert maps["oracle_validation_boxacc_v2"] <= maps["oracle_maxboxacc_v2"]
    assert 0 <= maps["oracle_validation_threshold"] < 1
    assert result.summary["validation"]["oracle_gt_known"] >= 0
    text = summary_table(result.summary)
    assert f"MaxBoxAcc {maps['oracle_maxboxacc']:.2f} % (oracle" in text
    assert "chosen on the boxes of held-out training images" in text
    assert "score_maps" not in psol.summary


def test_a_run_s_map_scores_are_those_of_lchp_score_on_its_files(
    of_method: Callable[[str], Result], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on wsolevaluation's train-fullsup split; and a threshold found there is tried on the test split with the
    same classifier."""
    monkeypatch.setattr(measure, "MAP_INTERVAL", 0.001)
    clone = write_clone(tmp_path / "clone", per_class={"train": 6, "val": 5, "test": 4})
    values = {"data.name": "wsol_fullsup", "data.root": str(clone), "data.batch_size": 4}
    config = override(config_of(clone, "cam"), values | {"evaluation.batch_size": 4, "method.threshold": 0.3})
    run = train(config, output=tmp_path / "run").run
    maps = runs.read_json(run / runs.SUMMARY)["score_maps"]
    assert main(["scoremaps", "--run", str(run), "--output", str(tmp_path / "maps")]) == 0
    for multi, key in ((False, "maxboxacc"), (True, "maxboxacc_v2")):
        folder = clone / "metadata" / "CUB" / "val"
        scored = score_maps(tmp_path / "maps", folder, multi_contour=multi, threshold=0.3)
        assert scored.counted == {"resized": 0, "constant": 0, "unknown": 0}
        assert scored.accuracy is not None
        ours = {"oracle": maps[f"oracle_{key}"], "fixed": maps[key.removeprefix("max")]}
        if multi:
            assert ours == {"oracle": scored.mean, "fixed": np.mean(list(scored.accuracy.values()))}
        else:
            assert ours == {"oracle": scored.maxboxacc["50"], "fixed": scored.accuracy["50"]}
            assert maps["oracle_threshold"] == scored.best_threshold["50"]
    # by hand, from the whole image and its own class
    classifier, _, _ = load_classifier(run, torch.device("cpu"))
    test = open_context(config, show_progress=False).test
    batch = test.batch([7])
    image = Frame.of("full_image", config.data).see(batch.images)
    by_hand = in_its_frame(cam(classifier, image, torch.tensor([1]))[0].numpy())
    assert batch.labels.tolist() == [1]
    np.testing.assert_allclose(np.load(tmp_path / "maps" / f"{test.split.image_ids[7]}.npy"), by_hand, atol=1e-6)
    on_test = override(config, {"data.name": "wsol", "method.threshold": maps["oracle_threshold"]})
    other = train(on_test, output=tmp_path / "test", stage="refine", source=run)
    assert other.summary["score_maps"]["threshold"] == maps["oracle_threshold"]
    assert len(other.predictions()) == 2 * 8
    capsys.readouterr()
    assert main(["scoremaps", "--run", str(run), "--output", str(tmp_path / "maps")]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"of another config: data.validation 0 \(asked for: 0.25\)"):
        train(override(on_test, {"data.validation": 0.25}), output=tmp_path / "held", stage="refine", source=run)
    assert main(["scoremaps", "--run", str(of_method("psol").run), "--output", str(tmp_path / "none")]) == 2
    assert "a run of DDT, which has no score maps" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_box_is_of_the_image_s_own_class(root: Path) -> None:
    """GT-Known's class is known; the classifier here, untrained, is often wrong."""
    config = config_of(root, "cam")
    context = open_context(config, show_progress=False)
    classifier: Any = build_classifier(config, METHODS["cam"], 3).eval()

    def boxes(_images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        right = (labels + 1) / 10
        return torch.stack([0 * right, 0 * right, right, 0 * right + 1], 1)

    models = Models(classifier, boxes, {}, config.initialization)
    options: dict[str, Any] = {"batch_size": 4, "workers": 0, "device": torch.device("cpu")}
    options |= {"autocast": context.autocast}
    size, labels = config.data.image_size, context.test.split.labels
    found = predict(models, context.test, FRAMES, size, **options)
    assert (found["full_image"].top5[:, 0] != labels).any()
    for frame in FRAMES:
        np.testing.assert_allclose(found[frame].boxes["pseudo_label"][:, 2], (labels + 1) / 10, rtol=1e-6)
    views = view_boxes(models, context.test, size, **options)["pseudo_label"]  # flipped: the other end
    np.testing.assert_allclose(views[0][:, 0], 1 - (labels + 1) / 10, rtol=1e-6)


def test_ddt_sees_what_imagenet_trained_and_no_layer_added_to_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def build(name: str, *_: Any, **__: Any) -> torch.nn.Module:
        names.append(name)
        return build_trunk("tiny", "classifier", pretrained=False, weights_dir=None)

    monkeypatch.setattr(map_boxes, "build_trunk", build)
    context = open_context(config_of(root, "psol"), show_progress=False)
    for classifier in ("vgg16_gap", "googlenet_gap", "mobilenet_v2"):
        config = override(context.config, {"model.classifier": classifier, "model.pretrained": True})
        map_boxes.ddt_trunk(torch.nn.Identity(), config.model, context.device)
    assert names == ["vgg16", "googlenet", "mobilenet_v2"]


@pytest.mark.parametrize("name", COMPARED)
def test_workers_share_only_losses_that_are_the_mean_of_those_of_slices(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = METHODS[name]
    context = open_context(config_of(root, name), show_progress=False)
    classifier = build_classifier(context.config, found, 3).eval()
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 3

    def loss(part: slice) -> float:
        draws = torch.Generator().manual_seed(1)
        return found.scheme.loss(classifier, Batch(images[part], labels[part], draws, 0.5)).item()

    halves = (loss(slice(0, 4)) + loss(slice(4, 8))) / 2
    assert (abs(loss(slice(0, 8)) - halves) < 1e-5) == found.scheme.sliced
    if not found.scheme.sliced:
        chain = chain_of(context.config, "")
        monkeypatch.setattr(links.distributed, "size", lambda: 2)
        with pytest.raises(ConfigError, match=rf"method.name = '{name}': its loss needs a batch as a whole"):
            require_whole_batches(chain)


def test_every_method_beats_the_centred_box_on_birds_or_the_record_says_that_it_does_not() -> None:
    """The published records of 50 classes of CUB with a pretrained MobileNetV2, and their Table 1."""
    folder = Path(__file__).parents[2] / "analysis" / "records" / "cub50"
    found = collect([folder]).runs
    found = rows(found, found["method.name"] != "lchp")
    assert set(found["method.name"]) == set(COMPARED)
    assert set(found["model.classifier"]) == {"mobilenet_v2"}
    assert all(found["model.pretrained"])
    text = (folder / "tables" / "table_1.md").read_text().replace("\\_", "_")
    for frame in FRAMES:
        (note,) = re.findall(rf"no better in {frame} than a centred 80 % box, GT-Known [\d.]+: (.*)", text)
        said = set(re.findall(r"(?:^|, )([^,]+(?:, refined by LCHP)?) \d+\.\d\d", note))
        below = {
            run["environment/method"]
            for run in found.to_dict("records")
            if run[f"results/{result_of(run)}/{frame}/gt_known"] <= run[f"floors/{frame}/centre_box"]
        }
        assert said - {"Pseudo Label"} == below  # LCHP's, of other records


def test_labels() -> None:
    def of(name: str, **values: Any) -> str:
        return label(override(TrainConfig(), {"method.name": name, **{f"method.{k}": v for k, v in values.items()}}))

    assert of("lchp") == "LCHP"
    assert of("layer_cam") == "LayerCAM"
    assert of("psol") == "DDT"
    assert of("psol", localizer=True) == "PSOL"
    assert of("cam", localizer=True) == "PSOL on CAM boxes"
    assert of("psol", localizer=True, refine=True) == "PSOL, refined by LCHP"


def test_mistakes_are_one_line(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.name = 'camm': expected lchp, boxes, acol, .*did you mean cam"):
        train(small_config(root, {"method.name": "camm"}), output="never")
    small = {"model.classifier": "vgg16", "data.image_size": 8, "data.resize": 12}
    with pytest.raises(ConfigError, match=r"data.image_size = 8: too small for vgg16 \("):
        train(override(config_of(root, "cam"), small), output="never")
    with pytest.raises(ConfigError, match=r"stage = 'first': expected one of both, init, refine"):
        train(config_of(root, "cam"), output="never", stage="first")  # pyright: ignore[reportArgumentType]


CONTRADICTIONS = {
    "method.refine = True: expected False, or method.localizer True": {"method.name": "cam", "method.refine": True},
    "method.localizer = True: expected False, since method.name = 'lchp'": {"method.localizer": True},
    "initialization.attention = 'attention_maps': a GAP head has none": {
        "model.head": "gap",
        "initialization.attention": "attention_maps",
    },
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_what_contradicts_the_method_is_said_before_the_data_is_read(said: str, tmp_path: Path) -> None:
    config = override(preset("parts"), {"data.name": "cub", "data.root": str(tmp_path / "none")} | CONTRADICTIONS[said])
    with pytest.raises(ConfigError, match=f"^{said}"):
        train(config, output=tmp_path / "run")
    with pytest.raises(ConfigError, match=f"^{said}"):
        make_cell(override(preset("parts"), {}), CONTRADICTIONS[said])
    assert not [*tmp_path.iterdir()]


def test_a_class_without_training_images_is_said_before_ddt_trains(tmp_path: Path) -> None:
    """All of it are held out."""
    root = write_images(tmp_path / "data", train=2, test=1)
    config = override(config_of(root, "psol"), {"data.validation": 0.5})
    images = load(config.data).train

    def is_lost(seed: int) -> bool:
        left = images.labels[~held_out_images(images.image_ids, 0.5, seed)]
        return 1 < len({*left}) < 3

    config = override(config, {"seed": next(filter(is_lost, range(100)))})
    said = r"^class c\d.*: no training image, without which DDT \(method.name = 'psol'\) has no box for it"
    with pytest.raises(DataError, match=said):
        train(config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=said):
        make_cell(config, {"method.localizer": True})
    make_cell(config, {"method.name": "cam"})
    make_cell(config, {"data.validation": 0.0})


def test_a_second_classifier_names_the_classes(psol: Result, of_method: Callable[[str], Result], capsys: Any) -> None:
    """The boxes stay; only what needs the class changes, and the record says whose classes they are."""
    other = of_method("has")
    found = second_classifier(psol.run, other.run, torch.device("cpu"))
    assert found["classifier"] == {"run": "has", "backbone": "tiny", "method": "has"}
    assert found["classification"] == other.summary["classification"]
    for name, frames in found["results"].items():
        for frame in FRAMES:
            assert frames[frame]["gt_known"] == psol.summary["results"][name][frame]["gt_known"]
            top1, known = frames[frame]["top1_loc"], frames[frame]["gt_known"]
            assert top1 is not None
            assert known is not None
            assert top1 <= known
    same = second_classifier(psol.run, psol.run, torch.device("cpu"))
    for name, frames in same["results"].items():  # classes come from center_crop, whichever frame the boxes are of
        assert frames["center_crop"] == psol.summary["results"][name]["center_crop"]
    assert main(["evaluate", "--run", str(psol.run), "--classifier", str(other.run), "--ten-crop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["crops"] == 10
    assert main(["evaluate", "--run", str(psol.run), "--ten-crop"]) == 2


def test_ten_crops() -> None:
    pixels = torch.arange(2 * 6 * 6 * 3, dtype=torch.uint8).view(2, 6, 6, 3)
    crops = ten_crops(pixels, 4)
    assert len(crops) == 10
    assert all(c.shape == (2, 4, 4, 3) for c in crops)
    assert torch.equal(crops[0], pixels[:, :4, :4])
    assert torch.equal(crops[3], pixels[:, 2:, 2:])
    assert torch.equal(crops[4], pixels[:, 1:5, 1:5])
    assert torch.equal(crops[5], crops[0].flip(2))


@pytest.mark.parametrize(("name", "values"), [("cam", {}), ("psol", {"localizer": True})])
def test_a_finished_run_is_not_cut_to_its_first_stage(
    root: Path, tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    config, run = config_of(root, name, **values), tmp_path / "run"
    train(config, output=run, stage="init")
    with pytest.raises(RunError, match="another --stage than refine"):
        train(config, output=run, stage="refine", source=run, resume=True)
    train(config, output=run, resume=True)  # stage 1 alone may go on
    before = (run / runs.SUMMARY).read_bytes()
    if values:  # what of a method without a localizer is stage 1 is all of it
        with pytest.raises(RunError, match="another --stage than init"):
            train(config, output=run, stage="init", resume=True)
    assert (run / runs.SUMMARY).read_bytes() == before
    second = tmp_path / "second"
    train(config, output=second, stage="refine", source=run)
    for stage in ("both", "init"):
        with pytest.raises(RunError, match=f"another --stage than {stage}"):
            train(config, output=second, stage=stage, resume=True)
    train(config, output=second, stage="refine", source=run, resume=True)
