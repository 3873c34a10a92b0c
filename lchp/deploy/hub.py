"""Models on Hugging Face's hub, fetched by its own client: which hub, token and cache, its variables say (HF_*)."""

import os
import re
from pathlib import Path

from lchp.deploy.model_folder import FILES_OF_MODEL
from lchp.errors import ConfigError, RunError, reason
from lchp.files.targets import as_path

PREFIX = "hf://"
_PLACE = re.compile(rf"{PREFIX}(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^\s@]+?))?/?")

_NEARLY = re.compile(r"(?:hf:/?|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)([\w.-]+/[\w.-]+)")
"""Other spellings of such a place."""


def require_path(place: str) -> Path:
    """The path of a model's folder. Raises ConfigError for another spelling of a model of the hub, and as `as_path`."""
    near = _NEARLY.match(place)
    if near is not None and not os.path.lexists(place):
        raise ConfigError(f"model = {place!r}: a model of the hub is named {PREFIX}{near[1]}")
    return as_path(place)


def fetch(place: str) -> Path:
    """The folder of `hf://USER/NAME[@REVISION]` in the client's cache, downloaded where it is not there yet. Only files
    of a model's names are fetched. Raises ConfigError, also where the client is not installed, and RunError."""
    found = _PLACE.fullmatch(place)
    if found is None:
        raise ConfigError(f"model = {place!r}: expected hf://USER/NAME or hf://USER/NAME@REVISION")
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise ConfigError(
            f"model = {place!r}: needs huggingface_hub, an optional package: pip install huggingface_hub, or install "
            "lchp[hub]"
        ) from None
    try:
        return Path(snapshot_download(found["name"], revision=found["revision"], allow_patterns=[*FILES_OF_MODEL]))
    except errors.GatedRepoError:
        said = "its page asks for consent first; give it there, and log in (hf auth login)"
    except errors.RepositoryNotFoundError:
        said = "the hub has no such model, or one that needs a login (hf auth login)"
    except errors.RevisionNotFoundError:
        said = f"the model has no revision {found['revision'] or 'main'}"
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason(error).removeprefix("Got: ")[:300]
        said = f"is not whole in the cache, and the hub was not reached ({why})"
    except errors.HFValidationError as error:
        raise ConfigError(f"model = {place!r}: {reason(error)[:300]}") from None
    except Exception as error:  # those of the client, of its HTTP library and of the system
        said = f"could not be fetched ({reason(error)[:300]}); try again, or copy the model's folder here"
    raise RunError(f"{place}: {said}")
