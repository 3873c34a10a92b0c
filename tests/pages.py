"""The project's pages of Markdown: their blocks, commands, headings and links."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
GUIDES = [README, ROOT / "CONTRIBUTING.md", ROOT / "UPGRADING.md", *DOCS]
"""The pages whose commands a reader types."""
PAGES = [*GUIDES, ROOT / "CHANGELOG.md", ROOT / "LICENSES.md", ROOT / "analysis" / "FINDINGS.md"]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` as behind the fence, and its text."""

    language: str
    text: str


@cache
def text_of(page: Path) -> str:
    return page.read_text()


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(text_of(page))]


def prose(page: Path) -> str:
    """What stands outside of fenced blocks."""
    return BLOCK.sub("", text_of(page))


def commands(page: Path) -> list[str]:
    """Every line of a block without a language, or of a shell: continued lines as one, comments taken away."""
    typed = "\n".join(b.text for b in blocks(page) if b.language in ("", "bash"))
    lines = (re.split(r"\s+#", line)[0].strip() for line in typed.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line]


def inline_commands(page: Path) -> list[str]:
    """Commands in the running text that can be typed as they stand."""
    spans = re.findall(r"`((?:lchp|python) [^`]+)`", prose(page))
    return [" ".join(span.split()) for span in spans]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE)


def slug(heading: str) -> str:
    """A heading's anchor, as forges and mkdocs make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain.lower())).strip("-")


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def sections(page: Path) -> list[tuple[str, str]]:
    """Heading and text, blocks included, of each part of a page down to the second level."""
    out: list[tuple[str, str]] = []
    fenced = False
    for line in text_of(page).splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if re.match(r"#{1,2} ", line) and not fenced:
            out.append((line.strip(), ""))
        elif out:
            out[-1] = (out[-1][0], out[-1][1] + line)
    return out


def words_of(command: str) -> list[str]:
    return shlex.split(command)
