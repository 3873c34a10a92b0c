"""Names, paths and errors of a record are text in everything that is made of it, whatever they look like."""

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_records import analysis_script, seal, store, write_run, write_sweep

from lchp.config import override, preset
from lchp.files.runs import append_metrics, read_json, write_json
from lchp.report.flags import Source
from lchp.report.page.make import PageOptions, gather, render
from lchp.report.paper import read_paper
from lchp.report.read import clean, collect
from lchp.report.tables.grid import Row, Section, Table, TableCell
from lchp.report.tables.render import FORMATS, to_csv, to_markdown
from lchp.report.tables.write import write_tables

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\\input{/etc/passwd} \\frac ^^5cinput{/etc/passwd}",
    "$x$ & % # _ ^ ~ { } --- ?` $\\frac$",
    "a|b `c` **d** ~~e~~ [f](javascript:alert(1))",
    "=cmd|' /C calc'!A0",
    "one\n\n## two\r\n- three",
    "\x1b[31mred\x1b]0;title\x07\x9b1m",
    "javascript:alert(1)",
    "&lt;b&gt; \u202e\u2028 \xa4\xad\xff \N{PILE OF POO}",
)
TABLE_TAGS = {"figure", "figcaption", "b", "u", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
TAME = tuple(f"tame {i}" for i in range(len(HOSTILE)))


def file_name(texts: Sequence[str]) -> str:
    return "=" + " ".join(texts).replace("/", "_")[:200]


def write_records(parent: Path, texts: Sequence[str]) -> Path:
    """Two records of one setting with other figures (of which a note tells), a sweep with a failed cell, and a damaged
    run folder (a problem), with such texts wherever nothing checks them."""
    every, file = " ".join(texts), file_name(texts)
    storage, base = parent / file, preset("cub")
    places = {"data.root": f"/data/{file}", "data.cache": file, "model.weights_dir": f"~/{file}"}
    config, failed = override(base, places), override(base, {"refinement.tau": 0.5})
    run = store(storage, config)
    again = write_run(storage / file, config, {"pseudo_label": 1.0, "lchp_i": 60.0, "lchp_r": 70.0})
    for folder in (run, again):
        environment = read_json(folder / "environment.json") | {"versions": {"lchp": every, every: every}}
        environment |= dict.fromkeys(("git_revision", "device", "platform", "written"), every)
        environment |= {"class_names": [every, *texts], "skipped": [*texts]}
        write_json(folder / "environment.json", environment)
        for stage in ("initialization", "refinement"):
            append_metrics(folder, {"stage": stage, "epoch": 1, "epochs": 1, "loss": 1.0, "kept": 50.0, every: 1.0})
    seal(run)
    (storage / "store" / "stage2" / f"damaged{file}").mkdir()
    cells = [({}, config, "done", None), ({"refinement.tau": 0.5}, failed, "failed", every)]
    record = write_sweep(storage, cells, base, command=("/x/sweeps/all_tables.py", "--name", every, f"--x={every}"))
    write_json(record, read_json(record) | dict.fromkeys(("name", "lchp", "created"), every))
    return storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), HOSTILE)


def controls(text: str) -> set[str]:
    """What a terminal could be commanded by, or a text turned round with."""
    return {c for c in text if not c.isprintable() and c != "\n"}


class Elements(HTMLParser):
    """found: tag and names of attributes of every element; links: where they lead; text: the rest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(storage: Path) -> str:
    asked = PageOptions(Source((storage,)), figures=False)
    return render(gather(collect([storage]), asked, read_paper())).decode("ascii")


def test_a_page_has_the_elements_that_tame_records_have(storage: Path, tmp_path: Path) -> None:
    html = page_of(storage)
    ours, theirs = Elements(html), Elements(page_of(write_records(tmp_path, TAME)))
    assert sorted(ours.found) == sorted(theirs.found)
    assert {"script", "svg", "table", "details"} <= {tag for tag, _ in ours.found}
    assert all(link.startswith("#") for link in ours.links)
    for text in HOSTILE[:6]:
        assert text in ours.text
    assert controls(html) == set()


def tables_of(storage: Path, out: Path) -> None:
    assert analysis_script("make_tables").main(["--storage", str(storage), "--out", str(out)]) == 1  # one is damaged


def test_tables_show_the_names_and_no_more(storage: Path, tmp_path: Path, capsys) -> None:
    tables_of(storage, tmp_path)
    said = capsys.readouterr()
    assert "other figures" in said.out
    assert "no DONE file" in said.err
    for text in (said.out, said.err, *(p.read_text() for p in tmp_path.iterdir())):
        assert controls(text) == set()
    assert (tmp_path / "table_3.md").read_text().count("\n#") == 0  # a heading but the first line's
    html = Elements((tmp_path / "table_3.html").read_text())
    assert {tag for tag, _ in html.found} <= TABLE_TAGS
    assert clean(" ".join(HOSTILE[:5])) in " ".join(html.text.split())


def plain(text: str = "x", labels: Sequence[str] = ("x",), reason: str = "x") -> Table:
    row = Row(tuple(labels), (TableCell(reason),))
    return Table(3, text, text, ("row",) * len(labels), (text,), (Section(text, text, (row,)),), (text,))


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown(text: str) -> None:
    """The lines and columns are ours, and every sign that means something is behind a backslash."""
    made, ours = to_markdown(plain(text, (text, text), text)), to_markdown(plain(labels=("x", "x")))
    assert [line.replace(r"\|", "").count("|") for line in made.splitlines()] == [
        line.count("|") for line in ours.splitlines()
    ]
    title = made.splitlines()[0].removeprefix("### Table 3. ")
    assert title == "".join(f"\\{c}" if c in r"\`*_|<>[]~$&" else c for c in clean(text))


def test_formulas_in_csv() -> None:
    texts = ("=1+1", "+cmd|x", "-cmd|x", "@SUM(A1)", "-0.5", "+3.10", "-", "tiny", "\t=1+1", "'=1+1")
    rows = list(csv.reader(io.StringIO(to_csv(plain("=x", texts, "=y")))))
    assert rows[1][3 : 3 + len(texts)] == [
        *("'=1+1", "'+cmd|x", "'-cmd|x", "'@SUM(A1)", "-0.5", "+3.10", "-", "tiny", "'=1+1", "'=1+1")
    ]
    assert {*rows[1][1:3], rows[1][-8]} == {"'=x"}
    assert "'=y" in rows[1]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles_and_reads_no_file_of_a_record(tmp_path: Path) -> None:
    letters = "".join(map(chr, range(32, 256)))
    write_tables([plain(" ".join((*HOSTILE, letters)), HOSTILE, letters)], tmp_path)
    flags = ("-interaction=nonstopmode", "-halt-on-error", "-recorder", "-no-shell-escape")
    ran = subprocess.run(
        ["pdflatex", *flags, "tables.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace"
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    read = (tmp_path / "tables.fls").read_text()
    assert "table_3" in read
    assert "/etc/passwd" not in read


@pytest.mark.parametrize("text", HOSTILE)
def test_latex(text: str) -> None:
    """Nothing that TeX takes for its own is left, once the escapes are read back."""
    line = next(line for line in FORMATS["tex"](plain(text)).splitlines() if line.startswith("\\caption{"))
    inside = line.removeprefix("\\caption{").removesuffix("}")
    words = {"backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "greater": ">", "bar": "|"}
    words["asciigrave"] = "`"
    escapes = {rf"\text{name}{{}}": sign for name, sign in words.items()}
    escapes |= {f"\\{sign}": sign for sign in "&%$#_{}"} | {"-{}": "-", "[U+1F4A9]": "\N{PILE OF POO}", "''": '"'}
    pattern = "|".join(map(re.escape, escapes))
    assert not set('\\&%$#_{}~^<>|`"') & set(re.sub(pattern, "", inside))
    assert re.sub(pattern, lambda found: escapes[found[0]], inside) == clean(f"{text}. {text}").replace(
        "\N{REPLACEMENT CHARACTER}", "[U+FFFD]"
    )


def test_figures_and_what_is_said_of_them(storage: Path, tmp_path: Path, capsys) -> None:
    command = ["--storage", str(storage), "--out", str(tmp_path), "--figure", "training"]
    assert analysis_script("make_figures").main(command) == 1  # a record is damaged
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training.pdf", "training.png", "training.txt"]
    said = capsys.readouterr()
    for text in (said.out, said.err, (tmp_path / "training.txt").read_text()):
        assert controls(text) == set()
    assert HOSTILE[3] in (tmp_path / "training.txt").read_text()
