"""Losses of eight steps per stage, on fixed networks and images: `python tests/golden.py --write` renews the file.

The trunk is fixed here, so that what is tuned for the embedded data set moves no number; it is shallow, since a
deep one from a random start turns another machine's rounding into other losses within a few steps. Seeded, fp32, on the
CPU. A change of these numbers is a change of the maths.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from lchp.backbones import BACKBONES, SYMMETRIC, Backbone
from lchp.config import TrainConfig, override
from lchp.method.batch import Batch
from lchp.method.pseudo_boxes import make_teacher, update_teacher
from lchp.method.steps import classifier_step, label_views, localizer_step, refinement_step
from lchp.method.view_table import ViewTable
from lchp.method.views import sample_strong
from lchp.training.chain import chain_of
from lchp.training.networks import build

FILE = Path(__file__).parent / "golden" / "losses.json"
STEPS, BATCH, SIZE, CLASSES = 8, 6, 64, 3


def trunk() -> nn.Module:
    """Four convolutions, stride 8."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((3, 16, 2), (16, 24, 2), (24, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers)


def config() -> TrainConfig:
    return override(
        TrainConfig(),
        {
            "data.image_size": SIZE,
            "data.resize": SIZE,
            "model.classifier": "golden",
            "model.localizer": "golden",
            "model.attention_maps": 8,
            "model.pretrained": False,
            "initialization.delta": 0.8,
            "initialization.normalization": "minmax",
            "initialization.lr": 5e-5,
            "initialization.localizer_lr": 1e-4,
            # a pixel of an upsampled map is more easily pushed over the threshold by another machine's rounding
            "initialization.resolution": "native",
            "refinement.tau": 0.95,
            "refinement.lr": 5e-4,
            "refinement.augmenter": "tensor",  # the same on every machine, whatever `auto` is there
        },
    )


def images(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright square on noise, its colour the class."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = 0.3 * torch.rand(BATCH, 3, SIZE, SIZE, generator=generator)
    y = torch.arange(BATCH) % CLASSES
    corner = torch.randint(4, 30, (BATCH, 2), generator=generator).tolist()
    for image, label, (left, top) in zip(x, y.tolist(), corner, strict=True):
        image[label, top : top + 28, left : left + 24] += 0.6
    return x, y


def losses() -> dict[str, list[list[float]]]:
    """Per stage and step: L_cls, L_reg and pseudo box area; then L_refine, kept share, confidence and box area."""
    c = config()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    BACKBONES["golden"] = Backbone(trunk, lambda net, _role: net, SYMMETRIC)
    try:
        nets = build(chain_of(c, ""), CLASSES, torch.device("cpu"))
    finally:
        del BACKBONES["golden"]
    stage1, stage2, index = c.initialization, c.refinement, torch.arange(BATCH)
    teacher, table = make_teacher(nets.classifier), ViewTable(1, BATCH, 4)
    optimizers = [
        torch.optim.SGD(n.parameters(), lr=stage1.lr, momentum=stage1.momentum, weight_decay=stage1.weight_decay)
        for n in (nets.classifier.train(), nets.localizer.train())
    ]
    first, second = [], []
    for step in range(STEPS):
        batch = Batch(*images(step), index=index)
        l_cls, seen = classifier_step(nets.classifier, teacher, table, batch, 0, stage1)
        known = torch.ones(BATCH, dtype=torch.bool)
        l_reg, scalars = localizer_step(nets.localizer, batch, table.at(0, index), known, stage1.alpha)
        for loss, optimizer in zip((l_cls, l_reg), optimizers, strict=True):
            move(optimizer, loss)
        update_teacher(teacher, nets.classifier, stage1.beta, stage1.teacher_buffers)
        first.append([seen["l_cls"].item(), scalars["l_reg"].item(), seen["pseudo_area"].item()])
    nets.classifier.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(nets.localizer.parameters(), lr=stage2.lr, momentum=stage2.momentum)
    for step in range(STEPS):
        strong = sample_strong(BATCH, stage2, torch.Generator().manual_seed(step))
        batch = Batch(*images(step), strong=strong)
        loss, out = refinement_step(
            nets.localizer,
            batch,
            lambda batch: label_views(nets.localizer, nets.classifier, batch.images, stage2),
            stage2,
            nets.localizer.mean,
        )
        move(optimizer, loss)
        second.append([out[k].item() for k in ("loss", "kept", "confidence", "box_area")])
    torch.set_num_threads(threads)
    return {"initialization": first, "refinement": second}


def move(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step against the gradient of the loss."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    found = losses()
    if "--write" in sys.argv[1:]:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
