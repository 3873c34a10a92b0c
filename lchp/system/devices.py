"""Where a run computes, in which precision, and what it used."""

import os
import resource
import sys
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lchp.config import TrainConfig
from lchp.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': no NVIDIA GPU is visible to torch; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    cpu = torch.cpu
    supported = any(getattr(cpu, probe, bool)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if supported else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context in which networks run. Weights and losses stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")  # pyright: ignore[reportReturnType]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's, such as draws, on the device, without waiting for it: such a copy needs pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def switch_off_tf32() -> None:
    """So that fp32 is fp32 on a GPU: torch lets cuDNN's convolutions round to TF32, unless it is told not to."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def prepare(config: TrainConfig, device: torch.device) -> None:
    """Process-wide settings of torch that a run asks for."""
    switch_off_tf32()
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = not config.deterministic  # it times kernels, and may choose others the next time
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:  # read when cuBLAS starts; a process that has used it already needs it in its environment
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def device_name(device: torch.device) -> str:
    """The device's name, for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def forget_peak_memory(device: torch.device) -> None:
    """The GPU's peak memory is counted anew from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Peak memory in MB: of this process, and of the GPU."""
    # ru_maxrss counts KB on Linux, bytes on macOS
    unit = 1e6 if sys.platform == "darwin" else 1e3
    peak = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if device.type == "cuda":
        peak["gpu"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return peak
