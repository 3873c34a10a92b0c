"""A finished run's score maps as files in wsolevaluation's format, which `lchp score` reads, and so does that code."""

from pathlib import Path

import numpy as np
import torch

from lchp.data import load
from lchp.data.images import open_images
from lchp.deploy.predict import published
from lchp.deploy.trained import load_classifier
from lchp.errors import RunError
from lchp.evaluation.inference import each_score_map
from lchp.files.targets import require_new_folder
from lchp.system.devices import autocast, resolve_precision
from lchp.system.progress import tqdm
from lchp.training.chain import label, method_of
from lchp.training.map_boxes import map_source


def write_score_maps(run: Path, output: Path, device: torch.device, *, show_progress: bool = False) -> int:
    """Writes `output`/<image id>.npy for every test image of a compared method's run: 224 x 224 float32 in [0, 1], of
    the image's own class, the whole image squeezed to a square. Returns how many. Ids are those of predictions.parquet,
    which only for the data sets `wsol` and `wsol_fullsup` are wsolevaluation's.

    `output` appears only when all are written. Raises RunError where the run's method has no score maps (LCHP, PSOL),
    ConfigError where `output` is not empty, and what `lchp.deploy.trained.load_run` raises.
    """
    from lchp.evaluation.scoring.scoremaps import in_its_frame  # OpenCV, as in lchp.training.measure

    require_new_folder(output)
    classifier, config, _ = load_classifier(run, device)
    maps = map_source(method_of(config), classifier)
    if maps is None:
        raise RunError(f"{run}: a run of {label(config)}, which has no score maps")
    data = config.data
    images = open_images(load(data).test, data, show_progress=show_progress)
    each = each_score_map(
        maps,
        images,
        data.image_size,
        batch_size=config.evaluation.batch_size,
        workers=data.workers,
        device=device,
        autocast=autocast(device, resolve_precision(config.precision, device)),
    )
    with published(output) as folder:
        assert folder is not None
        for i, scoremap in tqdm(each, "score maps", len(images), unit="img", disable=None if show_progress else True):
            file = folder / f"{images.split.image_ids[i]}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, in_its_frame(scoremap))
    return len(images)
