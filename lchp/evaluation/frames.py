"""The two evaluation frames, never mixed: what of an image the networks see, its ground truth there, and the way back.

`center_crop` (resize to a square, centre crop; PSOL's habit) and `full_image` (the whole image resized to a square;
wsolevaluation's habit). Boxes are fractions of the frame. Torch is imported only to see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from lchp.boxes import Array, area
from lchp.config import DataConfig
from lchp.errors import ConfigError
from lchp.files.schema import FrameName

FRAMES: tuple[FrameName, ...] = get_args(FrameName)


@dataclass(frozen=True)
class GroundTruth:
    """Boxes of N images in one frame, padded: `boxes` N x K x 4 fractions of the frame, `valid` N x K."""

    boxes: np.ndarray
    valid: np.ndarray

    @classmethod
    def of(cls, boxes: Sequence[np.ndarray]) -> "GroundTruth":
        """Of K x 4 boxes per image, any counts."""
        out = np.zeros((len(boxes), max([1, *map(len, boxes)]), 4))
        valid = np.zeros(out.shape[:2], bool)
        for i, b in enumerate(boxes):
            out[i, : len(b)], valid[i, : len(b)] = b, True
        return cls(out, valid)

    def each(self) -> list[np.ndarray]:
        """Per image its K x 4 boxes."""
        return [b[v] for b, v in zip(self.boxes, self.valid, strict=True)]


@dataclass(frozen=True)
class Frame:
    """A frame of images that are resized to `resize` x `resize` px, for networks of `size` x `size` px.

    Raises ConfigError for an unknown name.
    """

    name: str
    resize: int
    size: int

    def __post_init__(self) -> None:
        if self.name not in FRAMES:
            raise ConfigError(f"frame = {self.name!r}: expected one of {', '.join(FRAMES)}")

    @classmethod
    def of(cls, name: str, data: DataConfig) -> "Frame":
        """As a config has it."""
        return cls(name, data.resize, data.image_size)

    @property
    def side(self) -> int:
        """Of the frame, in px of the resized image, in whose middle it lies."""
        return self.size if self.name == "center_crop" else self.resize

    @property
    def start(self) -> int:
        """Px of the resized image before the frame, in x and y."""
        return (self.resize - self.side) // 2

    def part(self, images: Array) -> Array:
        """What of resized images B x R x R x 3 lies in the frame: B x side x side x 3."""
        within = slice(self.start, self.start + self.side)
        return images[:, within, within]

    def see(self, images: Any) -> Any:
        """What the networks see of resized images, a tensor B x R x R x 3 uint8: B x 3 x size x size in [0, 1],
        channels last in memory."""
        from torch.nn.functional import interpolate

        x = to_float(self.part(images))
        if self.side == self.size:
            return x
        return interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)

    def truth(self, boxes: Sequence[np.ndarray], sizes: np.ndarray) -> GroundTruth:
        """Ground truth in the frame.

        boxes: per image K x 4 pixels of the original image (exclusive ends); sizes: N x 2 width, height in px.
        A box is clipped to the frame; one that lies outside of it altogether is no longer a target.
        """
        whole = GroundTruth.of(boxes)
        kept = self.side / self.resize
        of_image = whole.boxes / np.tile(np.asarray(sizes, np.float64).reshape(-1, 2), 2)[:, None]
        clipped = np.clip((of_image - (1 - kept) / 2) / kept, 0, 1)
        # rounding leaves slivers of what touches the frame
        return GroundTruth(clipped, whole.valid & (area(clipped) > 1e-9))

    def back(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Boxes N x 4, fractions of the frame, in px of the original images; sizes: N x 2 width, height in px."""
        return (self.start + boxes * self.side) / self.resize * np.tile(sizes, 2)


def to_float(images: Any) -> Any:
    """Tensor B x H x W x 3 uint8 to B x 3 x H x W in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)
