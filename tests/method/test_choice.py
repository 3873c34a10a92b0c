"""`auto`: masks apart from boxes, and how the teacher makes boxes chosen without a box."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_records
import torch
from squares import cached_config, write_images

from lchp.config import TrainConfig, as_chosen, from_dict, override, preset, to_dict
from lchp.errors import ConfigError
from lchp.evaluation.predictions import summary_table
from lchp.files.runs import read_summary
from lchp.method import choice
from lchp.method.choice import (
    KEPT,
    ROUNDS,
    Choice,
    candidate_boxes,
    candidates,
    known_by,
    looked_at,
    parted,
    score,
    spared,
)
from lchp.method.networks import ClassifierOutput
from lchp.method.pseudo_boxes import Snapshots, algorithm_1, make_teacher, of_masks
from lchp.method.steps import pseudo_boxes
from lchp.training.batches import general_batches
from lchp.training.chain import chain_of, kinds_of, method_of, results_of
from lchp.training.context import open_context
from lchp.training.definition import epoch_seed
from lchp.training.networks import build_classifier
from lchp.training.run import train

FIELDS = ("delta", "attention", "normalization", "second_pass")
AUTO = {f"initialization.{name}": "auto" for name in FIELDS}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def config_of(root: Path, values: dict[str, Any]) -> TrainConfig:
    return cached_config(root, {"threads": 1, "initialization.epochs": 3, "refinement.labeller": "frozen"} | values)


def modules(run: Path, name: str) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)["modules"]


class Bright(torch.nn.Module):
    """A classifier that looks for light: its attention is the picture's red channel; its class 1 is light."""

    mean = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> ClassifierOutput:
        light = x[:, :1]
        logits = torch.cat([torch.zeros(len(x), 1), 200 * light.mean((1, 2, 3))[:, None] - 4], 1)
        return ClassifierOutput(logits, light, light)


def pictures() -> torch.Tensor:
    """A bright square of a quarter of the side on faint, even light."""
    x = torch.full((2, 3, 64, 64), 0.02)
    x[0, :, 16:32, 16:32] = 1.0
    x[1, :, 40:56, 8:24] = 1.0
    return x


def test_the_score_finds_the_box_that_holds_what_the_class_is_known_by() -> None:
    """Closed form: crop on the square 1, masked below 1/2, area 1/16. A sliver scores less, the whole image nothing."""
    x, labels = pictures(), torch.tensor([1, 1])
    square = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.125, 0.625, 0.375, 0.875]])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    sliver = square.clone()
    sliver[:, 2] = sliver[:, 0] + 1 / 64
    scores = []
    for boxes in (square, whole, sliver):
        crop, masked = known_by(Bright(), x, labels, boxes, torch.zeros(3), 0.0)  # pyright: ignore
        scores.append(float(score(crop, masked, boxes).mean()))
    assert scores[0] == max(scores)
    assert scores[0] > 0.4
    assert scores[0] > scores[2] > scores[1] == 0


def test_candidates_are_every_value_of_the_automatic_fields() -> None:
    first = override(preset("cub"), AUTO).initialization
    found = candidates(first, "bap")
    assert len(found) == len(set(found)) == 7 * 2 * 2 * 2
    assert {c.attention for c in candidates(first, "gap")} == {"features"}
    only = override(preset("cub"), {"initialization.delta": "auto"}).initialization
    assert [c.delta for c in candidates(only, "bap")] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert {c.attention for c in candidates(only, "bap")} == {"attention_maps"}


def test_candidates_seen_together_have_the_boxes_of_algorithm_1() -> None:
    x, net = pictures(), Bright()
    first = override(preset("cub"), AUTO).initialization
    configs = candidates(first, "bap")
    for config, (l_r, box) in zip(configs, candidate_boxes(net, x, configs), strict=True):  # pyright: ignore
        alone = algorithm_1(lambda i, c=config: net(i).attention(c.attention), x, config, net.mean)
        assert torch.equal(l_r, alone.l_r)
        assert torch.equal(box, alone.box)


def test_the_better_candidates_are_scored_on_more_images() -> None:
    first = override(preset("cub"), AUTO).initialization
    choice, last = Choice(first, "bap"), len(ROUNDS) - 1
    one, number = torch.ones(1), len(choice.configs)
    for n in range(number):
        choice.note(0, n, one * n / 100, 0 * one, torch.zeros(1, 4))
    assert choice.running(1) == list(range(number - KEPT[0], number))
    for n in choice.running(1):
        choice.note(1, n, one * n / 100, 0 * one, torch.zeros(1, 4))
    finalists = choice.running(last)
    assert finalists == list(range(number - KEPT[1], number))
    for n in finalists:  # on more images the order turns
        choice.note(last, n, -3 * one * n / 100, 0 * one, torch.zeros(1, 4))
    assert choice.best() == finalists[0]
    assert float(choice.scores(last)[finalists[0]]) == pytest.approx(-finalists[0] / 3)  # the mean over all rounds
    record = choice.record()
    assert record["values"] == {name: getattr(choice.configs[finalists[0]], name) for name in FIELDS}
    images = [c["images"] for c in record["candidates"]]
    assert images == [1] * (number - KEPT[0]) + [2] * (KEPT[0] - KEPT[1]) + [3] * KEPT[1]
    assert as_chosen(override(preset("cub"), AUTO), record).initialization == choice.config()


def test_rounds_share_no_image() -> None:
    for images, sizes in ((5000, ROUNDS), (24, (4, 8, 12)), (2, (0, 1, 1))):
        rounds = parted(list(range(images)))
        assert [len(r) for r in rounds] == list(sizes)
        assert [i for r in rounds for i in r] == list(range(sum(sizes)))


def test_auto_leaves_the_masks_as_they_were() -> None:
    config = override(preset("cub50_cpu"), AUTO)
    first, before = config.initialization, preset("cub50_cpu").initialization
    assert (first.mask_delta, first.mask_attention, first.mask_normalization) == (0.4, "features", "minmax")
    masks = of_masks(first)
    assert (masks.delta, masks.attention, masks.normalization, masks.boxes) == (0.4, "features", "minmax", "single")
    assert from_dict(to_dict(config)) == config
    assert override(config, {"initialization.delta": 0.3}).initialization.mask_delta == before.delta


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"initialization.mask_delta": 1.5}, "initialization.mask_delta = 1.5: expected in (0, 1), or None"),
        ({"initialization.delta": "some"}, "initialization.delta = 'some': expected a number, in (0, 1), or auto"),
        ({"initialization.auto_after": 9}, "initialization.auto_after = 9: expected at most initialization.epochs = 3"),
        ({"initialization.mask_attention": "features"}, "expected None, or initialization.mask_delta too"),
        (AUTO | {"initialization.mask_delta": None}, "initialization.mask_delta = None: expected"),
    ],
    ids=lambda v: v if isinstance(v, str) else ",".join(v),
)
def test_what_does_not_go_together_is_named(root: Path, values: dict[str, Any], said: str) -> None:
    def asked() -> None:
        config = config_of(root, {k: v for k, v in values.items() if v is not None})
        if None in values.values():
            config = replace(config, initialization=replace(config.initialization, mask_delta=None))
        kinds_of(config)

    with pytest.raises(ConfigError) as error:
        asked()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_config_without_masks_trains_keeps_its_key() -> None:
    """The fields that came with `auto` say nothing of a run that does not use them."""
    chain = chain_of(preset("parts"), "data")
    assert not any("mask_" in name or "auto_after" in name for link in chain for name in link.fields)
    assert [link.kind for link in chain] == ["classifier", "localizer", "refinement"]


def test_cells_with_other_boxes_share_a_classifier_of_its_own_masks(root: Path) -> None:
    apart = {"initialization.mask_delta": 0.5}
    chains = [chain_of(config_of(root, apart | {"initialization.delta": d}), "data") for d in (0.3, 0.5, 0.7)]
    chains.append(chain_of(override(config_of(root, {"initialization.delta": 0.5}), AUTO), "data"))
    assert len({c["classifier"].key for c in chains[:3]}) == 1
    assert chains[3]["classifier"].key != chains[0]["classifier"].key  # it is spared the images that choose
    assert len({c["boxes"].key for c in chains}) == 4
    assert [link.kind for link in chains[-1]] == ["classifier", "choice", "boxes", "localizer", "labels", "refinement"]
    assert chains[0]["classifier"].passes == 7
    assert chains[0]["boxes"].passes == 2
    assert results_of(chains[0].config) == ("pseudo_label", "lchp_i", "lchp_r")
    assert chains[0]["classifier"].result is None
    for chain in chains:
        for link in chain:
            assert chain.until(link.kind).last.key == link.key
            assert chain.until(link.kind).config == chain_of(chain.until(link.kind).config, "data").config


def test_snapshots_give_back_the_network_of_an_epoch() -> None:
    linear, norm = torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
    net = torch.nn.Sequential(linear, norm)
    assert norm.running_mean is not None
    kept = Snapshots(net, 40)
    assert kept.epochs == (5, 10, 15, 20, 25, 30, 35, 40)
    assert Snapshots(net, 3).epochs == (1, 2, 3)
    states = {}
    for epoch in range(40):
        torch.nn.init.constant_(linear.weight, epoch)
        norm.running_mean.fill_(-epoch)
        kept.note(epoch, net)
        states[epoch + 1] = {k: v.clone() for k, v in net.state_dict().items()}
    assert [kept.after(n) for n in (1, 5, 6, 40)] == [5, 5, 10, 40]
    forty = replace(preset("folder").initialization, epochs=40)
    assert [Choice(replace(forty, auto_after=n), "bap").record()["after"] for n in (0, 3, 36)] == [40, 5, 40]
    kept.load(net, 15)
    assert all(torch.equal(v, states[15][k]) for k, v in net.state_dict().items())


def test_a_run_that_chooses_its_boxes(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says what was chosen, and on how many images. The classifier is bitwise that of the data set without
    them; the boxes of all are those of its teacher by that choice, view by view."""
    caplog.set_level("INFO", logger="lchp")
    monkeypatch.setattr(choice, "SPARED", 4)
    monkeypatch.setattr(choice, "FEWEST", 6)
    config = override(config_of(root, {"initialization.delta": 0.5}), AUTO)
    run = train(config, output=tmp_path / "auto", stage="init").run
    chosen: Any = json.loads((run / "summary.json").read_text())["chosen"]
    assert chosen["values"].keys() == set(FIELDS)
    best = max(chosen["candidates"], key=lambda c: (c["images"], c["score"]))
    assert chosen["values"] == {name: best[name] for name in FIELDS}
    line = next(m for m in caplog.messages if m.startswith("boxes by "))
    assert f"delta {chosen['values']['delta']:g}" in line
    assert "no box read" in line
    images = open_context(config, show_progress=False).images
    positions = spared(images.split.labels.tolist())
    assert best["images"] == len(positions) == 6
    fewer = tmp_path / "images"
    shutil.copytree(root, fewer)
    for position in positions:
        (fewer / images.split.image_ids[position]).unlink()
    (fewer / "boxes.csv").write_text(
        "".join(
            line
            for line in (root / "boxes.csv").read_text().splitlines(keepends=True)
            if line.startswith("image,") or (fewer / line.partition(",")[0]).exists()
        )
    )
    less = as_chosen(override(config, {"data.root": str(fewer)}), chosen)
    fixed = train(less, output=tmp_path / "fixed", stage="init").run
    classifiers = [modules(r, "initialization")["classifier"] for r in (run, fixed)]
    assert all(torch.equal(v, classifiers[1][k]) for k, v in classifiers[0].items())
    predicted = [json.loads((r / "summary.json").read_text())["results"]["pseudo_label"] for r in (run, fixed)]
    assert predicted[0] == predicted[1]


def test_of_each_class_an_image_is_learnt() -> None:
    assert spared(list(range(1000))) == []  # a class each
    assert spared([0] * 511) == []  # too few
    labels = [0] * 400 + [1] * 400 + [2]
    found = spared(labels)
    assert found == [n for n in looked_at(801) if n != 800][:100]
    assert len(spared([0] * 10000)) == sum(ROUNDS)
    scarce = [0] * 450 + [n for n in range(1, 51) for _ in range(2)]
    learnt = Counter(scarce) - Counter(scarce[n] for n in spared(scarce))
    assert min(learnt.values()) == 1
    assert learnt.keys() == set(scarce)


def test_no_ground_truth_box_is_read_by_a_choice(root: Path, tmp_path: Path) -> None:
    """Other boxes of the training images, the same choice."""
    other = write_images(tmp_path / "images")
    lines = (other / "boxes.csv").read_text().splitlines()
    moved = [f"{line.partition(',')[0]},0,0,3,3" if line.startswith("train/") else line for line in lines]
    assert moved != lines
    (other / "boxes.csv").write_text("\n".join(moved) + "\n")
    found = []
    for n, images in enumerate((root, other)):
        config = config_of(images, {"initialization.epochs": 1, "initialization.delta": "auto"})
        found.append(read_summary(train(config, output=tmp_path / str(n), stage="init").run)["chosen"])  # pyright: ignore
    assert found[0] == found[1]


def test_a_run_goes_on_from_every_link_and_is_taken_by_another(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise: interrupted after each epoch of each link and resumed; stage 2 alone from another run's stage 1."""
    monkeypatch.setattr(choice, "KEPT", (4, 2))  # of 7 deltas
    short = {"initialization.epochs": 2, "initialization.auto_after": 1, "refinement.epochs": 1}
    config = config_of(root, short | {"initialization.delta": "auto"})
    straight = train(config, output=tmp_path / "straight")
    stops = len((straight.run / "metrics.jsonl").read_text().splitlines())
    assert stops == 2 + len(ROUNDS) + 2 + 2 + 1 + 1

    class Stopped(Exception):
        pass

    def stop(_: dict[str, Any]) -> None:
        raise Stopped

    for n in range(stops):
        with pytest.raises(Stopped):
            train(config, stop, output=tmp_path / "run", resume=n > 0)
    resumed = train(config, output=tmp_path / "run", resume=True)
    taken = train(config, output=tmp_path / "second", stage="refine", source=straight.run)
    for other in (resumed, taken):
        assert (other.run / "predictions.parquet").read_bytes() == (straight.run / "predictions.parquet").read_bytes()
        assert other.summary == straight.summary


def test_boxes_of_before_a_choice_are_those_of_its_teacher(root: Path, tmp_path: Path) -> None:
    """With auto_after 2 those of the first epoch's views are by the teacher of the second."""
    config = config_of(root, {"initialization.auto_after": 2, "initialization.delta": "auto"})
    chosen = train(config, output=tmp_path / "auto", stage="init")
    how = as_chosen(config, chosen.summary["chosen"]).initialization
    state, found = modules(chosen.run, "initialization"), modules(chosen.run, "boxes")["boxes"]["values"]
    assert not torch.equal(state["teachers"]["values"][0], state["teachers"]["values"][1])
    teacher = make_teacher(build_classifier(config, method_of(config), 3))
    kept = Snapshots(teacher, 3)
    kept.load_state_dict(state["teachers"])
    context = open_context(config, show_progress=False)
    for epoch, of in enumerate((2, 2, 3)):
        kept.load(teacher, of)
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, "initialization", epoch))
        for batch in general_batches(context, generator):
            assert batch.index is not None
            boxes = pseudo_boxes(teacher, batch.images, how).box  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(found[epoch, batch.index], boxes)


def test_a_run_says_whether_stage_2_helped(root: Path, tmp_path: Path) -> None:
    """Its score is that of `known_by` on training images; no box of theirs is read; a stage 2 that moves nothing gains
    nothing."""
    still = config_of(root, {"initialization.delta": 0.5, "refinement.lr": 1e-30, "refinement.freeze_bn": True})
    found = train(still, output=tmp_path / "still").summary["stage2"]
    assert found["images"] == 24
    assert found["gain"] == pytest.approx(0, abs=1e-4)
    assert found["lchp_i"] == pytest.approx(found["lchp_r"], abs=1e-4)
    text = summary_table(json.loads((tmp_path / "still" / "summary.json").read_text()))
    assert "stage 2 " in text
    assert "by a score that reads no box, on 24 training images" in text


@pytest.mark.parametrize(
    ("gain", "error", "word"),
    [
        (3.0, 1.0, "helped"),
        (-3.0, 1.0, "made the boxes worse"),
        (1.9, 1.0, "changed little"),
        (-0.01, 0.0, "changed little"),
    ],
)
def test_the_closing_words_weigh_the_difference_by_its_error(gain: float, error: float, word: str) -> None:
    summary: Any = report_records.summary({"pseudo_label": 1.0, "lchp_i": 2.0, "lchp_r": 3.0}, 0.9)
    summary["stage2"] = {"images": 384, "lchp_i": 1.0, "lchp_r": 1.0 + gain, "gain": gain, "error": error}
    said = summary_table(summary)
    assert f"stage 2 {word}, by a score" in said
    assert "(-0.0" not in said
