"""Presets, overrides, records of configs, and what a bad value says."""

import ast
import copy
import dataclasses
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch

from lchp.cli import main
from lchp.config import (
    FIELDS,
    GONE,
    MEANING_BEFORE,
    OPEN_CHOICES,
    PLACES,
    PRESETS,
    InitializationConfig,
    RefinementConfig,
    TrainConfig,
    counted,
    field_types,
    fields_of,
    from_dict,
    override,
    preset,
    to_dict,
    to_flat,
    unique_keys,
)
from lchp.config import PATHS as PATH_FIELDS
from lchp.config.about import Part
from lchp.config.fields import SECTIONS
from lchp.errors import ConfigError
from lchp.report.select import WITHOUT_EFFECT


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


PLAIN: list[tuple[str, Any, Any]] = [
    ("initialization.delta", np.float64(0.3), 0.3),
    ("initialization.delta", np.float32(0.3), 0.3),
    ("initialization.delta", np.float16(0.5), 0.5),
    ("initialization.delta", np.longdouble(0.5), 0.5),
    ("initialization.delta", np.array(0.3), 0.3),
    ("initialization.delta", torch.tensor(0.5), 0.5),
    ("initialization.alpha", np.int64(5), 5.0),
    ("initialization.epochs", np.int64(3), 3),
    ("initialization.epochs", np.uint8(3), 3),
    ("initialization.epochs", np.array(3), 3),
    ("seed", np.int32(7), 7),
    ("threads", torch.tensor(2), 2),
    ("refinement.freeze_bn", np.bool_(True), True),
    ("refinement.freeze_bn", np.array(True), True),
    ("refinement.labeller", np.str_("frozen"), "frozen"),
    ("model.classifier", np.str_("resnet50"), "resnet50"),
    ("refinement.scale", np.array([0.5, 2]), (0.5, 2.0)),
    ("refinement.scale", np.array([0.7, 2], np.float32), (0.7, 2.0)),
    ("refinement.scale", [np.float64(0.5), np.int64(2)], (0.5, 2.0)),
    ("refinement.augmentations", np.array(["flip", "scale"]), ("flip", "scale")),
    ("data.root", Path("/data"), "/data"),
    ("data.cache", Path("somewhere"), "somewhere"),
    ("model.weights_dir", Path("w"), "w"),
]


@pytest.mark.parametrize(("name", "value", "plain"), PLAIN, ids=lambda v: str(v))
def test_numpys_values_and_paths_are_taken_and_recorded_as_plain_ones(name, value, plain) -> None:
    configs = [
        override(TrainConfig(), {name: value}),
        from_dict(to_flat(TrainConfig()) | {name: value}),
        constructed(name, value),
    ]
    for config in configs:
        found = to_flat(config)[name]
        assert (found, type(found)) == (plain, type(plain))
        if isinstance(found, tuple):
            assert list(map(type, found)) == list(map(type, plain))
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
        assert hash(config) == hash(override(TrainConfig(), {name: plain}))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("initialization.delta", np.float64("nan"), "initialization.delta = nan: expected a finite number"),
        ("initialization.lr", np.float32("inf"), "initialization.lr = inf: expected a finite number"),
        ("initialization.lr", np.longdouble("1e400"), "initialization.lr = inf: expected a finite number"),
        ("initialization.delta", np.float64(1.5), "initialization.delta = 1.5: expected in (0, 1)"),
        ("initialization.delta", np.array([0.5]), "initialization.delta = (0.5,): expected a number, in (0, 1)"),
        ("initialization.delta", np.str_("0.5"), "initialization.delta = '0.5': expected a number, in (0, 1)"),
        ("initialization.delta", np.bool_(True), "initialization.delta = True: expected a number, in (0, 1)"),
        ("initialization.epochs", np.float64(3), "initialization.epochs = 3.0: expected a whole number, in 0..1000000"),
        ("seed", np.int64(-1), "seed = -1: expected in 0..2^31-1"),
        ("seed", np.bool_(True), "seed = True: expected a whole number, in 0..2^31-1"),
        ("refinement.freeze_bn", np.int64(1), "refinement.freeze_bn = 1: expected True or False"),
        ("refinement.scale", np.eye(2), "refinement.scale = ((1.0, 0.0), (0.0, 1.0)): expected 2 values, two factors"),
        ("data.name", Path("cub"), "data.name = PosixPath('cub'): expected one of parts, cub"),
        ("data.root", Path("a\0b"), "data.root = 'a\\x00b': expected not empty, of characters that a path may have"),
        ("threads", np.int64, "threads = <class 'numpy.int64'>: expected a whole number"),
    ],
)
def test_numpys_values_and_paths_that_do_not_fit(name, value, said) -> None:
    with pytest.raises(ConfigError) as error:
        override(TrainConfig(), {name: value})
    assert str(error.value).startswith(said)


def test_a_list_that_holds_itself_is_one_line() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for name in ("refinement.scale", "refinement.augmentations", "seed", "data.name"):
        with pytest.raises(ConfigError, match=rf"^{name} = \[\[...\]\]: expected "):
            override(TrainConfig(), {name: endless})


def test_a_section_is_overridden_by_its_fields_or_refused_like_a_record() -> None:
    assert override(TrainConfig(), {"refinement": {"tau": 0.5}}) == override(TrainConfig(), {"refinement.tau": 0.5})
    with pytest.raises(ConfigError, match=r"^model = None: expected an object with the fields of that section$"):
        override(TrainConfig(), {"model": None})


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
    "model.classifier_weights": PATHS,
    "model.classifier_classes": PATHS,
    "method.boxes": PATHS,
    "initialization.epochs": (0,),
    "initialization.delta": (0.0, 1.0, 1.5),
    "initialization.mask_delta": ("0.5", True, [0.5], 0.0, 1.0, INF),
    "initialization.mask_attention": ("auto", "maps", 3, True),
    "initialization.mask_normalization": ("auto", "range", 3, True),
    "initialization.auto_after": (41,),
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
    hint = float if name == "initialization.delta" else hint  # or `auto`
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
    return (name in PATH_FIELDS and value in ("", "Off")) or (
        name == "refinement.scale" and isinstance(value, tuple) and len(value) == 2
    )


def test_the_command_line_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """By a bad value of the field's own kind, for every fourth field that has one; all go through the same checks."""
    found = [(n, [v for v in values if of_its_kind(n, v)]) for n, values in OUT_OF_RANGE.items()]
    tried = [(name, values[-1]) for name, values in found if values][::4]
    for name, value in tried:
        assert main(["train", "--preset", "cub", *as_flags(name, value)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        said = f"{name} = {value!r}: expected " if value != "" else f"--{name.replace('_', '-')}: is empty"
        assert line.startswith(f"lchp: error: {said}")
    assert len(tried) >= 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "1.5"], ["seed = '1.5': expected a whole number, in 0..2^31-1"]),
        (["--seed=7", "--seed=x"], ["seed = 'x': expected a whole number"]),
        (["--seed"], ["--seed: lacks a value; expected a whole number, in 0..2^31-1"]),
        (["--seed", "1", "2"], ["2: not expected after --seed 1;"]),
        (["--seed=1", "2"], ["2: not expected after --seed=1;"]),
        (["resume"], ["resume: not expected (did you mean --resume?)"]),
        (
            ["--track", "tensorboard", "wandb", "--seed", "1"],
            ["wandb: not expected after --track tensorboard", "again: --track tensorboard --track wandb"],
        ),
        (["--track", "mlflow,wandb"], ["--track = 'mlflow,wandb': expected", "for several, give --track again"]),
        (["--initialization.delta", "high"], ["initialization.delta = 'high': expected a number, in (0, 1)"]),
        (["--refinement.scale", "1.2"], ["refinement.scale", "expected 2 values, two factors"]),
        (
            ["--refinement.augmentations", "blur"],
            ["refinement.augmentations = 'blur': expected a list of one of scale"],
        ),
        (["--data.name", "birds"], ["data.name = 'birds': expected one of parts, cub"]),
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


def test_an_older_record_may_hold_fields_that_are_gone() -> None:
    record = to_dict(preset("cub"))
    for name, value in GONE.items():
        section, _, leaf = name.rpartition(".")
        assert leaf not in record[section]
        record[section][leaf] = value
    assert from_dict(record) == preset("cub")
    record["refinement"]["scorer"] = "teacher"
    with pytest.raises(ConfigError, match=r"^refinement\.scorer: no such field"):
        from_dict(record)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"did you mean parts\?"):
        preset("part")


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("cub").seed = 3  # type: ignore[misc]


# --- what the fields say about themselves


def test_every_field_says_all_about_itself() -> None:
    for prefix, section in {"": TrainConfig, **{f"{n}.": kind for n, kind in SECTIONS.items()}}.items():
        (body,) = (node.body for node in ast.parse(inspect.getsource(section)).body if isinstance(node, ast.ClassDef))
        for node, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in SECTIONS:
                explained = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value
                assert explained, f"{prefix}{node.target.id} has no docstring"
                assert isinstance(FIELDS[prefix + node.target.id].changes, tuple)
    default = to_flat(TrainConfig())
    for name, field in FIELDS.items():
        assert field.read(default[name]) == default[name]
        assert field.since is None or field.read(field.since.meant) == field.since.meant
        assert field.since is None or field.since.recipe in (2, 3, 4)
        assert set(field.changes) <= set(get_args(Part))
        for value in () if field.open is None else OPEN_CHOICES[name]:
            assert field.read(value) == value
    assert {part for field in FIELDS.values() for part in field.changes} == set(get_args(Part))


def test_what_older_records_mean() -> None:
    meant = {
        "initialization.auto_after": 0,
        "initialization.mask_delta": None,
        "initialization.mask_attention": None,
        "initialization.mask_normalization": None,
        "refinement.vanished": "dropped",
        "refinement.crop_margin": 0.0,
        "refinement.temperature": 0.4,
        "refinement.views": 0,
        "refinement.bn_statistics": "strong",
        "evaluation.oracle": False,
        "compile": False,
        "deterministic": False,
        "auto_batch": False,
        "model.classifier_weights": None,
        "model.classifier_classes": None,
        "method.name": "lchp",
        "method.boxes": None,
        "method.threshold": 0.2,
        "method.component": "largest",
        "method.localizer": False,
        "method.refine": False,
        "method.lr_classifier_ratio": 10.0,
    }
    assert meant == MEANING_BEFORE


def test_places_change_nothing() -> None:
    data = {"data.root", "data.workers", "data.cache", "data.skip_bad", "model.weights_dir"}
    data |= {"model.classifier_classes"}
    assert data | {"threads", "compile", "deterministic", "tensorboard"} == PLACES
    others = {"device", "evaluation.batch_size", "method.name", "method.localizer", "method.refine"}
    others |= {"method.boxes", "model.classifier_weights"}
    assert {name for name, field in FIELDS.items() if not field.changes} == PLACES | others
    measures = {name for name, field in FIELDS.items() if field.changes == ("measures",)}
    assert PLACES | measures | {"device", "evaluation.batch_size"} == WITHOUT_EFFECT


def test_fields_of_a_part() -> None:
    assert fields_of("trunk") == ("model.classifier", "model.pretrained")
    assert fields_of("map", "ratio") == ("method.threshold", "method.component", "method.lr_classifier_ratio")
    assert fields_of("predictions") == ("initialization.mask", "refinement.crop_margin")
    assert fields_of("labels") == ("refinement.epochs", "refinement.crop_margin", "refinement.augmenter")
    assert {n for n in FIELDS if n.startswith("refinement.")} | {"initialization.beta"} == set(fields_of("refinement"))
    stage1 = fields_of("teacher", "masks", "teacher_boxes", "classifier", "localizer", "l_reg")
    assert {n for n in FIELDS if n.startswith("initialization.")} == {n for n in stage1 if not n.startswith("model.")}
    assert fields_of() == ()


def test_things_are_counted_in_words() -> None:
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [counted(n, "class") for n in (1, 3)] == ["1 class", "3 classes"]
