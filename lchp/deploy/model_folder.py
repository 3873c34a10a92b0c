"""A model to hand on: a folder with a run's networks, its config and class names, and nothing of the machine.

Everything in it is data: safetensors and JSON. No file of it is run, and none is a pickle.
"""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import lchp
from lchp.backbones import read_safetensors
from lchp.config import FILES, PATHS, TrainConfig, override, to_dict, to_flat
from lchp.data.base import require_regular
from lchp.deploy.trained import ModuleName, TrainedNetworks, TrainedRun, load_networks, modules_of
from lchp.errors import ConfigError, LchpError, RunError, lacked_memory, reason
from lchp.evaluation.inference import predict_batch
from lchp.files import runs
from lchp.files.contents import checksum
from lchp.files.runs import CONFIG
from lchp.files.schema import MODEL_FORMAT, MODEL_SCHEMA, MODEL_VERSION, ModelFields, checked

ABOUT, CARD, SUMS = runs.MODEL, "README.md", "SHA256SUMS"
"""What the model is; for people; and the SHA-256 of every other file, as `sha256sum --check` reads it."""
AGAIN = "copy or download the model again"
_SUM = re.compile(r"([0-9a-f]{64})  (\S+)")
_VERSIONS = TypeAdapter(dict[str, int])


def weights_file(name: ModuleName) -> str:
    """The file of a module's state."""
    return f"{name}.safetensors"


FILES_OF_MODEL = (ABOUT, CONFIG, *map(weights_file, get_args(ModuleName)), SUMS)
"""All that is read of a model folder."""


@dataclass(frozen=True)
class ModelNetworks:
    """Those of a model folder whose checksums are right."""

    folder: Path
    config: TrainConfig
    about: ModelFields

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the classifier's scores."""
        return tuple(self.about["class_names"])

    @property
    def result(self) -> str:
        """Whose boxes the localizer gives."""
        return self.about["result"]

    def state(self, name: ModuleName) -> tuple[Mapping[str, Tensor], Path]:
        """Of the module's file. Raises RunError."""
        path = self.folder / weights_file(name)
        try:
            tensors, metadata = read_safetensors(path)
            versions = _VERSIONS.validate_json(metadata.get("versions", ""), strict=True)
        except LchpError as error:
            raise RunError(str(error)) from None
        except ValidationError:
            raise RunError(f"{path}: its metadata lacks the versions of its modules; {AGAIN}") from None
        broken = next((n for n, v in tensors.items() if v.is_floating_point() and not v.float().isfinite().all()), None)
        if broken is not None:
            raise RunError(f"{path}: {broken} holds values that are not finite; take another model")
        return _as_state(tensors, versions), path


def load_model(folder: Path, device: torch.device, *, localizer: bool = True, again: str = AGAIN) -> TrainedRun:
    """What a model folder predicts by, bitwise what its run does; see `lchp.deploy.trained.load_run`.

    again: what to do about a file that is lacking or damaged. Raises RunError, one line, which names the file.
    """
    networks = open_model(folder, again)
    try:
        trained = load_networks(networks, device, localizer=localizer)
    except ConfigError as error:  # a backbone that is not installed here
        raise RunError(f"{folder / CONFIG}: {error}") from None
    blank = torch.zeros(1, 3, *[trained.config.data.image_size] * 2, device=device)
    try:
        with torch.inference_mode():
            predict_batch(trained.models, blank)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:  # each state fits its module, and no other
        if lacked_memory(error) is not None:
            raise
        raise RunError(f"{folder}: its networks do not run ({reason(error)[:200]}); take another model") from None
    return trained


def open_model(folder: Path, again: str = AGAIN) -> ModelNetworks:
    """The networks of a model folder, every file of which has its checksum. Raises RunError."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such model folder")
    if not os.path.lexists(folder / ABOUT):
        is_run = (folder / runs.ENVIRONMENT).exists()
        raise RunError(
            f"{folder}: is a run folder; give it by --run, or make a model of it with lchp publish"
            if is_run
            else f"{folder / ABOUT}: no such file; {folder.name} is no model of lchp's, or lacks a part: {again}"
        )
    about = _about(folder, again)
    sums = _read_sums(folder / SUMS, again)
    for name in (ABOUT, CONFIG):
        _verify(folder / name, sums, again)
    config, modules = _config(folder, about)
    for module in modules:
        _verify(folder / weights_file(module), sums, again)
    return ModelNetworks(folder, config, about)


def is_model(folder: Path) -> bool:
    """Whether a folder is a model of ours and holds nothing else: no file by another name, and no other card."""
    try:
        _about(folder, AGAIN)
        sums = _read_sums(folder / SUMS, AGAIN)
        if (folder / CARD).exists():
            _verify(folder / CARD, sums, AGAIN)
    except RunError:
        return False
    return {path.name for path in folder.iterdir()} <= {*FILES_OF_MODEL, CARD}


def write_model(
    folder: Path,
    networks: TrainedNetworks,
    result: str,
    states: Mapping[ModuleName, Mapping[str, Tensor]],
    recipe: int | None,
    card: str,
) -> None:
    """Writes a model's files into a folder that is there: these states of networks whose boxes are those of `result`,
    trained by this recipe. Raises RunError."""
    from safetensors.torch import save

    about: ModelFields = {
        "format": MODEL_FORMAT,
        "version": MODEL_VERSION,
        "lchp": lchp.__version__,
        "recipe": recipe,
        "result": result,  # pyright: ignore[reportAssignmentType]
        "class_names": list(networks.class_names),
    }
    runs.write_json(folder / ABOUT, about)
    runs.write_json(folder / CONFIG, to_dict(portable(networks.config)))
    for module, state in states.items():
        # contiguous copies: a checkpoint's are laid out as its device wanted them, and may share memory
        tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        content = save(tensors, {"versions": json.dumps(_versions(state), sort_keys=True)})
        runs.write_atomically(folder / weights_file(module), lambda file, content=content: file.write(content))
    runs.write_atomically(folder / CARD, lambda file: file.write(card.encode()))
    lines = [f"{checksum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    runs.write_atomically(folder / SUMS, lambda file: file.write("".join(lines).encode()))


def portable(config: TrainConfig) -> TrainConfig:
    """A config without the places of a machine. A file that decides which links there are keeps its name."""
    given, defaults = to_flat(config), to_flat(TrainConfig())
    there = {name: given[name] for name in PATHS if given[name] is not None}
    return override(config, {n: Path(v).name if n in FILES else defaults[n] for n, v in there.items()})


def _versions(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Versions of the modules of a state by their prefix, which decide how they are read (`nn.Module._version`)."""
    metadata: Mapping[str, Any] = getattr(state, "_metadata", MappingProxyType({}))
    return {prefix: said["version"] for prefix, said in metadata.items() if "version" in said}


def _as_state(tensors: Mapping[str, Tensor], versions: Mapping[str, int]) -> Mapping[str, Tensor]:
    state: Any = OrderedDict(tensors)
    state._metadata = OrderedDict((prefix, {"version": version}) for prefix, version in versions.items())
    return state


def _about(folder: Path, again: str) -> ModelFields:
    path = folder / ABOUT
    _require_file(path, again)
    try:
        record = runs.read_json(path)
    except RunError as error:
        raise RunError(f"{error}; {again}") from None
    return checked(MODEL_SCHEMA, record, path)


def _config(folder: Path, about: ModelFields) -> tuple[TrainConfig, tuple[ModuleName, ...]]:
    """The config, and the modules that it asks for."""
    path = folder / CONFIG
    try:
        config = portable(runs.read_config(folder))
        return config, modules_of(config)
    except LchpError as error:  # a field, a method or a backbone that is not there
        said = str(error) if isinstance(error, RunError) else f"{path}: {error}"
        other = f"; it is of lchp {about['lchp']}, this is {lchp.__version__}: update lchp"
        raise RunError(f"{said}{other if about['lchp'] != lchp.__version__ else ''}") from None


def _read_sums(path: Path, again: str) -> dict[str, str]:
    """SHA-256 by file."""
    _require_file(path, again)
    sums: dict[str, str] = {}
    try:
        for number, line in enumerate(path.read_text("ascii").splitlines(), 1):
            found = _SUM.fullmatch(line)
            if found is None:
                raise RunError(f"{path}:{number}: expected a SHA-256, two blanks and a file's name; {again}")
            sums[found[2]] = found[1]
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); {again}") from None
    return sums


def _verify(path: Path, sums: Mapping[str, str], again: str) -> None:
    """Raises RunError where a file is not the one that was written."""
    _require_file(path, again)
    if path.name not in sums:
        raise RunError(f"{path.with_name(SUMS)}: lacks {path.name}; {again}")
    try:
        found = checksum(path)
        with path.open("rb") as file:
            pointer = file.read(32).startswith(b"version https://git-lfs")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); {again}") from None
    if pointer:
        raise RunError(f"{path}: is what Git LFS puts in a file's place; git lfs pull fetches the file")
    if found != sums[path.name]:
        raise RunError(f"{path}: its checksum differs from {SUMS}: it was changed or damaged; {again}")


def _require_file(path: Path, again: str) -> None:
    try:
        require_regular(path)
    except OSError as error:
        said = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
        raise RunError(f"{path}: {said}; {again}") from None
