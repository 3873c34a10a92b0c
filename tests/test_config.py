"""Presets, overrides, records of configs, and what a bad value says."""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest

from lchp.cli import main
from lchp.config import (
    MEANING_BEFORE,
    PRESETS,
    InitializationConfig,
    RefinementConfig,
    TrainConfig,
    field_types,
    from_dict,
    override,
    preset,
    to_dict,
    to_flat,
    unique_keys,
)
from lchp.errors import ConfigError


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_round_trip_through_json(name) -> None:
    config = preset(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert override(TrainConfig(), to_flat(config)) == config
    recipe = PRESETS[name]
    assert recipe.about
    for delta in recipe.deltas:
        override(config, {"initialization.delta": delta})
    for tau in recipe.taus:
        override(config, {"refinement.tau": tau})


def test_the_papers_recipes() -> None:
    for name, epochs, delta, rate in (
        ("cub", (40, 40), 0.7, 2e-3),
        ("tiny_imagenet", (40, 40), 0.8, 2e-3),
        ("imagenet", (10, 5), 0.7, 2e-4),
    ):
        c = preset(name)
        assert (c.initialization.epochs, c.refinement.epochs) == epochs
        assert (c.initialization.delta, c.initialization.lr, c.initialization.localizer_lr) == (delta, 2e-3, 2e-3)
        assert (c.initialization.schedule, c.initialization.lr_decay) == ("exponential", 0.9)
        assert (c.initialization.localizer_schedule, c.refinement.schedule) == ("constant", "constant")
        assert (c.initialization.alpha, c.initialization.beta) == (20.0, 0.9)
        assert (c.refinement.lr, c.refinement.tau) == (rate, 0.9)
        assert (c.data.resize, c.data.image_size, c.data.batch_size) == (512, 448, 32)
        for stage in (c.initialization, c.refinement):
            assert (stage.momentum, stage.weight_decay) == (0.9, 1e-5)
        assert (c.model.classifier, c.model.localizer, c.model.attention_maps) == ("inception_v3", "inception_v3", 32)
        assert c.refinement.augmentations == ("scale", "translation", "flip")
        assert (c.refinement.scale, c.refinement.translation) == ((0.8, 1.2), 0.25)
        assert c.refinement.translation_probability == c.refinement.flip_probability == 0.5


def test_defaults_of_the_open_choices() -> None:
    """The first of each list in the paper's open questions."""
    c = TrainConfig()
    stage1, stage2 = c.initialization, c.refinement
    assert (stage1.attention, stage1.normalization, stage1.second_pass) == ("attention_maps", "max", "own")
    assert (stage1.resolution, stage1.mask, stage1.boxes, stage1.teacher_buffers) == (
        "input",
        "mean",
        "merged",
        "copied",
    )
    assert (stage2.targets, stage2.labeller, stage2.loss_weight) == ("clipped", "online", 1.0)
    assert c.model.box_encoding == "linear"


def test_override_converts_what_a_record_or_a_sweep_holds() -> None:
    config = override(
        TrainConfig(), {"refinement.scale": [1, 1.1], "initialization.alpha": 5, "refinement.augmentations": ["flip"]}
    )
    assert config.refinement.scale == (1.0, 1.1)
    assert type(config.initialization.alpha) is float
    assert config.refinement.augmentations == ("flip",)


def test_fields_that_depend_on_each_other_are_overridden_together() -> None:
    config = override(TrainConfig(), {"data.image_size": 600, "data.resize": 700})
    assert (config.data.image_size, config.data.resize) == (600, 700)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("initialization.detla", "initialization.delta"),
        ("refinment.tau", "refinement.tau"),
        ("sede", "seed"),
        ("data.batchsize", "data.batch_size"),
    ],
)
def test_unknown_fields_are_suggested(name, meant) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: no such field \(did you mean {meant}\?\)$"):
        override(TrainConfig(), {name: 1})


NAN, INF = float("nan"), float("inf")
WHOLE = (None, "1", 1.0, 1.5, True, [1], {}, -1, 10**30, 10**5000)
REAL = (None, "0.5", True, [0.5], NAN, INF, -INF, 1e39, 10**400, -1)
FLAGS = (None, 0, 1, "yes", "True", [True])
TEXTS = (None, 3, ["cub"], True, {})
CHOICES = (*TEXTS, "", "cube")
PATHS = (3, "", " ", "a\0b", "\ud800", True, ["a"], {"a": 1})

# values out of a field's range, beside those that are not of its kind
OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "data.name": ("CUB",),
    "data.root": PATHS,
    "data.resize": (0, 7, 4097),
    "data.image_size": (0, 7, 5000),
    "data.batch_size": (0, 2**31),
    "data.workers": (1025,),
    "data.cache": (*PATHS, None, "Off", "AUTO"),
    "data.validation": (0.6, -0.1),
    "model.head": ("cam",),
    "model.attention_maps": (0, 5000),
    "model.bap_scale": (0.0, 1e7),
    "model.weights_dir": PATHS,
    "initialization.epochs": (0,),
    "initialization.delta": (0.0, 1.0, 1.5),
    "initialization.alpha": (-1e-9, 1e7),
    "initialization.beta": (1.0, -0.1),
    "initialization.lr": (0.0, -1e-3),
    "initialization.localizer_lr": (0.0, -1e-3),
    "initialization.schedule": ("cosine",),
    "initialization.lr_decay": (0.0, 1.1),
    "initialization.momentum": (1.0,),
    "initialization.weight_decay": (-1e-5, 1.1),
    "initialization.localizer_start": (40, 41),
    "method.name": ("", "../x", "a b"),
    "method.threshold": (1.0, -0.1),
    "refinement.epochs": (0,),
    "refinement.tau": (1.01,),
    "refinement.lr": (0.0,),
    "refinement.lr_decay": (0.0, 1.1),
    "refinement.momentum": (1.0, -0.1),
    "refinement.weight_decay": (1.1,),
    "refinement.loss_weight": (0.0, 1e7),
    "refinement.augmentations": (None, "flip", (), ("flip", "flip"), ("blur",), (None,), (("flip",),), 3, {"flip": 1}),
    "refinement.scale": (None, 1.0, (), (1.0,), (1.2, 0.8), (0.0, 1.0), (-1.0, 1.0), (NAN, 1.0), (1.0, INF), (1, 2, 3)),
    "refinement.translation": (0.5, -0.1),
    "refinement.translation_probability": (2.0,),
    "refinement.flip_probability": (-0.5,),
    "refinement.crop_margin": (1.5,),
    "evaluation.batch_size": (0,),
    "evaluation.confidence": (-0.1, 1.1),
    "seed": (2**31, 2**63),
    "device": ("tpu", "cuda:0"),
    "precision": ("fp16",),
    "threads": (1025,),
}


def bad_values(name: str) -> tuple[Any, ...]:
    hint = field_types()[name]
    of_another_kind = {int: WHOLE, float: REAL, bool: FLAGS, str: TEXTS if name != "data.cache" else ()}
    return (*(CHOICES if get_origin(hint) is Literal else of_another_kind.get(hint, ())), *OUT_OF_RANGE.get(name, ()))


ONE_LINE = r"^%s = .{1,100}: expected [^\n]+$"


def constructed(name: str, value: Any) -> TrainConfig:
    """The default config with one other value, by the dataclasses themselves."""
    section, _, leaf = name.rpartition(".")
    fields = {section: replace(getattr(TrainConfig(), section), **{leaf: value})} if section else {leaf: value}
    return TrainConfig(**fields)


@pytest.mark.parametrize("name", sorted(field_types()))
def test_a_bad_value_is_one_line_that_names_its_field_however_it_came(name) -> None:
    assert bad_values(name)
    for value in bad_values(name):
        ways: list[Callable[[], TrainConfig]] = [
            lambda value=value: override(TrainConfig(), {name: value}),
            lambda value=value: from_dict(to_flat(TrainConfig()) | {name: value}),
            lambda value=value: from_dict(dataclasses.asdict(object_with(name, value))),
            lambda value=value: constructed(name, value),
        ]
        said = set()
        for way in ways:
            with pytest.raises(ConfigError, match=ONE_LINE % name.replace(".", r"\.")) as error:
                way()
            said.add(str(error.value))
        assert len(said) == 1


def object_with(name: str, value: Any) -> Any:
    """What `dataclasses.asdict` takes for a config, but unchecked."""
    config = copy.copy(TrainConfig())
    section, _, leaf = name.rpartition(".")
    if section:
        object.__setattr__(config, section, replace(getattr(config, section), **{leaf: value}))
    else:
        object.__setattr__(config, leaf, value)
    return config


def test_the_message_shows_the_value() -> None:
    for name, value, said in (
        ("initialization.delta", 1.5, "initialization.delta = 1.5: expected in (0, 1)"),
        ("initialization.delta", "0.5", "initialization.delta = '0.5': expected a number, in (0, 1)"),
        ("seed", 1.5, "seed = 1.5: expected a whole number, in 0..2^31-1"),
        ("seed", True, "seed = True: expected a whole number, in 0..2^31-1"),
        ("seed", 10**5000, "seed = a whole number of 16610 bits: expected in 0..2^31-1"),
        ("data.root", 40 * "x\n" + "\0", "data.root = '" + 32 * r"x\n" + "...: expected not empty, of characters that"),
        ("model.head", "cam", "model.head = 'cam': expected one of bap, gap"),
        ("refinement.lr", 1e39, "refinement.lr = 1e+39: expected a finite number"),
    ):
        with pytest.raises(ConfigError) as error:
            override(TrainConfig(), {name: value})
        assert str(error.value).startswith(said)


def as_flags(name: str, value: Any) -> list[str]:
    """An option for a value of the field's own kind."""
    flag = f"--{name.replace('_', '-')}"
    return [flag, *map(str, value)] if isinstance(value, tuple) else [f"{flag}={value}"]


def of_its_kind(name: str, value: Any) -> bool:
    """Whether the command line reads this text as a value of the field's type."""
    hint = field_types()[name]
    if hint is float:
        return type(value) is float
    if hint is int:
        return type(value) is int and abs(value) < 10**400
    return (name in ("data.root", "data.cache", "model.weights_dir") and value in ("", "Off")) or (
        name == "refinement.scale" and isinstance(value, tuple) and len(value) == 2
    )


def test_the_command_line_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """By a bad value of the field's own kind, for every fourth field that has one; all go through the same checks."""
    found = [(n, [v for v in values if of_its_kind(n, v)]) for n, values in OUT_OF_RANGE.items()]
    tried = [(name, values[-1]) for name, values in found if values][::4]
    for name, value in tried:
        assert main(["train", "--preset", "cub", *as_flags(name, value)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lchp: error: {name} = {value!r}: expected ")
    assert len(tried) >= 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "1.5"], ["--seed", "'1.5'", "seed takes a whole number, in 0..2^31-1"]),
        (["--seed"], ["Missing value", "--seed", "seed takes a whole number"]),
        (["--initialization.delta", "high"], ["'high'", "initialization.delta takes a number, in (0, 1)"]),
        (["--refinement.scale", "1.2"], ["--refinement.scale", "refinement.scale takes 2 values, two factors"]),
        (["--refinement.augmentations", "blur"], ["'blur'", "refinement.augmentations takes a list of one of scale"]),
        (["--data.name", "birds"], ["'birds'", "data.name takes one of parts, cub"]),
        (["--model.pretrained", "yes"], ["yes: not expected after --model.pretrained"]),
        (["--preset", "cub", "--data.name", "parts"], ["data.resize = 512: expected 72", "--preset parts"]),
        (["--data.name", "folder", "--data.root", "x", "--data.resize", "73"], ["data.image_size = 64", "even"]),
        (["--data.root", "x"], ["data.root = 'x': expected None, since parts is generated"]),
        (["--data.resize", "80"], ["data.resize = 80: expected 72"]),
        (["--model.weights-dir", "w"], ["model.weights_dir = 'w': expected None, since model.pretrained = False"]),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, said, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in said:
        assert part in line


def test_a_root_that_is_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for root, found in (
        (tmp_path / "file", "not a folder"),
        (tmp_path / "none", "no such folder"),
        ("~no-such-user/x", "no such folder"),
        ("x" * 5000, "no such folder"),
    ):
        assert main(["train", "--preset", "folder", "--data.root", str(root), "--output", str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lchp: error: data.root = ")
        assert found in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", "parts", "/tmp"],
        ["data", "check", "folder", "/tmp", "--workers", "-1"],
        ["predict", "/tmp", "--run", "RUN", "--workers", "-1"],
        ["predict", "/tmp", "--run", "RUN", "--batch-size", "0"],
        ["predict", "/tmp", "--run", "RUN", "--min-confidence", "nan"],
    ],
)
def test_options_of_other_commands_are_checked_as_well(
    arguments, squares_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(squares_run) if a == "RUN" else a for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lchp: error: ")
    assert " = " in line
    assert ": expected " in line


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"data.image_size": 513}, "data.image_size"),
        ({"data.resize": 449}, "data.image_size"),
        ({"initialization.localizer_start": 40}, "initialization.localizer_start"),
        ({"model.head": "gap"}, "initialization.attention"),
        ({"data.name": "parts"}, "data.resize"),
        ({"data.name": "parts", "data.resize": 72, "data.image_size": 64, "data.root": "/data"}, "data.root"),
        ({"model.weights_dir": "w", "model.pretrained": False}, "model.weights_dir"),
    ],
)
def test_contradictions(values, field) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} = "):
        override(TrainConfig(), values)


@pytest.mark.parametrize("section", ["data", "model", "initialization", "refinement", "evaluation"])
def test_sections_of_another_kind(section) -> None:
    values: tuple[Any, ...] = (None, 3, {}, [], "parts")
    for value in values:
        wrong: dict[str, Any] = {section: value}
        with pytest.raises(ConfigError, match=rf"^{section} = .*: expected a "):
            TrainConfig(**wrong)
        if value != {}:
            with pytest.raises(ConfigError, match=rf"^{section} = .*: expected an object with the fields"):
                from_dict(to_dict(TrainConfig()) | wrong)


def test_the_constructor_takes_what_a_record_holds() -> None:
    ours = TrainConfig(initialization=InitializationConfig(alpha=5), refinement=RefinementConfig(scale=[1, 2]))  # type: ignore[arg-type]
    assert ours == override(TrainConfig(), {"initialization.alpha": 5.0, "refinement.scale": (1.0, 2.0)})
    assert type(ours.initialization.alpha) is float
    assert hash(ours)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"cub"', "[[1, 2]]"])
def test_a_record_that_is_no_object(text) -> None:
    with pytest.raises(ConfigError, match="a config is an object of sections and fields, found "):
        from_dict(json.loads(text))


def test_a_field_that_is_there_twice() -> None:
    record = to_dict(TrainConfig()) | {"initialization.delta": 0.5}
    with pytest.raises(ConfigError, match=r"^initialization.delta = 0.5: is there twice$"):
        from_dict(record)
    with pytest.raises(ValueError, match="key 'seed' is there twice"):
        json.loads('{"seed": 1, "seed": 2}', object_pairs_hook=unique_keys)
    text = json.dumps(to_dict(TrainConfig()))
    assert from_dict(json.loads(text, object_pairs_hook=unique_keys)) == TrainConfig()


def test_records_of_another_version_are_refused() -> None:
    record = to_dict(TrainConfig())
    del record["refinement"]["tau"]
    with pytest.raises(ConfigError, match=r"lacks refinement\.tau; it was written by another version"):
        from_dict(record)
    with pytest.raises(ConfigError, match=r"lacks .* and \d+ more; it was written by another version"):
        from_dict({})
    record = to_dict(TrainConfig())
    record["refinement"]["gamma"] = 1.0
    with pytest.raises(ConfigError, match=r"^refinement\.gamma: no such field"):
        from_dict(record)


def test_an_older_record_means_what_it_was_made_with() -> None:
    record, full = to_flat(preset("cub")), to_flat(preset("cub"))
    for name, meant in MEANING_BEFORE.items():
        del record[name]
        full[name] = meant
    assert from_dict(record) == override(preset("cub"), full)
    assert from_dict(record).refinement.bn_statistics == "strong"
    assert from_dict(record | {"refinement.bn_statistics": "general"}).refinement.bn_statistics == "general"


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"did you mean parts\?"):
        preset("part")


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("cub").seed = 3  # type: ignore[misc]
