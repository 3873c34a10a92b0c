"""The library's public names."""

import importlib

import lchp
from lchp.config import PRESETS
from lchp.training.run import Result


def test_every_public_name_is_there() -> None:
    for name in lchp.__all__:
        assert getattr(lchp, name) is not None
    assert lchp.PRESETS is PRESETS
    assert lchp.Result is Result


def test_train_can_be_called_although_its_module_has_its_name() -> None:
    importlib.import_module("lchp.training.run")
    from lchp import train

    assert callable(train)
