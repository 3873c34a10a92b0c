"""lchp publish: a model answers bitwise as its run does, its card is the record's, nothing of the machine is in it."""

import errno
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from older_runs import as_before_links
from pages import ROOT, blocks
from safetensors.torch import save_file
from squares import small_config, write_images

import lchp
from lchp.backbones import backbone, weights_terms
from lchp.cli import main
from lchp.config import FIELDS, PATHS, to_flat
from lchp.data import DATASETS
from lchp.deploy import publish as publishing
from lchp.deploy.formats import Prediction
from lchp.deploy.model_folder import ABOUT, CARD, SUMS, load_model
from lchp.deploy.predict import find_images, predict
from lchp.deploy.predictor import Predictor
from lchp.deploy.publish import publish
from lchp.deploy.trained import TrainedRun, load_run
from lchp.errors import ConfigError, RunError
from lchp.evaluation.frames import FRAMES
from lchp.evaluation.metrics import METRICS, Metric
from lchp.files import runs
from lchp.report.read import collect
from lchp.training.run import Result, train

CPU = torch.device("cpu")
AUTO: dict[str, Any] = {
    "initialization.delta": "auto",
    "initialization.attention": "auto",
    "initialization.mask_delta": 0.5,
    "initialization.mask_attention": "features",
}
RUNS: dict[str, dict[str, Any]] = {
    "lchp": {},
    "lchp of one stage": {"stage": "init"},
    "auto": AUTO,
    "cam": {"method.name": "cam"},
    "grad_cam": {"method.name": "grad_cam"},
    "acol": {"method.name": "acol"},
    "psol": {"method.name": "psol"},
    "psol of weights": {"method.name": "psol", "method.localizer": True, "model.pretrained": True},
    "cam of one stage": {"method.name": "cam", "method.localizer": True, "method.refine": True, "stage": "init"},
    "cam, refined": {"method.name": "cam", "method.localizer": True, "method.refine": True},
    "boxes": {"method.name": "boxes"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("a place") / "of mine")


def trained_run(root: Path, to: Path, values: dict[str, Any]) -> Result:
    values = {"initialization.epochs": 1, "refinement.epochs": 1, **values}
    stage = values.pop("stage", "both")
    if values.get("model.pretrained"):
        to.mkdir(parents=True)
        torch.manual_seed(1)
        save_file(backbone("tiny").build().state_dict(), to / "tiny.safetensors")
        values["model.weights_dir"] = str(to)
    if values.get("method.name") == "boxes":
        values["method.boxes"] = str(root / "boxes.csv")
    return train(small_config(root, values), output=to / "run", stage=stage)


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The runs by name, each trained once, alone in a folder with its weights. Tests only read them."""
    return functools.cache(lambda name: trained_run(root, tmp_path_factory.mktemp("runs") / "made", RUNS[name]))


@pytest.fixture(scope="module")
def result(made: Callable[[str], Result]) -> Result:
    return made("lchp")


@pytest.fixture(scope="module")
def model(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests only read it."""
    folder = tmp_path_factory.mktemp("models") / "birds"
    publish(result.run, folder, licence="CC-BY-4.0")
    return folder


def said(trained: TrainedRun, root: Path, *, several: bool = False) -> list[Prediction]:
    return [p for p, _ in predict(trained, find_images(root / "test"), several=several, least_area=0)]


@pytest.mark.parametrize("name", RUNS)
def test_a_model_answers_bitwise_as_its_run(
    root: Path, made: Callable[[str], Result], tmp_path: Path, name: str
) -> None:
    """Also where neither the run, its weights nor its data are there any more."""
    run = made(name).run
    ways = (True,) if name == "boxes" else (True, False)
    expected = [said(load_run(run, CPU, localizer=way), root, several=not way) for way in ways]
    stages = dict.fromkeys(line["stage"] for line in runs.read_metrics(run))
    publish(run, tmp_path / "model")
    away = run.parent.rename(tmp_path / "away")
    try:
        found = [said(load_model(tmp_path / "model", CPU, localizer=way), root, several=not way) for way in ways]
    finally:
        away.rename(run.parent)
    assert found == expected
    assert len(found[0]) == 9
    recipe = [line.split("|")[1:3] for line in (tmp_path / "model" / CARD).read_text().splitlines() if "|" in line]
    rows = {what.strip(): value.strip() for what, value in recipe}
    assert [text.split()[0] for text in rows["epochs"].split(", ")] == list(stages)
    assert ("tau" in rows) == ("refinement" in stages)
    assert ("second_pass" in rows) == ("lchp" in name or name == "auto")


def test_a_record_of_before_links_and_of_an_older_classifier_is_published_as_it_predicts(
    root: Path, result: Result, tmp_path: Path
) -> None:
    """Classifiers of version 1 have another epsilon, which no tensor says."""
    run = as_before_links(Path(shutil.copytree(result.run, tmp_path / "run")))
    checkpoint = run / "checkpoints" / "initialization.pt"
    state = torch.load(checkpoint, weights_only=True)
    for name in ("classifier", "teacher"):
        state["modules"][name]._metadata[""]["version"] = 1
    torch.save(state, checkpoint)
    expected = load_run(run, CPU)
    publish(run, tmp_path / "model")
    found = load_model(tmp_path / "model", CPU)
    epsilons = [trained.classifier.attend.get_submodule("1").eps for trained in (expected, found)]
    assert epsilons == [1e-5, 1e-5]
    assert said(found, root) == said(expected, root)


def test_the_command_line_predicts_and_exports_a_model(
    root: Path, result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", "--run", str(result.run), "--output", str(tmp_path / "birds")]) == 0
    assert re.search(r"/birds: LCHP-R, 3 classes, \d\.\d MB\n$", capsys.readouterr().out)
    said = []
    for source in (["--run", str(result.run)], ["--model", f"{tmp_path}/birds/"]):
        assert main(["predict", str(root), *source, "--device", "cpu", "--several"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["export", "--model", str(tmp_path / "birds"), "--output", str(tmp_path / "birds.pt")]) == 0
    assert "LCHP-R and classifier as torchscript" in capsys.readouterr().out


@pytest.mark.parametrize("source", [[], ["--run", "a", "--model", "b"]])
def test_one_of_run_and_model_is_given(source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", ".", *source]) == 2
    assert capsys.readouterr().err == "lchp: error: expected --run DIR or --model MODEL, one of both\n"


def test_a_run_and_a_model_are_told_apart(result: Result, model: Path) -> None:
    with pytest.raises(RunError, match="is a run folder; give it by --run"):
        load_model(result.run, CPU)
    with pytest.raises(RunError, match="is a model, and no run folder; give it by --model"):
        load_run(model, CPU)


def head_of(model: Path) -> dict[str, Any]:
    _, head, _ = (model / CARD).read_text().split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_holds_the_record_s_figures_in_both_frames_with_their_floors(result: Result, model: Path) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (model / CARD).read_text().splitlines()]
    table = {(row[0], row[1]): [float(v) for v in row[2:]] for row in rows if len(row) == 8 and row[1] in FRAMES}
    floors = result.summary["floors"]
    titles = {"pseudo_label": "Pseudo Label", "lchp_i": "LCHP-I", "lchp_r": "LCHP-R"}
    expected = {
        (title, frame): [
            *(result.summary["results"][name][frame][metric] for metric in METRICS),
            floors[frame]["full_box"],
            floors[frame]["centre_box"],
        ]
        for name, title in titles.items()
        for frame in FRAMES
    }
    assert table == {key: pytest.approx(values, abs=0.005) for key, values in expected.items()}
    ((results,),) = ([r["metrics"] for r in m["results"]] for m in head_of(model)["model-index"])
    figures = [m["value"] for m in results]
    assert figures == [round(Metric("lchp_r", f, m).of(result.summary) or 0.0, 2) for f in FRAMES for m in METRICS]


def test_the_hub_s_client_reads_the_card(model: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(model / CARD).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("lchp", "cc-by-4.0", "object-detection")
    assert data.model_name == "LCHP on a folder of images"
    assert {(r.metric_type, r.metric_name) for r in data.eval_results} >= {("gt_known", "GT-Known (%), full_image")}


def test_a_card_without_boxes_has_what_needs_none(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", boxes=False)
    run = trained_run(root, tmp_path / "made", {"method.name": "cam"})
    publish(run.run, tmp_path / "model")
    text = (tmp_path / "model" / CARD).read_text()
    assert "GT-Known" not in text
    assert "model-index" not in text
    for frame in FRAMES:
        figures = " +\\| +".join(f"{run.summary['unboxed'][frame][n]:.2f}" for n in ("crop", "masked", "area", "score"))
        assert re.search(rf"\| {frame} +\| +{figures} +\|", text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "lchp",
            [
                "- This model: its publisher has stated no licence.",
                "- Pretrained weights: none.",
                "| delta ",
                "Access 2023).",
            ],
        ),
        ("psol of weights", ["- The weights that the localizer started from: tiny.safetensors, a file whose licence"]),
        (
            "boxes",
            ["It learnt from class labels and from a file of boxes.", "- The boxes that the localizer learnt from"],
        ),
    ],
)
def test_the_card_says_where_all_is_from_and_names_no_place(
    root: Path, made: Callable[[str], Result], tmp_path: Path, name: str, expected: list[str]
) -> None:
    origin = made(name).run
    run = Path(shutil.copytree(origin, tmp_path / "run"))
    environment = runs.read_environment(run)
    runs.write_json(run / runs.ENVIRONMENT, environment | {"platform": "node17.lab", "skipped": ["/a/b: damaged"]})
    publish(run, tmp_path / "model")
    text = (tmp_path / "model" / CARD).read_text()
    assert [line for line in expected if line not in re.sub(r"(?<=\S)\n(?=\S)", " ", text) + text] == []
    places = (*map(str, (tmp_path, origin.parent, root)), root.name, "/tmp", f"{Path.home()}/", "node17", "/a/b")
    for path in (tmp_path / "model").iterdir():
        content = path.read_bytes()
        for place in places:
            assert place.encode() not in content, (path.name, place)


def test_published_data_sets_and_weights_have_their_terms() -> None:
    assert {n for n, d in DATASETS.items() if "non-commercial research" in d.terms} == {
        "cub",
        "tiny_imagenet",
        "imagenet",
    }
    assert weights_terms("mobilenet_v2", None).startswith("torchvision's MobileNet_V2_Weights.")
    pytest.importorskip("timm")
    assert weights_terms("se_resnet50", None) == "timm's seresnet50.ra2_in1k (apache-2.0)"


def test_its_config_is_the_run_s_without_places(result: Result, model: Path) -> None:
    config = load_model(model, CPU).config
    ours, theirs = to_flat(result.config), to_flat(config)
    assert {name for name in FIELDS if ours[name] != theirs[name]} == {"data.root", "data.cache"}
    assert not any(theirs[name] for name in PATHS if name != "data.cache")


def test_the_checksums_are_those_of_sha256sum(model: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=model, check=True, capture_output=True)
    listed = {line.split("  ")[1] for line in (model / SUMS).read_text().splitlines()}
    assert listed | {SUMS} == {path.name for path in model.iterdir()}


def test_a_run_is_published_the_same_twice_and_over_itself(result: Result, model: Path, tmp_path: Path) -> None:
    for _ in range(2):
        publish(result.run, tmp_path / "birds", licence="cc-by-4.0")
        for path in model.iterdir():
            assert (tmp_path / "birds" / path.name).read_bytes() == path.read_bytes(), path.name
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_what_is_no_model_alone_is_not_written_over(result: Result, model: Path, tmp_path: Path) -> None:
    for name, content in {"notes.txt": "mine", CARD: "mine", ABOUT: "{}", ".git": ""}.items():
        folder = Path(shutil.copytree(model, tmp_path / f"with {name}"))
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match=f"--output {re.escape(str(folder))}: holds more than a model"):
            publish(result.run, folder)
        assert (folder / name).read_text() == content
    (link := tmp_path / "link").symlink_to(model)
    with pytest.raises(ConfigError, match="is a link"):
        publish(result.run, link)
    with pytest.raises(ConfigError, match="is there already and not empty"):
        publish(result.run, result.run)


@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_leaves_what_there_was(
    result: Result, model: Path, tmp_path: Path, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:
        shutil.copytree(model, tmp_path / "birds")
    fsync, calls = os.fsync, iter(range(1000))

    def full(handle: int) -> None:
        if next(calls) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\); make room"):
        publish(result.run, tmp_path / "birds")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["birds"] if earlier else [])
    if earlier:
        assert load_model(tmp_path / "birds", CPU).result == "lchp_r"


def test_a_model_that_would_answer_otherwise_is_not_kept(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: Any, **more: Any) -> TrainedRun:
        found = load_model(*arguments, **more)
        with torch.no_grad():
            found.classifier.linear.weight.mul_(1.001)
        return found

    monkeypatch.setattr(publishing, "load_model", other)
    with pytest.raises(RunError, match="does not answer as the run does; it is not kept"):
        publish(result.run, tmp_path / "birds")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_not_published(result: Result, tmp_path: Path) -> None:
    run = Path(shutil.copytree(result.run, tmp_path / "run"))
    summary = runs.read_json(run / runs.SUMMARY)
    (run / runs.SUMMARY).unlink()
    with pytest.raises(RunError, match=r"run: is not finished, having no summary\.json; go on with lchp train"):
        publish(run, tmp_path / "birds")
    del summary["results"]["lchp_r"]
    runs.write_json(run / runs.SUMMARY, summary)
    with pytest.raises(RunError, match=r"summary\.json: has no figures of lchp_r"):
        publish(run, tmp_path / "birds")
    with pytest.raises(ConfigError, match="--license my own: expected a licence's name"):
        publish(run, tmp_path / "birds", licence="my own")
    assert not (tmp_path / "birds").exists()


def test_a_model_among_runs_is_no_run(result: Result, tmp_path: Path) -> None:
    shutil.copytree(result.run, tmp_path / "run")
    publish(result.run, tmp_path / "model")
    records = collect([tmp_path])
    assert (len(records.runs), records.problems) == (1, ())


def test_prediction_from_python_runs_as_the_card_and_the_page_print_it(
    root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").symlink_to(root / "test")
    (tmp_path / "MODEL").symlink_to(model)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "birds").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    for page in (model / CARD, ROOT / "docs" / "handing-on.md"):
        (code,) = (block.text for block in blocks(page) if block.language == "python")
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
        first = capsys.readouterr().out.splitlines()[0]
        expected = said(load_model(model, CPU), root)[0]
        assert first == f"{expected.image} {expected.class_name} {expected.box} {expected.confidence}"


def test_a_predictor_is_of_a_run_or_of_a_model(root: Path, result: Result, model: Path) -> None:
    of_run, of_model = lchp.Predictor.from_run(result.run, device="cpu"), Predictor.from_folder(model, device="cpu")
    assert of_run.class_names == of_model.class_names == ("c0", "c1", "c2")
    assert list(of_run.predict(root / "test")) == list(of_model.predict(str(root / "test")))
    several = Predictor.from_folder(model, device="cpu", several=True)
    assert all(found.objects is not None for found in several.predict(root / "test" / "c0" / "0.png"))


def test_metadata_of_the_model_says_what_it_is(model: Path) -> None:
    about = json.loads((model / ABOUT).read_text())
    assert about == {
        "format": "lchp model",
        "version": 1,
        "lchp": lchp.__version__,
        "recipe": 4,
        "result": "lchp_r",
        "class_names": ["c0", "c1", "c2"],
    }
    assert replace(load_model(model, CPU).config).data.root is None
