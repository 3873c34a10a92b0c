"""LCHP: Sun and Zhu, *Learning Consistency from High-quality Pseudo-labels for Weakly Supervised Object Localization*.

Its classifier is taught beside a moving average of itself (the teacher theta_2, Eq. 7), whose pseudo boxes are noted
for every view; a localizer regresses them (Eq. 3), and stage 2 refines it (Eq. 4-6). The steps are `lchp.method.steps`.
"""

from typing import Any

from lchp.config import TrainConfig
from lchp.method.definition import Method, Scheme, Teaching
from lchp.method.pseudo_boxes import Snapshots, make_teacher, of_masks, update_teacher
from lchp.method.steps import classifier_step
from lchp.method.view_table import ViewTable


def teach(classifier: Any, config: TrainConfig, images: int) -> Teaching:
    """Stage 1's classifier with its teacher. `boxes`: a table of the pseudo boxes of `images` training images; or,
    where a link of their own makes them (see initialization.mask_delta), `teachers`: the teacher after the epochs."""
    first = config.initialization
    teacher = make_teacher(classifier)
    updated = lambda: update_teacher(teacher, classifier, first.beta, first.teacher_buffers)  # noqa: E731
    if first.mask_delta is None:
        boxes = ViewTable(first.epochs, images, 4)
        return Teaching(
            lambda net, batch, epoch: classifier_step(net, teacher, boxes, batch, epoch, first),
            {"teacher": teacher, "boxes": boxes},
            updated,
            boxes.exchange,
        )
    masks, teachers = of_masks(first), Snapshots(teacher, first.epochs)
    return Teaching(
        lambda net, batch, epoch: classifier_step(net, teacher, None, batch, epoch, masks),
        {"teacher": teacher, "teachers": teachers},
        updated,
        lambda epoch: teachers.note(epoch, teacher),
    )


METHOD = Method("lchp", "LCHP", Scheme("lchp", teach=teach), None, head=None, complete=True)
