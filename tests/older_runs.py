"""Run folders as they were before a run was a chain of links, made of new ones."""

import json
from pathlib import Path
from typing import Any

import torch

from lchp.files import runs

OF_LOCALIZER = ("l_reg", "lr_localizer")


def as_before_links(run: Path, stage1: Path | None = None) -> Path:
    """LCHP's run folder as its one training of stage 1 left it: the localizer lies in initialization.pt beside
    classifier and teacher, no boxes are kept, metrics hold both losses in one line, and environment.json has no links.
    stage1: the folder that a run of stage 2 alone started from. The folder itself, changed in place."""
    folder, environment = run / runs.CHECKPOINTS, runs.read_json(run / runs.ENVIRONMENT)
    del environment["links"]
    if stage1 is None:
        first, regression = (_state(folder / f"{name}.pt") for name in ("initialization", "regression"))
        modules = {**first["modules"], "localizer": regression["modules"]["localizer"]}
        del modules["boxes"]
        torch.save(first | {"modules": modules}, folder / "initialization.pt")
    else:
        checkpoint = stage1 / runs.CHECKPOINTS / "initialization.pt"
        environment["stage1"] = {"checkpoint": str(checkpoint), "identity": _state(checkpoint)["identity"]}
    for name in ("regression", "labels"):
        (folder / f"{name}.pt").unlink(missing_ok=True)
    runs.write_json(run / runs.ENVIRONMENT, environment)
    lines = runs.read_metrics(run)
    regressed = {m["epoch"]: {n: m[n] for n in OF_LOCALIZER} for m in lines if m["stage"] == "regression"}
    joint = [
        m | (regressed.get(m["epoch"], {}) if m["stage"] == "initialization" else {})
        for m in lines
        if m["stage"] not in ("regression", "labels")
    ]
    (run / runs.METRICS).write_text("".join(json.dumps(m) + "\n" for m in joint))
    return run


def _state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)
