"""A run as a chain of links: classifier -> choice -> boxes -> localizer -> labels -> refinement.

Each link trains or computes one thing and is named by the hash of all that it depends on. Trainings, the harness, the
checks of a resumed run, estimates and reports read the chain; nothing else decides what is trained, shared or resumed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lchp.backbones import weights_identity
from lchp.baselines import METHODS, Method, method
from lchp.config import AUTO, FIELDS, FILES, GONE, MEASURED, TrainConfig, fields_of, override, quoted, to_flat
from lchp.errors import ConfigError
from lchp.files import runs
from lchp.files.contents import content_hash
from lchp.files.runs import KINDS, STAGES, Kind
from lchp.method.choice import ROUNDS, SPARED
from lchp.method.networks import Classifier
from lchp.method.steps import views_of
from lchp.system.devices import resolve_device, resolve_precision

RECIPE_VERSION = 4
"""Raise it when the maths changes, so that a result trained by the old one is not taken for the new."""

PARTS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "classifier": ("views", "trunk", "classifier"),
        "choice": ("teacher_boxes",),
        "boxes": (),
        "localizer": ("localizer",),
        "labels": ("labels",),
        "refinement": ("refinement",),
    }
)
"""The parts of the method whose fields a link depends on by itself (see `lchp.config.fields_of`)."""


@dataclass(frozen=True)
class Link:
    """One link of a chain.

    kind: what it trains or computes; epochs: how many, from epoch `first` on; needs: the kinds of the links that it
    reads, all of them before it; fields: the config's fields that it depends on beside those of its needs, by dotted
    name; key: hash of all that it depends on; passes: forward passes of one network per image and epoch (a backward
    pass counts as two); result: what it predicts, by its name in records.
    """

    kind: Kind
    epochs: int
    needs: tuple[Kind, ...]
    fields: Mapping[str, Any]
    key: str
    passes: int
    first: int = 0
    result: str | None = None

    @property
    def stage(self) -> str:
        """Its name in metrics.jsonl and of its checkpoint."""
        return STAGES[self.kind]

    @property
    def cost(self) -> int:
        """Forward passes per image, over all its epochs."""
        return self.passes * (self.epochs - self.first)


@dataclass(frozen=True)
class Chain:
    """The links of a config on a data set (`data`: its fingerprint), in order. `method`: whose they are; `record`: hash
    of the last link and of what is recorded of its result."""

    config: TrainConfig
    method: Method
    data: str
    links: tuple[Link, ...]
    record: str

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    def __contains__(self, kind: object) -> bool:
        return any(link.kind == kind for link in self.links)

    def __getitem__(self, kind: str) -> Link:
        return next(link for link in self.links if link.kind == kind)

    @property
    def last(self) -> Link:
        """The link whose result is the run's."""
        return self.links[-1]

    def until(self, kind: Kind) -> "Chain":
        """The chain that ends with a link; what it does not depend on is as in every other config."""
        return chain_of(config_until(self, kind), self.data, last=kind)

    def recorded_as(self, config: TrainConfig) -> "Chain":
        """This chain, with that recorded of its result which is recorded with another config."""
        flat = to_flat(config)
        return chain_of(
            override(self.config, {name: flat[name] for name in fields_of(*_recorded(self.last.kind))}),
            self.data,
            last=self.last.kind,
        )


def method_of(config: TrainConfig) -> Method:
    """The method of a config. Raises ConfigError for an unknown one, and for fields that contradict it."""
    found, asked = method(config.method.name), config.method
    if found.complete and (asked.localizer or asked.refine):
        name = "localizer" if asked.localizer else "refine"
        raise ConfigError(f"method.{name} = True: expected False, since method.name = {found.name!r} always has one")
    if found.from_file and asked.boxes is None:
        raise ConfigError(
            f"method.boxes = None: expected a file of pseudo boxes, which method.name = {asked.name!r} learns from"
        )
    if asked.boxes is not None and not found.from_file:
        raise ConfigError(
            f"method.boxes = {quoted(asked.boxes)}: expected None, since the method {asked.name!r} makes its boxes "
            "itself; --method.name boxes takes them from a file"
        )
    if config.model.classifier_weights is not None:
        _require_own_classifier(config, found)
    if config.initialization.epochs == 0 and (found.complete or asked.localizer):
        raise ConfigError("initialization.epochs = 0: expected at least 1, since the localizer trains for as many")
    if asked.refine and not asked.localizer:
        raise ConfigError("method.refine = True: expected False, or method.localizer True, whose boxes it refines")
    if config.auto_batch and not found.scheme.sliced:
        raise ConfigError(f"auto_batch = True: expected False, since the method {found.name!r} takes batches whole")
    if found.boxes == "teacher" and config.model.head == "gap" and config.initialization.attention == "attention_maps":
        raise ConfigError(
            "initialization.attention = 'attention_maps': a GAP head has none; use features, or model.head bap"
        )
    if found.boxes == "teacher":
        _require_masks(config)
    return found


def with_own_classifier() -> list[str]:
    """The methods whose classifier a file of weights can hold."""
    return [name for name, m in METHODS.items() if m.scheme.build is Classifier and m.head == "gap"]


def _require_own_classifier(config: TrainConfig, found: Method) -> None:
    """Raises ConfigError where the method's classifier is none that a file of weights can hold."""
    fit = with_own_classifier()
    if found.name not in fit:
        raise ConfigError(
            f"model.classifier_weights = {quoted(config.model.classifier_weights)}: expected None, since the method "
            f"{found.name!r} has a classifier of its own making; it goes with {', '.join(fit)}"
        )


def _require_masks(config: TrainConfig) -> None:
    """Raises ConfigError where what the boxes go by is `auto`, and nothing is said of the masks."""
    first = config.initialization
    for name in first.auto_fields:
        mask = AUTO[name]
        lacking = next((m for m in ("mask_delta", mask) if m is not None and getattr(first, m) is None), None)
        if lacking is not None:
            raise ConfigError(
                f"initialization.{lacking} = None: expected {FIELDS[f'initialization.{lacking}'].allowed}, since "
                f"initialization.{name} = 'auto' chooses for the boxes alone, and not for the masks"
            )
    if first.mask_delta is None:
        for name in filter(None, AUTO.values()):
            if getattr(first, name) is not None:
                raise ConfigError(
                    f"initialization.{name} = {getattr(first, name)!r}: expected None, or initialization.mask_delta too"
                )
    elif config.model.head == "gap" and first.mask_attention == "attention_maps":
        raise ConfigError(
            "initialization.mask_attention = 'attention_maps': a GAP head has none; use features, or model.head bap"
        )


def has_boxes_link(config: TrainConfig) -> bool:
    """Whether links of their own make the boxes, and not the classifier's training."""
    return method_of(config).boxes != "teacher" or config.initialization.mask_delta is not None


def spares(config: TrainConfig) -> bool:
    """Whether the classifier does not learn some training images, since they choose how boxes are made."""
    return method_of(config).boxes == "teacher" and bool(config.initialization.auto_fields)


def label(config: TrainConfig) -> str:
    """The row of a config in the paper's tables."""
    found, asked = method_of(config), config.method
    if found.from_file:
        return f"Boxes of {Path(asked.boxes or '').name}"
    if found.complete:
        return found.title
    if not asked.localizer:
        return found.title if found.map is not None else "DDT"
    regressed = found.title if found.map is None else f"PSOL on {found.title} boxes"
    return f"{regressed}, refined by {METHODS['lchp'].title}" if asked.refine else regressed


def kinds_of(config: TrainConfig) -> tuple[Kind, ...]:
    """The links of a config, by kind, in order."""
    found, asked = method_of(config), config.method
    wanted: dict[Kind, bool] = {
        "classifier": True,
        "choice": spares(config),
        "boxes": has_boxes_link(config),
        "localizer": found.complete or asked.localizer,
        "labels": (found.complete or asked.refine) and config.refinement.labeller == "frozen",
        "refinement": found.complete or asked.refine,
    }
    return tuple(kind for kind in KINDS if wanted[kind])


def depends_on(config: TrainConfig, result: str | None = None) -> frozenset[str]:
    """The fields, by dotted name, that a run's results depend on, and what is recorded of them; with `result`, those of
    that one, which later links do not change."""
    found, kinds = method_of(config), kinds_of(config)
    last = "boxes" if found.from_file and result == "pseudo_label" else None  # a file's boxes are no link's result
    ends = (i for i, kind in enumerate(kinds, 1) if result and (_result(config, kind) == result or kind == last))
    kinds = kinds[: next(ends, None)]
    names = [name for kind in kinds for name in _own_fields(config, found, kind)]
    return frozenset([*names, *fields_of(*_recorded(kinds[-1]))])


def epochs_of(config: TrainConfig) -> dict[str, int]:
    """Epochs of each link of a run, by its name in metrics.jsonl."""
    found = method_of(config)
    return {STAGES[kind]: _epochs(config, kind) - _first(config, found, kind) for kind in kinds_of(config)}


def results_of(config: TrainConfig, first: Kind | None = None) -> tuple[str, ...]:
    """The results of a run (those of its link `first` and later ones), by their names in records, in order."""
    kinds = kinds_of(config)
    kinds = kinds if first is None else kinds[kinds.index(first) :]
    return tuple(r for kind in kinds if (r := _result(config, kind)) is not None)


def stage1_kinds(config: TrainConfig) -> tuple[Kind, ...]:
    """The links of the paper's stage 1: up to a complete method's localizer, or a compared method's boxes."""
    kinds, found = kinds_of(config), method_of(config)
    return kinds[: kinds.index("localizer" if found.complete else "boxes") + 1]


def of_stage1(config: TrainConfig) -> TrainConfig:
    """A config as that of a run which ends with stage 1: a compared method without a localizer."""
    if method_of(config).complete:
        return config
    return override(config, {"method.localizer": False, "method.refine": False})


def taken_kinds(config: TrainConfig) -> tuple[Kind, ...]:
    """The links that `stage = refine` takes from another run: stage 1, but of a compared method the classifier alone.
    All methods of its scheme share that, and a threshold found on one data set is tried on another."""
    return stage1_kinds(config) if method_of(config).complete else ("classifier",)


def chain_of(config: TrainConfig, data: str, *, last: Kind | None = None) -> Chain:
    """The chain of a config, cut off after its link `last` where that is given.

    data: the fingerprint of the data set: of its training images for what is trained, of all of it for what is
    recorded. Raises ConfigError where the fields contradict the method, or name a file that cannot be
    read.
    """
    return _chain(config, data, last, contents_of(config))


def contents_of(config: TrainConfig) -> tuple[tuple[str, str], ...]:
    """The fields, by dotted name, of the files that a config names, and hashes of what these hold."""
    model, method_ = config.model, config.method
    if model.classifier_weights is None and method_.boxes is None:  # as mostly; this is asked of thousands of cells
        return ()
    flat = to_flat(config)
    return tuple((name, _content(name, flat[name])) for name in FILES if flat[name] is not None)


def _content(name: str, path: str) -> str:
    try:
        return content_hash(Path(os.path.expanduser(path)))
    except OSError as error:
        raise ConfigError(f"{name} = {quoted(path)}: cannot be read ({error.strerror})") from None


@lru_cache(4096)
def _chain(config: TrainConfig, data: str, last: Kind | None, contents: tuple[tuple[str, str], ...]) -> Chain:
    found, flat, defaults = method_of(config), to_flat(config), _defaults()
    links: dict[Kind, Link] = {}
    kinds = kinds_of(config)
    for kind in kinds if last is None else kinds[: kinds.index(last) + 1]:
        needs = tuple(links)
        fields = _values(flat, _own_fields(config, found, kind))
        about = {"kind": kind, "fields": fields | _gone(fields), "needs": [links[need].key for need in needs]}
        key = runs.digest(about | _beside(config, found, kind, data, dict(contents)))
        links[kind] = Link(
            kind,
            _epochs(config, kind),
            needs,
            MappingProxyType(fields),
            key,
            _passes(config, found, kind),
            _first(config, found, kind),
            _result(config, kind),
        )
    end = tuple(links.values())[-1]
    recorded = fields_of(*_recorded(end.kind)) if end.result else ()
    other = {name: flat[name] for name in recorded if flat[name] != defaults[name] and name not in end.fields}
    record = runs.digest([end.key, other]) if other else end.key
    return Chain(config, found, data, tuple(links.values()), record)


def _values(flat: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Values of fields by dotted name. One that came after links had keys is left out where it says nothing; what a
    field of the masks leaves to that of the boxes is said."""
    values = {name: flat[name] for name in names if (name, flat[name]) not in _UNSAID}
    if flat["initialization.mask_delta"] is not None and "initialization.mask_delta" in values:
        for box, mask in AUTO.items():
            if mask is not None and flat[f"initialization.{mask}"] is None:
                values[f"initialization.{mask}"] = flat[f"initialization.{box}"]
    return values


def _gone(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What keys say of fields that are GONE, so that a store of before serves."""
    beside = {"initialization.merge": "initialization.second_pass", "refinement.scorer": "refinement.loss_weight"}
    return {name: value for name, value in GONE.items() if beside[name] in fields}


_UNSAID = frozenset((name, f.since.meant) for name, f in FIELDS.items() if f.since and f.since.recipe >= 4)


def _own_fields(config: TrainConfig, found: Method, kind: Kind) -> tuple[str, ...]:
    """The fields, by dotted name, that a link depends on beside those of its needs."""
    parts = list(PARTS[kind])
    if kind == "classifier":
        parts += [] if found.boxes != "teacher" else ["masks"] if has_boxes_link(config) else ["teacher"]
        parts += ["head"] if found.head is None else []
        fresh = config.model.pretrained and config.model.classifier_weights is None  # its head starts from random
        parts += ["ratio"] if found.scheme.teach is None and fresh else []
    elif kind == "boxes":
        parts += {"map": ["map"], "teacher": ["teacher_boxes"]}.get(found.boxes, [])
    elif kind == "localizer":
        parts += ["l_reg"] if found.complete else []
    more = ["refinement.temperature"] if kind == "labels" else []
    if kind == "classifier" and spares(config):  # fields, so that `Chain.until` keeps what makes it spare images
        more += [f"initialization.{name}" for name in config.initialization.auto_fields]
    return (*fields_of(*parts), *more)


def _beside(config: TrainConfig, found: Method, kind: Kind, data: str, contents: Mapping[str, str]) -> dict[str, Any]:
    """What a link depends on that is no field, or not as it stands there. contents: as of `contents_of`."""
    if kind == "classifier":
        precision = config.precision
        if precision == "auto":  # a named precision gives a key on machines without the device, too
            precision = resolve_precision(precision, resolve_device(config.device))
        # both train on the same images: with --from a threshold found on one is tried on the other
        images = config.data.name.removesuffix("_fullsup")
        weights = _classifier_weights(config, contents)
        return ({"spared": SPARED} if spares(config) else {}) | {
            "recipe": RECIPE_VERSION,
            "data": [images, data],
            "scheme": found.scheme.name,
            "precision": precision,
            "weights": weights,
        }
    if kind == "boxes":
        source: dict[str, Any] = {"content": contents["method.boxes"]} if found.from_file else {}
        if found.boxes == "ddt" and config.model.classifier_weights is not None:  # its trunk is ImageNet's all the same
            source["weights"] = _weights(config, config.model.classifier)
        return {"boxes": found.name if found.boxes == "map" else found.boxes} | source
    if kind == "localizer":
        return {"loss": "lchp" if found.complete else "psol", "weights": _weights(config, config.model.localizer)}
    return {"views": views_of(config.refinement)} if kind == "labels" else {}


def _weights(config: TrainConfig, backbone: str) -> Any:
    return weights_identity(backbone, pretrained=config.model.pretrained, weights_dir=config.model.weights_dir)


def _classifier_weights(config: TrainConfig, contents: Mapping[str, str]) -> Any:
    if config.model.classifier_weights is None:
        return _weights(config, config.model.classifier)
    return [contents[name] for name in ("model.classifier_weights", "model.classifier_classes") if name in contents]


def _recorded(last: Kind) -> tuple[str, ...]:
    return (*MEASURED, "kept") if last == "localizer" else MEASURED


def _first(config: TrainConfig, found: Method, kind: Kind) -> int:
    return config.initialization.localizer_start if kind == "localizer" and found.complete else 0


def _epochs(config: TrainConfig, kind: Kind) -> int:
    if kind == "choice":
        return len(ROUNDS)
    if kind == "boxes" and method_of(config).boxes != "teacher":
        return 1
    return config.refinement.epochs if kind in ("labels", "refinement") else config.initialization.epochs


def _passes(config: TrainConfig, found: Method, kind: Kind) -> int:
    teachers = 1 if config.initialization.boxes == "single" else 2
    if kind == "classifier":  # raw and masked, and the teacher's own
        return 3 if found.scheme.teach is None else 6 + (1 if has_boxes_link(config) else teachers)
    if kind == "boxes" and found.boxes == "teacher":
        return teachers
    # a choice looks at some hundred images, however many there are
    return {"choice": 0, "boxes": 0 if found.from_file else 1, "localizer": 3, "labels": 2}.get(
        kind, 3 if config.refinement.labeller == "frozen" else 5
    )


def _result(config: TrainConfig, kind: Kind) -> str | None:
    if kind == "classifier":
        return None if has_boxes_link(config) else "pseudo_label"
    if kind == "boxes" and method_of(config).from_file:  # of test images it has what the file holds, which may be none
        return None
    return {"boxes": "pseudo_label", "localizer": "lchp_i", "refinement": "lchp_r"}.get(kind)


def config_until(chain: Chain, kind: Kind) -> TrainConfig:
    """What the links up to one depend on, as a config: all else is as in every other config. A compared method's
    classifier is its scheme's, named by the first method that has it."""
    config, found, flat = chain.config, chain.method, to_flat(chain.config)
    kept = {name: flat[name] for name in (*fields_of("images"), *_free())}
    for link in chain.links:
        kept |= link.fields
        if link.kind == kind:
            break
    same = (n for n, m in METHODS.items() if m.scheme.name == found.scheme.name and not m.from_file)
    kept["method.name"] = next(same) if kind == "classifier" else found.name
    kept["method.boxes"] = None if kind == "classifier" else config.method.boxes
    kept["method.localizer"] = not found.complete and KINDS.index(kind) > KINDS.index("boxes")
    kept["method.refine"] = not found.complete and kind in ("labels", "refinement")
    if kind == "classifier" and "initialization.mask_delta" in kept:  # a GAP head has no attention maps
        kept.setdefault("initialization.attention", kept["initialization.mask_attention"])
    if kind == "labels":
        kept |= {"refinement.labeller": "frozen", "refinement.views": views_of(config.refinement)}
    return override(TrainConfig(), kept)


@cache
def _defaults() -> Mapping[str, Any]:
    return MappingProxyType(to_flat(TrainConfig()))


@cache
def _free() -> tuple[str, ...]:
    """The fields that change no result."""
    return tuple(name for name in _defaults() if not FIELDS[name].changes)
