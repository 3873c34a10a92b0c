"""What mkdocs does beside building the pages: the API pages, and links to files that lie outside of docs/.

A page per module that `extra.api` in mkdocs.yml lists. The pages are plain Markdown that also a forge shows, so they
link to files such as ../CHANGELOG.md; a built site does not hold those, and says the path instead.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def _page(module: str) -> str:
    return f"api/{module}.md"


def on_config(config: Any) -> Any:
    """Adds the API pages to the navigation."""
    config.nav.append({"API": ["api.md", *({name: _page(name)} for name in config.extra["api"])]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Makes the API pages."""
    for name in config.extra["api"]:
        files.append(File.generated(config, _page(name), content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """A link to a file outside of docs/ becomes its text and the file's path in the repository."""
    root, here = Path(config.docs_dir).parent, Path(page.file.abs_src_path or config.docs_dir).parent

    def named(found: re.Match[str]) -> str:
        path = (here / found[2]).resolve()
        if path.is_relative_to(config.docs_dir):
            return found[0]
        text, place = found[1], path.relative_to(root).as_posix()
        return f"`{place}`" if text == place else f"{text} (`{place}`)"

    return LINK.sub(named, markdown)
