"""One image's way through Algorithm 1 and stage 2, by the trained networks and the very functions of training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lchp.config import TrainConfig
from lchp.errors import RunError
from lchp.files.runs import CHECKPOINTS, PREDICTIONS, link_folder
from lchp.report.figures.images import Predicted
from lchp.report.figures.style import PAGE, Drawing, draw_box, draw_picture, style

if TYPE_CHECKING:
    from torch import Tensor

AGREEMENT = 0.05
"""Largest difference to the recorded boxes (fractions) that another device or precision may make."""


@dataclass(frozen=True)
class Steps:
    """What happens to one image of S x S px. Pictures are S x S x 3 in [0, 1], maps S x S; boxes are 4 fractions.

    a_r, a_m: attention of the image and of the masked image; found_r, found_m: their foreground (bool); pseudo: L_r
    merged with L_m; b: LCHP-I's box, the first that teaches in stage 2; confidence: maximum softmax on the crop in b;
    strong: S(I_r); target: S(b), clipped to the view; loc: LCHP-R's box of S(I_r); result: LCHP-R's box of I_r.
    """

    image: np.ndarray
    a_r: np.ndarray
    found_r: np.ndarray
    l_r: np.ndarray
    masked: np.ndarray
    a_m: np.ndarray
    found_m: np.ndarray
    l_m: np.ndarray
    pseudo: np.ndarray
    b: np.ndarray
    crop: np.ndarray
    confidence: float
    strong: np.ndarray
    target: np.ndarray
    loc: np.ndarray
    result: np.ndarray


def follow(run: Path, config: TrainConfig, pixels: np.ndarray, seed: int) -> Steps:
    """Takes one picture (H x W x 3 uint8, the whole of its frame) through both stages on the CPU.

    config: the run's, with what was chosen; seed: of the strong view. Raises RunError where the run's checkpoints, or
    those of its stage 1, are missing or damaged.
    """
    import copy

    import torch

    from lchp.deploy.trained import load_run, localizer_checkpoint
    from lchp.evaluation.frames import Frame
    from lchp.method.losses import confidence, foreground
    from lchp.method.pseudo_boxes import make_teacher, upsample
    from lchp.method.steps import padding, predict_boxes, pseudo_boxes
    from lchp.method.views import crop, sample_strong, strong_view
    from lchp.system.devices import autocast, resolve_precision
    from lchp.training.chain import STAGES
    from lchp.training.checkpoints import load_checkpoint

    stage1 = link_folder(run, "classifier") / CHECKPOINTS / f"{STAGES['classifier']}.pt"
    for path in (link_folder(run, "refinement") / CHECKPOINTS / f"{STAGES['refinement']}.pt", stage1):
        if not path.is_file():
            raise RunError(f"{path}: no such checkpoint, which the panel needs")
    device = torch.device("cpu")
    trained = load_run(run, device)  # theta_1 and LCHP-R, checked
    if trained.localizer is None or trained.result != "lchp_r":
        raise RunError(f"{run}: stage 2 is not complete, which the panel needs; finish it with lchp train and --resume")
    teacher, lchp_i = make_teacher(trained.classifier), copy.deepcopy(trained.localizer)
    teacher.load_state_dict(load_checkpoint(stage1)["modules"]["teacher"])
    lchp_i.load_state_dict(localizer_checkpoint(run, config)[1]["modules"]["localizer"])
    first, second = config.initialization, config.refinement
    i_r = Frame.of("full_image", config.data).see(torch.from_numpy(pixels.copy())[None])
    size = (i_r.shape[2], i_r.shape[3])
    strong = sample_strong(1, second, torch.Generator().manual_seed(seed))
    with torch.inference_mode(), autocast(device, resolve_precision(config.precision, device)):
        pseudo = pseudo_boxes(teacher, i_r, first)
        a_r, a_m = (upsample(a, size) for a in (pseudo.attention, teacher(pseudo.masked).attention(first.attention)))
        reference = a_r if first.second_pass == "raw" else None
        found_r = foreground(a_r, first.threshold, first.normalization)
        found_m = foreground(a_m, first.threshold, first.normalization, reference)
        b = predict_boxes(lchp_i, i_r)
        cropped = crop(i_r, b, second.crop_margin)
        view = strong_view(i_r, strong, padding(trained.localizer.mean, second), second.augmenter)
        p = confidence(trained.classifier(cropped).logits)
        loc, result = predict_boxes(trained.localizer, view), predict_boxes(trained.localizer, i_r)
    boxes = [
        x[0].float().numpy() for x in (pseudo.l_r, pseudo.l_m, pseudo.box, b, strong.axis_map().boxes(b), loc, result)
    ]
    l_r, l_m, merged, taught, target, on_view, final = boxes
    return Steps(
        image=_picture(i_r),
        a_r=a_r[0].numpy(),
        found_r=found_r[0].numpy(),
        l_r=l_r,
        masked=_picture(pseudo.masked),
        a_m=a_m[0].numpy(),
        found_m=found_m[0].numpy(),
        l_m=l_m,
        pseudo=merged,
        b=taught,
        crop=_picture(cropped),
        confidence=float(p[0]),
        strong=_picture(view),
        target=target.clip(0, 1),
        loc=on_view,
        result=final,
    )


def _picture(images: "Tensor") -> np.ndarray:
    return images[0].float().permute(1, 2, 0).clamp(0, 1).numpy()


def panel(steps: Steps, config: TrainConfig, predicted: Predicted, position: int, name: str, about: str) -> Drawing:
    """The paper's Figure 1 for one image: stage 1 above, stage 2 below.

    about: a sentence that says which run this is. Raises RunError where the checkpoints give another box than the run
    recorded.
    """
    recorded = predicted.boxes["lchp_r"][position]
    if np.abs(recorded - steps.result).max() > AGREEMENT:
        raise RunError(
            f"{predicted.run}: its checkpoints give another box than {PREDICTIONS} for image "
            f"{predicted.image_ids[position]}; they are not of one training"
        )
    truth = () if predicted.truth is None else predicted.truth[position]
    first, second = config.initialization, config.refinement
    taught = "teaches" if steps.confidence > second.tau else "does not teach"
    with style():
        figure = Figure(figsize=(PAGE, 3.25), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)  # pyright: ignore
        axes = figure.subplots(2, 5)
        _show(axes[0, 0], "image $I_r$", steps.image, [("ground_truth", box) for box in truth])
        _attention(axes[0, 1], r"attention $A_r > \delta$, box $L_r$", steps.image, steps.a_r, steps.found_r, steps.l_r)
        _show(axes[0, 2], "masked image $I_m$", steps.masked, [])
        if first.boxes == "single":
            words, l_m = "attention $A_m$ (not used)", None
        elif steps.found_m.any():
            words, l_m = r"attention $A_m > \delta$, box $L_m$", steps.l_m
        else:
            words, l_m = r"attention $A_m$: none $> \delta$", None
        _attention(axes[0, 3], words, steps.masked, steps.a_m, steps.found_m, l_m)
        merged = "pseudo box: $L_r$" if l_m is None else "pseudo box: $L_r$, $L_m$ merged"
        _show(axes[0, 4], merged, steps.image, [("pseudo_label", steps.pseudo)])
        _show(axes[1, 0], "LCHP-I's box $b$", steps.image, [("lchp_i", steps.b)])
        _show(axes[1, 1], f"crop: confidence {steps.confidence:.2f}", steps.crop, [])
        _show(axes[1, 2], "strong view $S(I_r)$, $S(b)$", steps.strong, [("lchp_i", steps.target)])
        _show(axes[1, 3], "LCHP-R on $S(I_r)$", steps.strong, [("lchp_r", steps.loc)])
        _show(axes[1, 4], "LCHP-R", steps.image, [*(("ground_truth", box) for box in truth), ("lchp_r", steps.result)])
        for ax, stage in ((axes[0, 0], "stage 1"), (axes[1, 0], "stage 2")):
            ax.set_ylabel(stage, fontweight="bold")
    caption = (
        f"One test image's way through LCHP (image {predicted.image_ids[position]}, frame {predicted.frame}). Above, "
        f"Algorithm 1 by the teacher at delta {first.threshold:g}: attention (bright), its part above delta "
        "(outlined), the box around that, the same again with that box masked, and the pseudo box. Below, stage 2: "
        f"LCHP-I's box b, which by the confidence of its crop ({steps.confidence:.2f}; tau {second.tau:g}) {taught}; "
        f"the strong view with b in it as target; LCHP-R's box of that view, and of the image. {about}"
    )
    return Drawing(name, caption, figure)


def _show(ax: Axes, title: str, pixels: np.ndarray, boxes: list[tuple[str, np.ndarray]]) -> None:
    draw_picture(ax, pixels)
    for name, box in boxes:
        draw_box(ax, box, name, 0.75)
    ax.set_title(title, fontsize=7, pad=3)


def _attention(
    ax: Axes, title: str, pixels: np.ndarray, attention: np.ndarray, found: np.ndarray, box: np.ndarray | None
) -> None:
    """Attention over a grey copy of the picture, from its least (transparent) to its greatest."""
    grey = pixels.mean(2)
    draw_picture(ax, grey, cmap="gray", vmin=0, vmax=1)
    low, high = float(attention.min()), float(attention.max())
    share = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    draw_picture(ax, share, cmap="inferno", vmin=0, vmax=1, alpha=0.25 + 0.5 * share)
    if found.any() and not found.all():
        h, w = found.shape
        centres = ((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h)
        ax.contour(*centres, found.astype(float), levels=[0.5], colors=["white"], linewidths=0.7)
    if box is not None:
        draw_box(ax, box, "pseudo_label", 0.75)
    ax.set_title(title, fontsize=7, pad=3)
