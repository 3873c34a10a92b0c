"""`lchp sweep`."""

from collections.abc import Sequence

from lchp.console import guarded

USAGE = """usage: lchp sweep NAME | FILE.toml | --grid FIELD=VALUE,VALUE ...   [OPTIONS]

Train many settings, each part of them once, on every GPU there is.

lchp sweep delta_tau                                                # a sweep of the paper's tables
lchp sweep --grid refinement.tau=0.5,0.9 --grid initialization.alpha=5,20 --seeds 3
lchp sweep mine.toml                                                # yours, from a file
lchp sweep --grid refinement.tau=0.5,0.9 --write mine.toml          # such a file, from flags
"""


def run_sweep(arguments: Sequence[str]) -> int:
    """Train many settings, each part of them once: the sweeps of the paper's tables, or your own axes."""
    return guarded(lambda: _started(list(arguments)), error="lchp: error")


def _started(arguments: list[str]) -> int:
    from lchp.harness.grids import NAMES, SEARCH, SWEEPS, run_named, search_space  # Ray, torch: seconds
    from lchp.harness.own import run_own
    from lchp.harness.script import Program

    if not arguments or arguments[0] in ("-h", "--help"):
        about = {name: sweep.cells.__doc__ for name, sweep in SWEEPS.items()} | {SEARCH: search_space.__doc__}
        width = max(map(len, NAMES))
        listed = "\n".join(
            f"  {name:<{width}}  {' '.join((about[name] or '').partition(chr(10) * 2)[0].split())}" for name in NAMES
        )
        print(f"{USAGE}\nnames:\n{listed}\n\nlchp sweep NAME --help and lchp sweep --grid --help list the options")
        return 0
    first, *rest = arguments
    if first in NAMES:
        return run_named(first, rest, Program(("lchp", "sweep", first)))
    return run_own(arguments)
