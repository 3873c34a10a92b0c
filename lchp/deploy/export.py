"""A finished run as one file that other programs run: TorchScript (torch alone) or ONNX."""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import lchp
from lchp.data import load
from lchp.data.images import open_images
from lchp.deploy.detectors import Detector, MapDetector, detector_of
from lchp.deploy.trained import TrainedRun
from lchp.errors import ConfigError, LchpError
from lchp.evaluation.frames import Frame
from lchp.files.runs import write_atomically
from lchp.files.targets import holding, require_file

ExportFormat = Literal["torchscript", "onnx"]
INPUT, OUTPUTS = "images", ("box", "scores", "confidence")
METADATA = "metadata.json"
"""Name of the entry with the metadata: a TorchScript file's extra file, an ONNX file's metadata property."""

TOLERANCE = 1e-3
"""Largest difference from the eager outputs that passes, for boxes in fractions of the view and for probabilities."""

CHECKED_BATCHES = (1, 5)  # the traced example has another size, so a batch size frozen into the file is found
REAL_IMAGES = 5


def export(trained: TrainedRun, output: str | Path, format: ExportFormat = "torchscript") -> dict[str, Any]:
    """Writes the file and returns the metadata that it carries. `trained`: on the CPU.

    Before the file takes its name, what it holds is loaded again and run on noise, and on test images of the run where
    they can still be read; LchpError, and no file, if any output is off by more than TOLERANCE. RunError where the file
    cannot be written, ConfigError where `output` is there already and no such export. The batch is dynamic.
    """
    output = Path(output)
    require_file(output, "output", holding(b'"lchp_version"', b'"class_names"'), "export of lchp")
    if format == "onnx":
        _require_onnx()
    size = trained.config.data.image_size
    detector = detector_of(trained, format)
    metadata = metadata_of(trained)
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        content, run = _FORMATS[format](detector, example, metadata)
        difference = _largest_difference(detector, run, _check_images(trained))
    if not difference <= TOLERANCE:
        raise LchpError(
            f"export as {format}: outputs differ from the networks' by {difference:.2g}, more than {TOLERANCE}; "
            f"{output} was not written"
        )
    write_atomically(output, lambda file: file.write(content))
    return metadata | {"largest_difference": difference}


def metadata_of(trained: TrainedRun) -> dict[str, Any]:
    """The metadata: what goes in, what comes out, and where it is from."""
    data = trained.config.data
    return {
        "lchp_version": lchp.__version__,
        "result": trained.result,
        "class_names": list(trained.class_names),
        "image_size": data.image_size,
        "resize": data.resize,
        "frame": "full_image",
        "input": "images: float32, B x 3 x image_size x image_size, RGB in [0, 1], the whole image resized",
        "outputs": "box: B x 4, x1 y1 x2 y2 in [0, 1] of the frame; scores: B x classes; confidence: B",
    }


def _torchscript(
    detector: nn.Module, example: Tensor, metadata: dict[str, Any]
) -> tuple[bytes, Callable[[Tensor], Any]]:
    with warnings.catch_warnings():
        # torch says that TorchScript is superseded, and that sizes are taken as constants (S is one)
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(detector, example, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata)})
        content = buffer.getvalue()
        return content, torch.jit.load(io.BytesIO(content))


def _onnx(detector: nn.Module, example: Tensor, metadata: dict[str, Any]) -> tuple[bytes, Callable[[Tensor], Any]]:
    import onnxruntime

    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            detector,
            (example,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: batch}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(a) for a in session.run(list(OUTPUTS), {INPUT: images.contiguous().numpy()})]

    return content, run


_FORMATS = {"torchscript": _torchscript, "onnx": _onnx}


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: uv pip install -c constraints.txt -e '.[export]'")


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    """Raises the level of loggers that report progress as warnings."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_images(trained: TrainedRun) -> list[Tensor]:
    """Batches of B x 3 x S x S: noise, and the run's first test images in the frame `full_image`."""
    size, data = trained.config.data.image_size, trained.config.data
    generator = torch.Generator().manual_seed(1)
    found = [torch.rand(n, 3, size, size, generator=generator) for n in CHECKED_BATCHES]
    with contextlib.suppress(LchpError):  # the data may be gone, or on another machine: noise must do
        test = load(data).test
        first = np.arange(min(REAL_IMAGES, len(test)))
        images = open_images(test.select(first), replace(data, cache="off"), show_progress=False)
        found.append(Frame.of("full_image", data).see(images.batch(list(range(len(images)))).images))
    return found


def _largest_difference(detector: nn.Module, run: Callable[[Tensor], Any], batches: list[Tensor]) -> float:
    """Over all outputs; infinite where a shape differs, NaN (which passes no comparison) where an output is."""
    worst = torch.tensor(0.0)
    for images in batches:
        for ours, theirs in zip(detector(images), run(images), strict=True):
            if ours.shape != theirs.shape:
                return float("inf")
            worst = torch.maximum(worst, (ours - theirs).abs().max())  # maximum passes NaN on
    return float(worst)


__all__ = ["METADATA", "TOLERANCE", "Detector", "MapDetector", "export"]
