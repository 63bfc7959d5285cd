"""For mkdocs: what the pages link to outside docs/ goes into the site as well, below repository/, so that no link is broken.

Pages are read on the code host, too, so they link to files as those lie in the repository.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^()\s#:]+)(#[^()\s]*)?\)")


def place_in_site(path: Path) -> str:
    """Return where a file of the repository lies in the site."""
    inside = path.is_relative_to(DOCS) and path.suffix != ".py"
    return str(path.relative_to(DOCS) if inside else "repository" / path.relative_to(ROOT))


def links_of(path: Path) -> list[Path]:
    """Return the files that a page links to."""
    found = LINK.findall(path.read_text()) if path.suffix == ".md" else []
    return [(path.parent / file).resolve() for file, _ in found]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that can be reached from a page."""
    waiting = [Path(file.abs_src_path) for file in files if file.src_uri.endswith(".md")]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        for target in links_of(path):
            if target in seen or not target.is_file() or not place_in_site(target).startswith("repository"):
                continue
            seen.add(target)
            files.append(File.generated(config, place_in_site(target), abs_src_path=str(target)))
            waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point a page's links to where those files lie in the site."""
    source = Path(page.file.abs_src_path)
    here = Path(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        return f"]({os.path.relpath(place_in_site(target), here)}{match[2] or ''})" if target.is_relative_to(ROOT) else match[0]

    return LINK.sub(moved, markdown)
