"""`lchp export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lchp.config import counted
from lchp.errors import ConfigError


@dataclass
class Export:
    """Write one file that predicts as a run does, without lchp: its classifier, with its localizer or map."""

    output: Path
    """File to write. An earlier export there is replaced, any other file left alone."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run", metavar="DIR")] = None
    """Run folder; LCHP-R is used, or LCHP-I where stage 2 is not complete; of a method without a localizer, its map."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """In place of --run: a folder that lchp publish wrote, or hf://USER/NAME[@REVISION] of Hugging Face's hub."""
    format: Literal["torchscript", "onnx"] | None = None
    """Format of the file; by default its name says it: .onnx, or TorchScript for .pt and .ts."""

    def run(self) -> int:
        """Carries the command out; the exit status."""
        from lchp.deploy.export import export
        from lchp.deploy.predictor import load
        from lchp.evaluation.metrics import TITLES
        from lchp.system.devices import resolve_device
        from lchp.training.chain import label, method_of

        by_name = {".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript"}.get(self.output.suffix)
        format: Any = self.format or by_name
        if format is None or (by_name is not None and format != by_name):
            raise ConfigError(
                f"output = {str(self.output)!r}: end its name in .onnx, or in .pt for TorchScript"
                + (f", to go with --format {format}" if format else "")
            )
        trained = load(self.run_folder, self.model, resolve_device("cpu"))
        about = export(trained, self.output, format)
        of = "" if method_of(trained.config).complete else f" of {label(trained.config)}"
        print(
            f"{self.output}: {TITLES[about['result']]}{of} and classifier as {format}, {about['image_size']} px, "
            f"{counted(len(about['class_names']), 'class')}; largest difference {about['largest_difference']:.1e}"
        )
        return 0
