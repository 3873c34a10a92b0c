"""Any config trains, or is refused by one line that names the field and its value.

LCHP_FUZZ_EXAMPLES=500 pytest tests/config/test_config_fuzz.py tries so many configs in each test, drawn anew.
"""

import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from squares import small_values, write_images

from lchp.config import TrainConfig, field_types, from_dict, override, preset, to_dict, to_flat
from lchp.errors import ConfigError, LchpError
from lchp.training.definition import DivergedError
from lchp.training.run import train

MORE = os.environ.get("LCHP_FUZZ_EXAMPLES")


def fuzz(examples: int) -> settings:
    """So many examples, the same every time; those that LCHP_FUZZ_EXAMPLES asks for are others every time."""
    return settings(
        deadline=None,
        max_examples=int(MORE) if MORE else examples,
        derandomize=not MORE,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([10**400, -1, 0, 1, 2**31, 2**63, 1e39, 5e-324, -0.0, math.nan, math.inf, "0.5", "", "a\0"]),
)
ANYTHING = st.one_of(
    ODD, st.lists(ODD, max_size=4), st.tuples(ODD, ODD), st.dictionaries(st.text(max_size=3), ODD, max_size=2)
)
SPECIAL = (0.0, -0.0, 5e-324, 1e-30, 1e-3, 0.5, 1 - 2**-53, 1.0, 1.5, 1e6, 3e38, 1e39, -1.0, math.nan, math.inf)


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, in range and out of it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(of_type(args[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, args))
    if hint is float:
        return st.one_of(st.sampled_from(SPECIAL), st.floats(0, 1), st.floats(0, 12))
    if hint is int:
        return st.one_of(st.integers(-1, 4), st.integers(0, 80), st.sampled_from([2**31 - 1, 2**31, 65536]))
    if hint is bool:
        return st.booleans()
    return st.one_of(st.none(), st.sampled_from(["auto", "off", "tiny", "somewhere"]))


FIELDS = field_types()
A_FIELD = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: st.tuples(st.just(name), st.one_of(of_type(FIELDS[name]), ANYTHING))
)
VALUES = st.lists(st.one_of(A_FIELD, st.tuples(st.text(max_size=12), ANYTHING)), max_size=3).map(dict)


def one_line(error: Exception) -> str:
    said = str(error)
    assert len(said.splitlines()) == 1
    assert said.isprintable()
    return said


def refusal(error: Exception, names: Any) -> str:
    """The error's line, which must name one of these fields and, where it exists, its value."""
    said = one_line(error)
    named = [n for n in names if said.startswith((f"{n} = ", f"{n}: no such field", f"{n!r}: no such field"))]
    assert named, f"{said!r} names none of {list(names)}"
    assert re.search(r"( = .+: .*(expected|is there twice|has none|both sides need some))|: no such field", said)
    return said


@fuzz(400)
@given(VALUES)
def test_any_values_are_refused_by_name_or_make_a_config_that_round_trips(values) -> None:
    said = set()
    for way in (
        lambda: override(preset("parts"), values),
        lambda: from_dict({**to_flat(preset("parts")), **values}),
    ):
        try:
            config = way()
        except ConfigError as error:
            # a contradiction is said of the other field, which the values have left as it was
            said.add(refusal(error, [*values, *FIELDS]))
        else:
            assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config
            assert hash(config) == hash(override(preset("parts"), to_flat(config)))
            said.add("")
    assert len(said) == 1, f"override and from_dict disagree: {said}"


JSON = st.recursive(
    ODD,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
SECTIONS = st.sampled_from(["data", "model", "initialization", "refinement", "evaluation", "seed", "device", "more"])


@fuzz(300)
@given(st.one_of(JSON, st.dictionaries(SECTIONS, JSON, min_size=1, max_size=3)))
def test_any_json_in_place_of_sections_is_refused_by_one_line(values) -> None:
    whole = {**to_dict(TrainConfig()), **values} if isinstance(values, dict) else values
    try:
        config = from_dict(json.loads(json.dumps(whole)))
    except ConfigError as error:
        one_line(error)
    else:
        assert config == override(TrainConfig(), {k: v for k, v in values.items() if k in FIELDS})


# --- training

BACKBONES = ("tiny", "tiny_coarse", "tiny_deep", "tiny_wide")
DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "data.resize": st.sampled_from([8, 10, 16, 36, 64]),
    "data.image_size": st.sampled_from([8, 9, 12, 32, 36]),
    "data.batch_size": st.sampled_from([1, 2, 3, 4, 8, 65536]),
    "data.cache": st.just("off"),
    "data.validation": st.sampled_from([0.0, 5e-324, 0.2, 0.5]),
    "model.classifier": st.sampled_from(BACKBONES),
    "model.localizer": st.sampled_from(BACKBONES),
    "model.attention_maps": st.sampled_from([1, 2, 8]),
    "initialization.epochs": st.just(1),
    "refinement.epochs": st.just(1),
    "evaluation.batch_size": st.sampled_from([1, 3, 65536]),
    "initialization.localizer_start": st.just(0),
    "seed": st.sampled_from([0, 1, 2**31 - 1]),
}
"""In place of `of_type`, where most of its values are refused or take long."""
LEFT = {"data.name", "data.root", "data.workers", "data.skip_bad", "model.pretrained", "model.weights_dir", "device"}
LEFT |= {"threads", "compile", "tensorboard"} | {name for name in FIELDS if name.startswith("method.")}
"""Of data, weights, devices, threads and compared methods, which the tests above draw; worker processes and
torch.compile take long."""
TRAINED = st.lists(
    st.sampled_from(sorted(FIELDS.keys() - LEFT)).flatmap(
        lambda name: st.tuples(st.just(name), DRAWN.get(name, of_type(FIELDS[name])))
    ),
    min_size=1,
    max_size=8,
).map(dict)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), classes=2, train=4, test=2)


@fuzz(25)
@given(values=TRAINED)
def test_any_config_trains_both_stages_or_is_refused_by_name(root: Path, values) -> None:
    base = preset("cub")
    threads = torch.get_num_threads()
    small = small_values(root) | {"initialization.epochs": 1, "refinement.epochs": 1, "threads": 1}
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = override(base, small | values)
            result = train(config, output=Path(folder) / "run")
            assert result.predictions().num_rows == 8  # 4 test images in two frames
    except DivergedError as error:
        assert "training diverged, lower the learning rate" in one_line(error)  # noqa: PT017
        event("diverged")
    except LchpError as error:
        refusal(error, FIELDS)
        event("refused")
    else:
        event("trained")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"data.resize": 8, "data.image_size": 8, "data.batch_size": 1, "model.localizer": "tiny_coarse"},
            "data.batch_size = 1: expected at least 2 images in a batch",
        ),
        ({"refinement.lr": 1e30}, "lchp_r is not finite; training diverged, lower the learning rate"),
        ({"data.validation": 5e-324}, "data.validation = 4.94066e-324: holds out 0 of 8 training images"),
    ],
)
def test_what_was_no_line_once(root: Path, tmp_path: Path, values, said) -> None:
    """One value per channel for BatchNorm; weights so large, though finite, that the boxes are not; an empty share."""
    small = small_values(root) | {"initialization.epochs": 1, "refinement.epochs": 1}
    with pytest.raises(LchpError) as error:
        train(override(preset("cub"), small | values), output=tmp_path / "run")
    assert said in one_line(error.value)
