"""LCHP: Sun and Zhu, *Learning Consistency from High-quality Pseudo-labels for Weakly Supervised Object Localization*.

Its classifier is taught beside a moving average of itself (the teacher theta_2, Eq. 7), whose pseudo boxes are noted
for every view; a localizer regresses them (Eq. 3), and stage 2 refines it (Eq. 4-6). The steps are `lchp.method.steps`.
"""

from typing import Any

from lchp.config import TrainConfig
from lchp.method.definition import Method, Scheme, Teaching
from lchp.method.pseudo_boxes import make_teacher, update_teacher
from lchp.method.steps import classifier_step
from lchp.method.view_table import ViewTable


def teach(classifier: Any, config: TrainConfig, images: int) -> Teaching:
    """Stage 1's classifier with its teacher, and a table of the pseudo boxes of `images` training images."""
    first = config.initialization
    teacher, boxes = make_teacher(classifier), ViewTable(first.epochs, images, 4)
    return Teaching(
        lambda net, batch, epoch: classifier_step(net, teacher, boxes, batch, epoch, first),
        {"teacher": teacher, "boxes": boxes},
        lambda: update_teacher(teacher, classifier, first.beta, first.teacher_buffers),
    )


METHOD = Method("lchp", "LCHP", Scheme("lchp", teach=teach), None, head=None, complete=True)
