"""Losses of eight steps per stage, on fixed networks and images: `python tests/golden.py --write` renews the file.

The networks are torchvision's MobileNetV2 from a seeded random start, in fp32 on the CPU, so that what is tuned for the
embedded data set does not move them. A change of these numbers is a change of the maths.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from lchp.augment import sample_strong
from lchp.config import TrainConfig, override
from lchp.stages import initialization_step, refinement_step
from lchp.train import build

FILE = Path(__file__).parent / "golden" / "losses.json"
STEPS, BATCH, SIZE, CLASSES = 8, 6, 64, 3


def config() -> TrainConfig:
    return override(
        TrainConfig(),
        {
            "data.image_size": SIZE,
            "data.resize": SIZE,
            "model.classifier": "mobilenet_v2",
            "model.localizer": "mobilenet_v2",
            "model.attention_maps": 8,
            "model.pretrained": False,
            "initialization.delta": 0.85,
            "initialization.normalization": "minmax",
            "initialization.lr": 5e-4,
            # a pixel of an upsampled map is more easily pushed over the threshold by another machine's rounding
            "initialization.resolution": "native",
            "refinement.tau": 0.36,
            "refinement.lr": 1e-2,
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
    nets = build(c, CLASSES, torch.device("cpu"))
    stage1, stage2 = c.initialization, c.refinement
    optimizers = tuple(
        torch.optim.SGD(n.parameters(), lr=stage1.lr, momentum=stage1.momentum, weight_decay=stage1.weight_decay)
        for n in (nets.classifier.train(), nets.localizer.train())
    )
    first, second = [], []
    for step in range(STEPS):
        out = initialization_step(nets, optimizers, *images(step), stage1, nullcontext())
        first.append([out[k].item() for k in ("l_cls", "l_reg", "pseudo_area")])
    nets.classifier.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(nets.localizer.parameters(), lr=stage2.lr, momentum=stage2.momentum)
    for step in range(STEPS):
        strong = sample_strong(BATCH, stage2, torch.Generator().manual_seed(step))
        out = refinement_step(nets, optimizer, images(step)[0], strong, stage2, stage1.beta, nullcontext())
        second.append([out[k].item() for k in ("loss", "kept", "confidence", "box_area")])
    torch.set_num_threads(threads)
    return {"initialization": first, "refinement": second}


if __name__ == "__main__":
    found = losses()
    if "--write" in sys.argv[1:]:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
