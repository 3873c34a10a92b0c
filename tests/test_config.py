"""Presets, overrides, records of configs, and what a bad value says."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lchp.config import (
    PRESETS,
    TrainConfig,
    field_types,
    from_dict,
    override,
    preset,
    to_dict,
    to_flat,
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


# a value that breaks each rule
BAD: dict[str, Any] = {
    "data.name": "cube",
    "data.root": 3,
    "data.resize": 7,
    "data.image_size": 5000,
    "data.batch_size": 0,
    "data.workers": -1,
    "data.validation": 0.6,
    "data.cache": None,
    "data.skip_bad": "yes",
    "model.attention_maps": 0,
    "model.bap_scale": 0.0,
    "model.head": "cam",
    "model.pretrained": 1,
    "initialization.epochs": 0,
    "initialization.delta": 1.0,
    "initialization.alpha": -1.0,
    "initialization.beta": 1.0,
    "initialization.lr": 0.0,
    "initialization.localizer_lr": -1e-3,
    "initialization.lr_decay": 0.0,
    "initialization.momentum": 1.0,
    "initialization.weight_decay": -1e-5,
    "initialization.localizer_start": -1,
    "initialization.schedule": "cosine",
    "refinement.epochs": 1.5,
    "refinement.tau": 1.01,
    "refinement.lr": float("nan"),
    "refinement.lr_decay": 1.1,
    "refinement.momentum": -0.1,
    "refinement.weight_decay": float("inf"),
    "refinement.loss_weight": 0.0,
    "refinement.augmentations": (),
    "refinement.scale": (1.2, 0.8),
    "refinement.translation": 0.5,
    "refinement.crop_margin": 1.5,
    "refinement.translation_probability": 2.0,
    "refinement.flip_probability": -0.5,
    "evaluation.batch_size": 0,
    "evaluation.confidence": -0.1,
    "seed": -1,
    "threads": -2,
    "device": "tpu",
    "precision": True,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_one_line_that_names_its_field(name) -> None:
    with pytest.raises(ConfigError) as error:
        override(TrainConfig(), {name: BAD[name]})
    message = str(error.value)
    assert message.startswith(f"{name} = {BAD[name]!r}: expected ")
    assert "\n" not in message


def test_every_rule_has_a_bad_value() -> None:
    from lchp.config import _RULES

    assert set(_RULES) <= set(BAD)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"data.image_size": 513}, "data.image_size"),
        ({"initialization.localizer_start": 40}, "initialization.localizer_start"),
        ({"model.head": "gap"}, "initialization.attention"),
        ({"refinement.augmentations": ("flip", "flip")}, "refinement.augmentations"),
        ({"refinement.scale": (float("nan"), 1.0)}, "refinement.scale"),
    ],
)
def test_contradictions(values, field) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} = "):
        override(TrainConfig(), values)


def test_records_of_another_version_are_refused() -> None:
    record = to_dict(TrainConfig())
    del record["refinement"]["tau"]
    with pytest.raises(ConfigError, match=r"lacks refinement\.tau; it was written by another version"):
        from_dict(record)
    record = to_dict(TrainConfig())
    record["refinement"]["gamma"] = 1.0
    with pytest.raises(ConfigError, match=r"^refinement\.gamma: no such field"):
        from_dict(record)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"did you mean parts\?"):
        preset("part")


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("cub").seed = 3  # type: ignore[misc]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["cub", "bap", "flip", "max", 10**400, -1, 0, 1, 0.5, (0.9, 1.1)]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))
NAMES = st.one_of(st.sampled_from(sorted(field_types())), st.text(max_size=12))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.dictionaries(NAMES, VALUES, max_size=3))
def test_any_override_gives_a_config_or_a_config_error(values) -> None:
    try:
        config = override(TrainConfig(), values)
    except ConfigError as error:
        assert str(error)  # noqa: PT017
    else:
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
