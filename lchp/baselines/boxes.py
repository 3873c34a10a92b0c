"""Boxes of a file: LCHP's localizer and refinement on pseudo boxes of any detector or annotator.

The file (`method.boxes`, see `lchp.data.box_reader`) takes the place of Algorithm 1: its boxes are of whole images, and
every view shows its part of them. The localizer regresses them by Eq. 3's L_reg, to which an image without a box adds
nothing; stage 2 refines it as it stands in the paper. The class, and the confidence of stage 2, come from a classifier
that is trained plainly.
"""

from lchp.baselines.cam import PLAIN
from lchp.method.definition import Method

METHOD = Method("boxes", "Boxes of a file", PLAIN, None, complete=True, from_file=True)
