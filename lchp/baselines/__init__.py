"""The registry of methods: LCHP, and those it is compared with, a file each here, found by their `METHOD`.

A file without one is a part that others use.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from lchp.config import suggest
from lchp.errors import ConfigError
from lchp.method import lchp
from lchp.method.definition import Batch, Method, Scheme

__all__ = ["METHODS", "Batch", "Method", "Scheme", "method"]


def _found() -> dict[str, Method]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {m.name: m for m in (lchp.METHOD, *sorted(found, key=lambda m: (not m.complete, m.name)))}


METHODS: Mapping[str, Method] = MappingProxyType(_found())
"""The registry, by name; what is a whole method by itself comes first."""


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError for an unknown one."""
    if name not in METHODS:
        raise ConfigError(f"method.name = {name!r}: expected {', '.join(METHODS)}{suggest(name, METHODS)}")
    return METHODS[name]
