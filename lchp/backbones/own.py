"""A classifier of the user's own out of a file: its network up to the class head, and the head."""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lchp.backbones import Trunk, backbone, cut_trunk, fill, head_of, read_safetensors
from lchp.errors import WeightsError, reason

WRAPPED = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training scripts keep the weights beside what else a checkpoint holds."""


@dataclass(frozen=True)
class OwnClassifier:
    """trunk: all of the network before its class head; weight, bias: the head's, K classes x C and K."""

    trunk: Trunk
    weight: Tensor
    bias: Tensor


def read_own(path: Path, name: str) -> OwnClassifier:
    """The classifier of a file, whose network is the backbone `name`.

    path: .safetensors, or torch weights, which are read as data: no code of theirs runs. The parameters have the names
    of torchvision's (or timm's) model; a prefix that all of them share (`module.`) is passed over, and so is what else
    a checkpoint holds. Raises WeightsError, one line, for what does not fit.
    """
    entry, head = backbone(name, "classifier"), head_of(name)
    if path.exists() and not path.is_file():  # a pipe is opened for ever
        raise WeightsError(f"{path}: not a regular file")
    state, metadata = read_safetensors(path) if path.suffix.lower() == ".safetensors" else (_read_torch(path), {})
    net = entry.build()
    state = _unprefixed(state, {child for child, _ in net.named_children()})
    weight, bias = state.get(f"{head}.weight"), state.get(f"{head}.bias")
    wanted = net.get_parameter(f"{head}.weight").shape[1]
    if weight is None:
        last = ", ".join(list(state)[-3:])
        raise WeightsError(
            f"{path}: lacks {head}.weight, the class head of {name} (classes x {wanted}); its last parameters: {last}"
        )
    if weight.dim() != 2 or weight.shape[1] != wanted or not len(weight):
        raise WeightsError(f"{path}: {head}.weight is {_sides(weight)}, expected classes x {wanted}, as {name} has it")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise WeightsError(f"{path}: {head}.bias is {_sides(bias)}, expected {len(weight)}, as {head}.weight has it")
    floats = {n for n, v in net.state_dict().items() if v.is_floating_point()}
    for parameter, value in state.items():
        if (fault := _fault(value, parameter in floats)) is not None:
            raise WeightsError(f"{path}: {parameter} {fault}")
    fill(net, name, str(path), state, metadata)
    bias = torch.zeros(len(weight)) if bias is None else bias
    return OwnClassifier(cut_trunk(net, entry, "whole"), weight.float(), bias.float())


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write, which asks for an issue
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, LookupError):  # the second of bytes that are no pickle: a text
        raise WeightsError(
            f"{path}: holds more than weights, or none (a whole model is code); save its state_dict(), or .safetensors"
        ) from None
    except Exception as error:  # torch's reader has its own, zipfile's and pickle's
        raise WeightsError(f"{path}: not readable torch weights ({reason(error)[:200]})") from None
    for key in WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no weights by name; save the model's state_dict()")
    return tensors


def _sides(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def _fault(value: Tensor, floats: bool) -> str | None:
    """Why a network cannot compute with a parameter in fp32, or None. floats: whether its own are real numbers."""
    if value.is_meta:
        return "holds no values"
    if value.layout != torch.strided or (floats and not value.is_floating_point()):
        kind = "sparse" if value.layout != torch.strided else str(value.dtype).removeprefix("torch.")
        return f"is {kind}, expected dense floating-point weights"
    if value.is_floating_point() and not value.float().isfinite().all():
        return "holds values that are not finite in float32"
    return None


def _unprefixed(state: Mapping[str, Tensor], children: set[str]) -> Mapping[str, Tensor]:
    """Without the first parts of the names that all share and that no child of the network has (`module.`)."""
    while state:
        first = {name.partition(".")[0] for name in state}
        if len(first) > 1 or first <= children or not all("." in name for name in state):
            break
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state
