"""InfoCAM: Qin, Kim and Gedeon, *Rethinking Softmax with Cross-Entropy: Neural Network Classifier as Mutual Information
Estimator*, 2020 (arXiv 1911.10688; *Informative Class Activation Maps*, arXiv 2106.10472).

For balanced classes a classifier's logits estimate the point-wise mutual information of image and label up to a term
that all labels share, so that of two labels PMI(x, y) - PMI(x, y') = logit_y - logit_y'. Under a GAP head this is a
mean over positions, and the share of a region R in it is the sum over R of CAM_y - CAM_y'. The map gives this for the
region around each position; y' is the label that the classifier holds for the least likely.

Region and y' are those of the authors' code for Tiny-ImageNet (kfzyqin/Research-Softmax-with-Mutual-Information,
info_cam/Tiny-ImageNet/utils/util_cam.py, flags --conv-cam and --max-cam). Its code for CUB differs: a region of 4 x 4
with a padding of 3, and of its scripts only run_resnet_no_adl.sh says --max-cam; the others there add up CAM_y alone.
This departs from both in two things. Their padding (2 and 3) makes the map larger than the features, which moves
everything towards the centre once it is resized to the image: here it is 1. And y' is never y itself, for which the map
would be 0 everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.baselines.cam import PLAIN, class_activation_map
from lchp.method.definition import Method
from lchp.method.networks import Classifier

REGION = 3
"""Side of R in cells of the map."""


def least_likely(logits: Tensor, labels: Tensor) -> Tensor:
    """y' of B x classes logits: the label with the smallest logit that is not the image's own (B)."""
    return logits.scatter(1, labels[:, None], torch.inf).argmin(1)


@torch.no_grad()
def info_cam(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """PMI(R, y) - PMI(R, y') of the region around each position, up to the factor 1 / (h * w); a ScoreMap."""
    assert isinstance(classifier, Classifier)
    out, weights = classifier(images), classifier.linear.weight
    difference = class_activation_map(out.features, weights[labels] - weights[least_likely(out.logits, labels)])
    # beyond the border nothing is added: the mean counts the padding's zeros
    return REGION**2 * F.avg_pool2d(difference[:, None], REGION, stride=1, padding=REGION // 2)[:, 0]


METHOD = Method("info_cam", "InfoCAM", PLAIN, info_cam)
