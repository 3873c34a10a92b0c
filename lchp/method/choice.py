"""`auto`: how a teacher's attention becomes boxes, chosen by a score that reads class labels and no box.

Of a good box the classifier knows the class from what is in it, and from nothing else, and the box is no larger than
that: score = (softmax of the class on the crop - the same with the box masked out) x (1 - the box's area), in percent,
averaged over training images that the classifier is not trained on (of a small data set, over all): on those that it
has learnt it knows the class of whatever is large. Ours, after the paper's masking. (A product: in the difference of
the three, which `lchp.evaluation.metrics.unboxed` records, boxes around a part of the object and around everything
weigh as much as good ones where the classifier knows the class from the background as well; analysis/FINDINGS.md.)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lchp.boxes import area
from lchp.config import OPEN_CHOICES, InitializationConfig
from lchp.method.networks import Classifier
from lchp.method.pseudo_boxes import Snapshots, algorithm_1, mask_fill, mask_out
from lchp.method.views import crop
from lchp.system import distributed

DELTAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Candidates of delta; those of the other fields are all that these take."""
ROUNDS = (64, 128, 192)
"""Training images of each round, none in two of them; of fewer images the same shares."""
SPARED = 8
"""The images that choose are at most one in so many training images."""
FEWEST = 64
"""Fewer that are spared would tell candidates apart worse than those that are learnt."""
KEPT = (24, 8)
"""Candidates that the second and the third round score further."""
PARTS = ("crop", "masked", "area", "score")


def candidates(config: InitializationConfig, head: str) -> tuple[InitializationConfig, ...]:
    """Every config that `config` may become, its `auto` fields replaced. head: the classifier's, `bap` or `gap`."""
    lists = {name: DELTAS if name == "delta" else OPEN_CHOICES[f"initialization.{name}"] for name in config.auto_fields}
    if head == "gap" and "attention" in lists:
        lists["attention"] = ("features",)
    return tuple(replace(config, **dict(zip(lists, values, strict=True))) for values in product(*lists.values()))


def looked_at(images: int) -> list[int]:
    """Positions of the training images that scores are taken on, out of so many: the same whatever the seed of the
    training, so that what a seed changes is not what was looked at."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(0)).tolist()[: sum(ROUNDS)]


def spared(labels: Sequence[int]) -> list[int]:
    """Positions of the training images that choose, and that the classifier does not learn, of their class ids: the
    first of those that are looked at; of each class one is left. Empty where they would be fewer than FEWEST."""
    left, found = Counter(labels), []
    for position in looked_at(len(labels)):
        if left[labels[position]] > 1 and len(found) < len(labels) // SPARED:
            left[labels[position]] -= 1
            found.append(position)
    return found if len(found) >= FEWEST else []


def parted(order: Sequence[int]) -> tuple[Sequence[int], ...]:
    """The images of each round, out of those in `order`."""
    whole = min(len(order), sum(ROUNDS))
    ends = [round(whole * sum(ROUNDS[: n + 1]) / sum(ROUNDS)) for n in range(len(ROUNDS))]
    return tuple(order[start:end] for start, end in zip([0, *ends], ends, strict=False))


def candidate_boxes(
    teacher: Classifier, images: Tensor, configs: Sequence[InitializationConfig]
) -> Iterator[tuple[Tensor, Tensor]]:
    """L_r and the merged box, both B x 4, of images B x 3 x H x W by each config. The teacher sees the images once, and
    each different I_m once."""
    sources = {config.attention for config in configs}
    seen: dict[Any, dict[str, Tensor]] = {}  # of what was seen -> its attention by source

    for config in configs:

        def attend(x: Tensor, config: InitializationConfig = config) -> Tensor:
            of_mask = (config.delta, config.attention, config.normalization, config.mask, config.resolution)
            key = () if x is images else of_mask
            if key not in seen:
                out = teacher(x)
                seen[key] = {source: out.attention(source) for source in sources}
            return seen[key][config.attention]

        pseudo = algorithm_1(attend, images, config, teacher.mean)
        yield pseudo.l_r.float(), pseudo.box.float()


def known_by(
    classifier: Classifier, images: Tensor, labels: Tensor, boxes: Tensor, fill: Tensor, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Softmax of class ids B on the crops in boxes B x 4, and on the images with the boxes masked out; both B."""

    def of_class(x: Tensor) -> Tensor:
        return classifier(x).logits.float().softmax(1).gather(1, labels[:, None])[:, 0]

    return of_class(crop(images, boxes, margin)), of_class(mask_out(images, boxes, fill))


def known_by_each(
    teacher: Classifier,
    images: Tensor,
    labels: Tensor,
    configs: Sequence[InitializationConfig],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By each config: `known_by` of its boxes (B and B), and the boxes, B x 4. Boxes that two configs agree in are
    looked at once. Crops end where the boxes do: stage 2's margin is no part of what is chosen."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    fill = mask_fill(teacher.mean, configs[0])  # alike in all: no field of it can be `auto`
    for _, boxes in candidate_boxes(teacher, images, configs):
        found = next((s for s in seen if torch.equal(s[2], boxes)), None)
        if found is None:
            found = *known_by(teacher, images, labels, boxes, fill), boxes
            seen.append(found)
        yield found


def score(crop: Tensor, masked: Tensor, boxes: Tensor) -> Tensor:
    """The score of boxes B x 4, from what `known_by` says of them; B values in [-1, 1]."""
    return (crop - masked) * (1 - area(boxes))


class Choice(nn.Module):
    """Scores of candidates, round by round; a module, so that it lies in a checkpoint. `sums`: rounds x candidates x 5:
    of PARTS over images, and the number of images. `after`: epochs that the teacher has learnt."""

    sums: Tensor

    def __init__(self, config: InitializationConfig, head: str) -> None:
        super().__init__()
        self.of, self.configs = config, candidates(config, head)
        self.after = Snapshots.first(config.epochs, config.auto_after or config.epochs)
        self.register_buffer("sums", torch.zeros(len(ROUNDS), len(self.configs), len(PARTS) + 1, dtype=torch.float64))

    def note(self, of_round: int, candidate: int, crop: Tensor, masked: Tensor, boxes: Tensor) -> None:
        """Adds B images to a candidate's sums."""
        parts = crop, masked, area(boxes), score(crop, masked, boxes), torch.ones_like(crop)
        values = torch.stack(parts).sum(1)
        self.sums[of_round, candidate] += values.to(self.sums)

    def exchange(self, of_round: int) -> None:
        """Adds what the other workers noted in a round."""
        if distributed.size() > 1:
            dist.all_reduce(self.sums[of_round])

    def parts(self, of_round: int) -> Tensor:
        """Candidates x 4 (PARTS) in percent, over the images of a round and those before it; NaN where a candidate was
        not scored."""
        sums = self.sums[: of_round + 1].sum(0)
        return 100 * sums[:, :-1] / sums[:, -1:]

    def scores(self, of_round: int) -> Tensor:
        """The score of each candidate."""
        return self.parts(of_round)[:, PARTS.index("score")]

    def running(self, of_round: int) -> list[int]:
        """Positions of the candidates that are scored in a round: all, then the KEPT best; of equals the first."""
        if of_round == 0:
            return list(range(len(self.configs)))
        before, scores = self.running(of_round - 1), self.scores(of_round - 1)
        return sorted(sorted(before, key=lambda n: -float(scores[n]))[: KEPT[of_round - 1]])

    def best(self) -> int:
        """Position of the candidate with the best score of the last round."""
        last = len(ROUNDS) - 1
        return max(self.running(last), key=lambda n: float(self.scores(last)[n]))

    def config(self) -> InitializationConfig:
        """The candidate that was chosen."""
        return self.configs[self.best()]

    def record(self) -> dict[str, Any]:
        """For the summary: what was chosen, after how many of its epochs, and each candidate with the parts of its
        score in its last round."""
        names, rows = self.of.auto_fields, []
        for n, config in enumerate(self.configs):
            last = max(r for r in range(len(ROUNDS)) if n in self.running(r))
            figures = dict(zip(PARTS, self.parts(last)[n].tolist(), strict=True))
            rows.append(
                {name: getattr(config, name) for name in names}
                | {name: round(value, 2) for name, value in figures.items()}
                | {"images": int(self.sums[: last + 1, n, -1].sum())}
            )
        values = {name: getattr(self.config(), name) for name in names}
        return {"values": values, "after": self.after, "candidates": rows}
