"""Grad-CAM: Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization*, ICCV
2017.

Eq. 1: alpha_k = 1 / (h w) sum_ij d logit_y / d A^k_ij; Eq. 2: the map is ReLU(sum_k alpha_k A^k). A is the trunk's
output, the last convolutional layer. Any head will do; under GAP and one linear layer the map is ReLU(CAM) / (h w).

The well-kept library for this, `grad-cam` (1.5.7), was tried and is not used. For 32 images of 160 px (MobileNetV2,
GAP, one core; `GradCAM(model, [classifier.trunk])(images, targets)` and `grad_cam` in turn, median of 7) it takes 1.7 s
and this 0.31 s, of which 0.30 s are the forward pass: the library goes back through the whole trunk, which the map does
not need. It also leaves gradients in the parameters, and hands its maps out stretched to [0, 1] and enlarged. A test
holds this file and layer_cam.py to numbers made with the library.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lchp.baselines.cam import PLAIN, class_activation_map
from lchp.method.definition import Method
from lchp.method.networks import Classifier

Gradients = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(classifier, images, class ids B) to the trunk's features A and d logit_y / d A of each image's class."""


def feature_gradients(classifier: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The trunk's features A, and d logit_y / d A of each image's class: both B x C x h x w.

    Works in any gradient mode of the caller's, leaves no gradient in a parameter, and keeps no graph of the trunk.
    """
    assert isinstance(classifier, Classifier)

    def begin(_trunk: nn.Module, _inputs: object, features: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # the graph begins here, with the head; no_grad's end sets this back
        return features.detach().requires_grad_()

    with torch.inference_mode(False), torch.no_grad(), classifier.trunk.register_forward_hook(begin):
        out = classifier(images)
        of_label = F.one_hot(labels, out.logits.shape[1]).to(out.logits)
        (gradients,) = torch.autograd.grad(out.logits, out.features, of_label)
    return out.features.detach().float(), gradients.float()


def gap_gradients(classifier: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `feature_gradients`, without a backward pass: under GAP and one linear layer y = sum_k w_k mean_ij A^k_ij, so
    that d y / d A^k_ij = w_k / (h w) at every position. The gradients are B x C x 1 x 1."""
    assert isinstance(classifier, Classifier)
    assert classifier.head == "gap"
    features = classifier(images).features.float()
    weights = classifier.linear.weight[labels].float()[..., None, None]
    return features, weights / (features.shape[2] * features.shape[3])


def grad_cam(
    classifier: nn.Module, images: Tensor, labels: Tensor, gradients_of: Gradients = feature_gradients
) -> Tensor:
    """Eq. 1 and 2 for each image's class; a ScoreMap."""
    features, gradients = gradients_of(classifier, images, labels)
    alpha = gradients.mean((2, 3))  # B x C
    return class_activation_map(features, alpha).relu()


METHOD = Method(
    "grad_cam", "Grad-CAM", PLAIN, grad_cam, gradients=True, exported=partial(grad_cam, gradients_of=gap_gradients)
)
