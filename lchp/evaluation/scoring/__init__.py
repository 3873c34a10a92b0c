"""The evaluation alone, of anybody's results (`lchp score`): score maps by wsolevaluation's protocol, or boxes."""

from lchp.evaluation.scoring.boxes import score_boxes
from lchp.evaluation.scoring.maps import score_maps
from lchp.evaluation.scoring.masks import score_masks

__all__ = ["score_boxes", "score_maps", "score_masks"]
