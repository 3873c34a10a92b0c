"""Tables as Markdown, LaTeX (booktabs), CSV, HTML and text. The best of a column is bold, the second underlined.

Whatever a record holds - a name, a path, an error - is text in all of them: on one line, without control characters,
and with what the format takes for its own escaped.
"""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping

import jinja2
from markupsafe import Markup, escape
from tabulate import tabulate

from lchp.report.read import clean
from lchp.report.tables.grid import NOT_GIVEN, PAPER_FRAME, Row, Section, Table, TableCell

RANKS = ("-", "best", "second")
LEGEND = "best of a column bold, second best underlined, ours and the paper's apart"
PROTOCOL = "the last epoch counts, no box chose anything; a cell: mean ± standard deviation over seeds (n)"
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "`": r"\textasciigrave{}",
        '"': "''",
        **{c: f"\\{c}" for c in "&%$#_{}"},
    }
)

_NOT_IN_OT1 = "\u00ab\u00bb\u00d0\u00de\u00f0\u00fe"
"""Of Latin-1, what LaTeX's default fonts lack; like all beyond it, such a letter is named by its code point."""
_NUMBER = re.compile(r"[+-]?[\d.]+")

HTML = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    finalize=lambda value: value if isinstance(value, Markup) else clean(str(value)),
).from_string(
    """\
<figure class="lchp-table" id="table-{{ t.number }}">
<figcaption><b>{{ t.name }}.</b> {{ t.title }}. {{ t.caption }}</figcaption>
<table>
<thead>
<tr>{% for name in t.head %}<th>{{ name }}</th>{% endfor %}
{% for name in t.columns %}<th>{{ name }}</th>\
{% for beside in t.beside %}<th>{{ beside }}</th>{% endfor %}{% endfor %}</tr>
</thead>
{% for section in t.sections %}
<tbody>
<tr><th colspan="{{ t.head|length + (1 + t.beside|length) * t.columns|length }}">{{ section.title }}</th></tr>
{% for row in section.rows %}
<tr>{% for label in row.labels %}<th scope="row">{{ label }}</th>{% endfor %}
{% for c in row.cells %}<td>{{ mark(c.ours, c.rank) }}</td>\
{% for text, rank in beside(t, c) %}<td>{{ mark(text, rank) }}</td>{% endfor %}{% endfor %}</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</figure>
"""
)


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: a heading, the caption, a pipe table per section, the notes."""
    parts = [f"### {table.name}. {_plain(table.title)}", _plain(table.caption)]
    for section in table.sections:
        body = _grid(table, section, _markdown_mark, _plain)
        grid = tabulate(body, _head(table, _plain), tablefmt="pipe", disable_numparse=True, colalign=_align(table))
        parts.append(f"**{_plain(section.title)}**\n\n{grid}")
    parts.append("\n".join(f"- {_plain(note)}" for note in (*table.notes, *_legend(table))))
    return "\n\n".join(parts) + "\n"


def to_text(table: Table, width: int = 120) -> str:
    """For a terminal: caption and notes are wrapped at `width` characters."""
    parts = [_wrapped(f"{table.name}. {table.title}. {table.caption}", width)]
    for section in table.sections:
        body = _grid(table, section, lambda text, rank: f"{text}{('', ' *', ' +')[rank]}", clean)
        grid = tabulate(body, _head(table, clean), disable_numparse=True, colalign=_align(table))
        parts.append(f"{clean(section.title)}\n{grid}")
    marks = "* best, + second best of a column, ours and the paper's apart"
    notes = (*table.notes, *_legend(table, marks))
    parts.append("\n".join(_wrapped(f"- {note}", width, "  ") for note in notes))
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """A line per cell: table, data, frame, the row's labels, column, mean, sd, n, paper, difference, rank, paper_rank.
    With a baseline also the difference, its 95 % interval, p, p after Holm's correction, and how many seeds and images
    both have. Where there is no mean, the reason stands in its place. A text that a spreadsheet would run as a formula
    (`=`, `+`, `-` or `@` first) gets a `'` before it, which spreadsheets take for the mark of a text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = ("mean", "sd", "n", "paper", "difference", "rank", "paper_rank")
    less = ("less", "low", "high", "p", "p_holm", "seeds", "images") if table.against else ()
    writer.writerow(["table", "data", "frame", *map(_csv, table.head), "column", *figures, *less])
    for section in table.sections:
        for row in section.rows:
            for name, c in zip(table.columns, row.cells, strict=True):
                mean = _csv(c.ours) if c.mean is None else f"{c.mean:.4f}"
                sd = "-" if c.sd is None else f"{c.sd:.4f}"
                values = (mean, sd, c.n or "-", c.paper, c.difference, RANKS[c.rank], RANKS[c.paper_rank])
                texts = map(_csv, (section.data, section.frame, *row.labels, name))
                d = c.less
                more = ["-"] * len(less) if d is None else [d.mean, d.low, d.high, d.p, d.adjusted, d.seeds, d.images]
                writer.writerow([table.number, *texts, *values, *(f"{v:.6g}" if v != "-" else v for v in more)])
    return out.getvalue()


def to_html(table: Table) -> str:
    """A <figure class="lchp-table"> to be put into a page; plain ASCII, without styles of its own."""
    page = HTML.render(t=table, mark=_html_mark, beside=_beside, notes=[*table.notes, *_legend(table)])
    return page.encode("ascii", "xmlcharrefreplace").decode()


def to_latex(table: Table) -> str:
    """A table environment that needs the packages booktabs and graphicx; numbered as in the paper."""
    plain, each = len(table.head), 1 + len(table.beside)
    numbered = [f"\\setcounter{{table}}{{{table.number - 1}}}"] if isinstance(table.number, int) else []
    wide = plain + each * len(table.columns)
    spans = [f"\\multicolumn{{{each}}}{{c}}{{{_latex(name)}}}" for name in table.columns]
    rules = [f"\\cmidrule(lr){{{plain + each * i + 1}-{plain + each * (i + 1)}}}" for i in range(len(table.columns))]
    names = ["ours", *map(_latex, table.beside)] * len(table.columns)
    lines = [
        r"\begin{table}[htbp]",
        *numbered,
        f"\\caption{{{_latex(f'{table.title}. {table.caption}')}}}",
        f"\\label{{tab:lchp-{table.number}}}",
        r"\centering\small",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"\\begin{{tabular}}{{{'l' * plain}{'r' * (wide - plain)}}}",
        r"\toprule",
        " & ".join([*([""] * plain), *spans]) + r" \\",
        " ".join(rules),
        " & ".join([*map(_latex, table.head), *names]) + r" \\",
    ]
    for section in table.sections:
        lines += [r"\midrule", f"\\multicolumn{{{wide}}}{{l}}{{\\emph{{{_latex(section.title)}}}}} \\\\"]
        lines += [" & ".join(row) + r" \\" for row in _grid(table, section, _latex_mark, _latex)]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\raggedright\footnotesize"]
    lines += [f"{_latex(note)}.\\par" for note in (*table.notes, *_legend(table))]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "tex": to_latex,
    "csv": to_csv,
    "html": to_html,
}
"""File suffix -> renderer."""
MARKS: Mapping[str, tuple[bytes, ...]] = {
    "md": (b"### Table", LEGEND.encode()),
    "tex": (b"\\label{tab:lchp-",),
    "csv": (b"table,data,frame,", b",column,mean,sd,n,paper,difference,rank,paper_rank"),
    "html": (b'<figure class="lchp-table"',),
}
"""File suffix -> what each table of ours contains, by which an earlier one is known."""
DOCUMENT_MARK = b"\\begin{document}\n\\input{table_"
"""What each document of `latex_document` contains."""


def latex_document(files: list[str]) -> str:
    """A document of its own that holds the tables written to `files`, beside it."""
    inputs = "\n".join(f"\\input{{{name}}}\n\\clearpage" for name in files)
    return (
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n"
        "\\usepackage[margin=2cm]{geometry}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )


def _legend(table: Table, marks: str = LEGEND) -> tuple[str, str]:
    """How to read any table: its protocol, what a cell holds, and its marks."""
    beside = f", then the paper's value ({PAPER_FRAME}) and the difference" if table.compared else ""
    return PROTOCOL + beside, marks


def _head(table: Table, escape: Callable[[str], str]) -> list[str]:
    beside = tuple(map(escape, table.beside))
    return [escape(h) for h in table.head] + [h for c in table.columns for h in (escape(c), *beside)]


def _beside(table: Table, cell: TableCell) -> list[tuple[str, int]]:
    """The texts beside a figure of ours, with their ranks."""
    paper = [(cell.paper, cell.paper_rank), (cell.difference, 0)]
    return paper if table.compared else [(NOT_GIVEN if cell.less is None else str(cell.less), 0)] * len(table.beside)


def _align(table: Table) -> list[str]:
    return ["left"] * len(table.head) + ["right"] * ((1 + len(table.beside)) * len(table.columns))


def _grid(
    table: Table, section: Section, mark: Callable[[str, int], str], escape: Callable[[str], str]
) -> list[list[str]]:
    def cells(row: Row) -> Iterator[str]:
        for c in row.cells:
            yield mark(escape(c.ours), c.rank)
            yield from (mark(escape(text), rank) for text, rank in _beside(table, c))

    return [[*map(escape, row.labels), *cells(row)] for row in section.rows]


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return re.sub(r"([\\`*_|<>\[\]~$&])", r"\\\1", clean(text))


def _csv(text: str) -> str:
    text = clean(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and len(text) > 1 and not _NUMBER.fullmatch(text) else text


def _latex(text: str) -> str:
    text = "".join(c if ord(c) < 256 and c not in _NOT_IN_OT1 else f"[U+{ord(c):04X}]" for c in clean(text))
    text = re.sub("-(?=-)", "-{}", text.translate(LATEX))  # a command's flags keep both hyphens
    return f"$-${text[1:]}" if text[:1] == "-" and text[1:2].isdigit() else text


def _markdown_mark(text: str, rank: int) -> str:
    return (text, f"**{text}**", f"<u>{text}</u>")[rank]


def _latex_mark(text: str, rank: int) -> str:
    return (text, f"\\textbf{{{text}}}", f"\\underline{{{text}}}")[rank]


def _html_mark(text: str, rank: int) -> str:
    return Markup(("{}", "<b>{}</b>", "<u>{}</u>")[rank]).format(escape(text))


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(clean(text), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
