"""lchp: trains, sweeps and ablates LCHP, a two-stage method of weakly supervised object localization.

The names below are the library's public ones; everything is imported on first use, so `import lchp` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lchp.config import (
        PRESETS,
        DataConfig,
        EvaluationConfig,
        InitializationConfig,
        ModelConfig,
        RefinementConfig,
        TrainConfig,
        override,
        preset,
    )
    from lchp.deploy.predictor import Predictor
    from lchp.errors import LchpError
    from lchp.method.networks import Classifier, Localizer
    from lchp.training.run import Result, train

__version__ = "0.1.0"

_HOMES = {
    "PRESETS": "config",
    "DataConfig": "config",
    "EvaluationConfig": "config",
    "InitializationConfig": "config",
    "ModelConfig": "config",
    "RefinementConfig": "config",
    "TrainConfig": "config",
    "override": "config",
    "preset": "config",
    "LchpError": "errors",
    "Predictor": "deploy.predictor",
    "Classifier": "method.networks",
    "Localizer": "method.networks",
    "Result": "training.run",
    "train": "training.run",
}

__all__ = [
    "PRESETS",
    "Classifier",
    "DataConfig",
    "EvaluationConfig",
    "InitializationConfig",
    "LchpError",
    "Localizer",
    "ModelConfig",
    "Predictor",
    "RefinementConfig",
    "Result",
    "TrainConfig",
    "override",
    "preset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lchp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lchp.{_HOMES[name]}"), name)
