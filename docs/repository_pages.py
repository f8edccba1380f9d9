"""What the site's build adds to MkDocs: links that leave ``docs/`` work there too.

A link such as ``../benchmarks/README.md`` is right in a clone and on a code host, but a site has only what is in
``docs/``. Each file of the repository that a page links to becomes a page of the site, under ``repository/``. Markdown
is rendered, and everything else is shown as code. Links between such pages lead to their pages on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_PREFIX = "repository/"
_AS_THEY_ARE = {".md", ".png", ".svg"}
_LINK = re.compile(r"(\]\()([^()\s#]+)(#[^()\s]*)?(\))")
_FENCE = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)


def _outside(folder: str, link: str) -> Path | None:
    """The file outside ``docs/`` that a page in a folder of the repository links to."""
    if ":" in link or link.startswith("/"):
        return None
    place = posixpath.normpath(posixpath.join(folder, link))
    path = ROOT / place
    return Path(place) if not place.startswith(("docs/", "..")) and path.is_file() else None


def _linked(folder: str, text: str) -> list[Path]:
    prose = _FENCE.sub("", text)
    found = (_outside(folder, match[2]) for match in _LINK.finditer(prose))
    return [path for path in found if path is not None]


def _uri(path: Path) -> str:
    """The place on the site, as a source file: ``repository/bench.sh.md``."""
    return _PREFIX + (path.as_posix() if path.suffix in _AS_THEY_ARE else f"{path.as_posix()}.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file that pages link to, and for what those link to in turn."""
    pages = list(files.documentation_pages())
    waiting = [path for page in pages for path in _linked(f"docs/{Path(page.src_uri).parent}", page.content_string)]
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        if path.suffix in _AS_THEY_ARE - {".md"}:
            files.append(File.generated(config, _uri(path), abs_src_path=str(ROOT / path)))
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.suffix == ".md":
            waiting += _linked(path.parent.as_posix(), text)
        else:
            text = f"# {path.as_posix()}\n\n````{path.suffix.removeprefix('.')}\n{text}````\n"
        files.append(File.generated(config, _uri(path), content=text))
    return files


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Make the links of a page right for the place that it has on the site."""
    here = page.file.src_uri
    is_repository = here.startswith(_PREFIX)
    folder = posixpath.dirname(here.removeprefix(_PREFIX) if is_repository else f"docs/{here}")

    def rewritten(match: re.Match[str]) -> str:
        link = match[2]
        place = posixpath.normpath(posixpath.join(folder, link))
        if (path := _outside(folder, link)) is not None:
            target = _uri(path)
        elif is_repository and place.startswith("docs/"):
            target = place.removeprefix("docs/")
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{match[3] or ''}{match[4]}"

    return _LINK.sub(rewritten, markdown)
