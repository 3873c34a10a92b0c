"""LayerCAM: Jiang et al., *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*, IEEE TIP 2021.

Each position has its own weight, its gradient where that is positive: M = ReLU(sum_k ReLU(g^k_ij) A^k_ij), with g = d
logit_y / d A. Under GAP and one linear layer g is the same at every position, so that the map is CAM without the
channels of negative weight.

The paper applies this to any layer and can join the maps of several. What its authors publish for localization
(PengtaoJiang/layercam_loc, scripts/test.py) takes one layer, by default VGG16's last convolution, and so does this: the
trunk's output. It departs in that g is taken there, whereas the code takes it after the pooling that follows and
enlarges it (no trunk here ends with a pooling), and in that maps of ten crops are not added up. The library `grad-cam`
is not used for the reasons in grad_cam.py.
"""

from functools import partial

from torch import Tensor, nn

from lchp.baselines.cam import PLAIN
from lchp.baselines.grad_cam import Gradients, feature_gradients, gap_gradients
from lchp.method.definition import Method


def layer_cam(
    classifier: nn.Module, images: Tensor, labels: Tensor, gradients_of: Gradients = feature_gradients
) -> Tensor:
    """M of each image's class; a ScoreMap."""
    features, gradients = gradients_of(classifier, images, labels)
    return (gradients.relu() * features).sum(1).relu()


METHOD = Method(
    "layer_cam", "LayerCAM", PLAIN, layer_cam, gradients=True, exported=partial(layer_cam, gradients_of=gap_gradients)
)
