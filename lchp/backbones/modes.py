"""Training and inference mode of networks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def inference_mode_of(*networks: nn.Module) -> Iterator[None]:
    """Within the context the networks are in inference mode; then each of their modules is in its own mode again."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
