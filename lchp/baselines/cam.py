"""CAM: Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016; and plain classification.

Eq. 2: M_c(x, y) = sum_k w_k^c f_k(x, y), on a network whose head is global average pooling and one linear layer. As in
the paper the bias is left out. It departs in the network, which is any registered trunk (the paper's added 3x3
convolution is in the backbones `vgg16_gap` and `googlenet_gap`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.method.definition import Batch, Method, Scheme
from lchp.method.networks import Classifier


def plain_loss(classifier: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy on the images as they are."""
    return F.cross_entropy(classifier(batch.images).logits.float(), batch.labels)


PLAIN = Scheme("plain", plain_loss)


def class_activation_map(features: Tensor, weights: Tensor) -> Tensor:
    """Eq. 2: features B x C x h x w and each image's class weights B x C to maps B x h x w."""
    with torch.autocast(features.device.type, enabled=False):  # which would round both again
        return torch.einsum("bchw,bc->bhw", features.float(), weights.float())


@torch.no_grad()
def cam(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """CAM of each image's class; a ScoreMap."""
    assert isinstance(classifier, Classifier)
    return class_activation_map(classifier(images).features, classifier.linear.weight[labels])


def inner_cam(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """CAM of the `classifier` that a method trains with layers of its own; a ScoreMap."""
    return cam(model.get_submodule("classifier"), images, labels)


METHOD = Method("cam", "CAM", PLAIN, cam)
