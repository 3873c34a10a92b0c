"""Licences of the packages that constraints.txt pins, as their own metadata state them.

`python tests/licences.py --write` renews LICENSES.md, in an environment that holds them all (extras `test` and `docs`,
and what these include, on Linux).
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "LICENSES.md"
STATED_ELSEWHERE = {
    "cuda-toolkit": "NVIDIA Proprietary (its metadata names none; it only requires the nvidia-* packages)"
}
REFUSED = re.compile(r"\b(A?GPL|GNU (Affero )?General Public|SSPL|Server Side Public|CC-BY-NC|UNKNOWN)", re.IGNORECASE)
"""Licences that would bind what uses lchp, and none at all. (The LGPL and the MPL bind the package itself only.)"""
HEAD = """# Licences of the packages lchp uses

Those that `constraints.txt` pins: what lchp needs, its extras, and what the tests need. Made from the packages' own
metadata by `python tests/licences.py --write` (pip-licenses); a test holds it against what is installed, and refuses
strong copyleft and packages without a licence. The NVIDIA packages come with PyTorch's build for GPUs.

"""


def normalised(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> Counter[str]:
    """Names in constraints.txt, and how many versions of each it pins: by Python's version, some have several."""
    return Counter(normalised(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines())


def installed() -> dict[str, str]:
    """Name -> licence of the pinned packages that are installed here."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    licences: dict[str, str] = {normalised(one["Name"]): one["License"] for one in found} | STATED_ELSEWHERE
    there = {normalised(one["Name"]) for one in found} & pinned().keys()
    return {name: licences[name] for name in sorted(there)}


def refused(licences: Mapping[str, str]) -> dict[str, str]:
    """Packages that lchp must not need, with their licences; of several to choose from, all must be refused."""
    return {n: text for n, text in licences.items() if all(REFUSED.search(part) for part in text.split(" OR "))}


def as_table(licences: Mapping[str, str]) -> str:
    """LICENSES.md."""
    return (
        HEAD + tabulate(sorted(licences.items()), ["package", "licence"], tablefmt="pipe", disable_numparse=True) + "\n"
    )


def read_table() -> dict[str, str]:
    """Name -> licence as LICENSES.md has them."""
    rows = [line.strip("|").split("|") for line in TABLE.read_text().splitlines() if line.startswith("|")]
    return {name.strip(): licence.strip() for name, licence in rows[2:]}


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        TABLE.write_text(as_table(installed()))
    print(refused(installed()) or f"{len(installed())} packages, none refused")
