"""What CONTRIBUTING.md adds, added to a copy of the package and used there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks
from squares import write_images

PAGE = ROOT / "CONTRIBUTING.md"
pytestmark = pytest.mark.slow

PROGRAM = """
import csv, json, sys
from pathlib import Path

import torch
from report_records import store
from squares import small_config

import lchp
from lchp.config import override, preset
from lchp.data import load
from lchp.report.tables.write import render_tables
from lchp.config import PRESETS
from lchp.training.chain import kinds_of
from lchp.training.run import train

images, out = map(Path, sys.argv[1:])
listed = {
    "data.name": "listed",
    "method.name": "feature_norm",
    "model.classifier": "tiny_deeper",
    "initialization.epochs": 1,
}
compared = train(small_config(images, listed), output=out / "compared")
data = load(compared.config.data)
census = small_config(images, {"initialization.epochs": 1, "refinement.epochs": 1, "evaluation.census": True})
own = train(census, output=out / "own")
table = torch.load(out / "own" / "checkpoints" / "census.pt", weights_only=True)["modules"]["census"]
store(out / "records", override(preset("parts"), {"initialization.alpha": 5.0}))
print(json.dumps({
    "package": lchp.__file__,
    "classes": data.class_names,
    "images": [len(data.train), len(data.test)],
    "compared": sorted(compared.summary["results"]),
    "kinds": kinds_of(census),
    "stages": [json.loads(line)["stage"] for line in (out / "own" / "metrics.jsonl").read_text().splitlines()],
    "boxes": [int(v.isfinite().all()) for v in table.values() if v.is_floating_point()],
    "results": sorted(own.summary["results"]),
    "table": render_tables(out / "records", PRESETS["parts"], (9,)),
}))
"""


def apply(language: str, text: str, root: Path) -> None:
    """A new file, or lines added between (or in place of) others, which stand in the file once."""
    if language == "python":
        path = root / text.splitlines()[0].removeprefix("# ")
        assert not path.exists()
        path.write_text(text.partition("\n")[2])
        return
    _, named, *lines = text.splitlines(keepends=True)
    path = root / named.removeprefix("+++ b/").strip()
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert path.read_text().count(before) == 1, f"{path}: not once:\n{before}"
    path.write_text(path.read_text().replace(before, after))


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program says that uses all that the page adds."""
    root, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("out")
    shutil.copytree(ROOT / "lchp", root / "lchp", ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(PAGE):
        if block.language in ("python", "diff"):
            apply(block.language, block.text, root)
    images = write_images(tmp_path_factory.mktemp("images"))
    paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    rows = [f"{path.split('/')[0]},{path},{path.split('/')[1]}" for path in paths]
    (images / "images.csv").write_text("\n".join(["split,path,class", *rows]) + "\n")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(images), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{ROOT / 'tests'}"},
        cwd=root,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert Path(found["package"]).is_relative_to(root)
    return found


def test_the_method_and_the_backbone_that_are_added_train(used: dict[str, Any]) -> None:
    assert used["compared"] == ["pseudo_label"]


def test_the_data_set_that_is_added_is_read(used: dict[str, Any]) -> None:
    assert used["classes"] == ["c0", "c1", "c2"]
    assert used["images"] == [24, 9]


def test_the_table_that_is_added_shows_what_was_run(used: dict[str, Any]) -> None:
    assert re.search(r"^alpha +LCHP-I", used["table"], re.MULTILINE)
    assert re.search(r"^5 +\d+\.\d\d \(1\)", used["table"], re.MULTILINE)
    assert re.search(r"^20 +not run", used["table"], re.MULTILINE)


def test_the_link_that_is_added_is_a_part_of_a_run(used: dict[str, Any]) -> None:
    assert used["kinds"] == ["classifier", "localizer", "census", "refinement"]
    assert used["stages"] == ["initialization", "regression", "census", "refinement"]
    assert used["boxes"] == [1]
    assert used["results"] == ["lchp_i", "lchp_r", "pseudo_label"]


def test_a_block_that_fits_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\ntwo\n")
    apply("diff", "--- a/a.py\n+++ b/a.py\n one\n+more\n two\n", tmp_path)
    assert (tmp_path / "a.py").read_text() == "one\nmore\ntwo\n"
    with pytest.raises(AssertionError, match="not once"):
        apply("diff", "--- a/a.py\n+++ b/a.py\n one\n+more\n two\n", tmp_path)
