"""What a training step of each compared method's classifier costs, as a multiple of plain classification's.

python analysis/method_costs.py                                     # CPU: MobileNetV2 at 160 px; a few minutes
python analysis/method_costs.py --device cuda --backbone inception_v3 --size 448

LCHP's is its whole stage 1: classifier, teacher and localizer. Methods that share a scheme share its classifier: CAM,
Grad-CAM, LayerCAM, InfoCAM and PSOL cost what plain classification does.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import benchmark
from tabulate import tabulate
from torch import Tensor, nn

from lchp.baselines import METHODS, Method
from lchp.config import override
from lchp.console import guarded, parse
from lchp.files.runs import write_json
from lchp.files.targets import json_of, require_file
from lchp.method.batch import Batch
from lchp.method.definition import Loss
from lchp.training.chain import chain_of
from lchp.training.networks import build


def step_of(bench: benchmark.Bench, found: Method, loss: Loss) -> Callable[[], Any]:
    """A step of the method's classifier on one ready batch."""
    chain = chain_of(override(bench.config, {"method.name": found.name}), "")
    classifier = build(chain, bench.flags.classes, bench.device).classifier.train()
    batch = replace(bench.views(0), progress=0.5)

    def step(net: nn.Module, batch: Batch, _: int) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(net, batch), {}

    trained = bench.trained(classifier, step)
    return lambda: trained(batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes --json; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: benchmark.Flags = parse(benchmark.Flags, arguments, "method_costs.py")
        if flags.json:
            require_file(flags.json, "json", json_of("plain", "lchp"), "result of this script")
        schemes = {m.scheme.name: (m, m.scheme.loss) for m in METHODS.values() if m.scheme.teach is None}
        names = ["plain", *sorted(schemes.keys() - {"plain"})]
        with tempfile.TemporaryDirectory() as folder:
            bench = benchmark.open_bench(replace(flags, images=max(flags.images, flags.batch_size)), Path(folder))
            stage1, view = benchmark.ours_stage1(bench, bench.networks()), bench.views(0)
            bodies = [*(step_of(bench, *schemes[name]) for name in names), lambda: stage1(repeat(view))]
            times = benchmark.in_turns(bench, *bodies)
        plain = times[0].seconds
        ratios = {
            name: [t / p for t, p in zip(found.seconds, plain, strict=True)]
            for name, found in zip([*names, "lchp"], times, strict=True)
        }
        rows = [
            [name, f"{1e3 * found.median:.0f}", f"{statistics.median(each):.1f} ({min(each):.1f}-{max(each):.1f})"]
            for (name, each), found in zip(ratios.items(), times, strict=True)
        ]
        print(tabulate(rows, ["scheme", "ms per step", "to plain (min-max)"], colalign=("left", "right", "right")))
        if flags.json:
            write_json(flags.json, {name: statistics.median(each) for name, each in ratios.items()})
        return 0

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
