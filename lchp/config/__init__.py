"""The configuration of one run: frozen dataclasses, one per concern, and the paper's recipes as presets."""

from lchp.config.about import counted, described, plain, quoted, show, suggest
from lchp.config.fields import (
    AUGMENTATIONS,
    AUTO,
    FIELDS,
    FILES,
    GONE,
    MEANING_BEFORE,
    MEASURED,
    OPEN_CHOICES,
    PARTS_SIZE,
    PATHS,
    PLACES,
    SHAPE,
    DataConfig,
    EvaluationConfig,
    InitializationConfig,
    MethodConfig,
    ModelConfig,
    RefinementConfig,
    TrainConfig,
    field_types,
    fields_of,
    short_name,
    to_flat,
    values_text,
)
from lchp.config.presets import PRESETS, Preset, alternatives, preset
from lchp.config.stored import (
    as_chosen,
    complete,
    flatten,
    from_dict,
    masked_as,
    override,
    shown_choice,
    to_dict,
    unique_keys,
)
