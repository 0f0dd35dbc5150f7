"""What the site has besides docs/: the API from docstrings, and whatever pages link to outside docs/, as pages.

docs/ stays plain Markdown for a forge. There, links to a file outside or to a folder work as they are; here the file is
shown on a page of its own under source/, the folder as a list of its files.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
AT_THE_TOP = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
OF_A_FILE = re.compile(r"^(```\w+) file=(\S+)")
LANGUAGES = {".py": "python", ".json": "json"}
WIDE = ("reproduction.md", "compare.md", "results.md")  # their tables want the room of the table of contents
STYLE = """\
.md-grid { max-width: 74rem; }
.md-typeset table:not([class]) td:first-child code { white-space: nowrap; }
.md-typeset table:not([class]) th { min-width: 3rem; }
.from-disk .md-search, .from-disk [for="__search"] { display: none; }
"""
FROM_DISK = "<script>if (location.protocol === 'file:') document.documentElement.classList.add('from-disk')</script>"
PICTURE = re.compile(r'<img [^>]*src="([^":]+\.(?:png|svg))"[^>]*>')

API = {  # titles and modules
    "Commands as functions": ["localssl.api"],
    "Flags": ["localssl.runs.config.TrainConfig", "localssl.cli.flags", "localssl.runs.flagfile"],
    "Opening what was trained": ["localssl.runs.checkpoint.load", "localssl.own.trust", "localssl.runs.run.Run"],
    "Encoders": ["localssl.encoders", "localssl.encoders.networks", "localssl.blocks"],
    "Rules": ["localssl.rules", "localssl.rules.base", "localssl.losses", "localssl.references"],
    "What enters, and credit assignment": ["localssl.inputs", "localssl.credit"],
    "Projections and readout": ["localssl.projections", "localssl.readout"],
    "Learner": ["localssl.learner"],
    "Learning in integers": ["localssl.grids", "localssl.engine.synapses"],
    "Callbacks": ["localssl.callbacks"],
    "Alignment": ["localssl.alignment"],
    "Theory": ["localssl.theory"],
    "Certificates": ["localssl.certificate"],
    "Checks of a rule": ["localssl.testing"],
    "Activities and their similarity": ["localssl.represent"],
    "Rules as data, encoders as graphs": ["localssl.rulefile.document", "localssl.nir_graph"],
    "Memory of a step, and its arithmetic": ["localssl.system.allocator", "localssl.report.arithmetic"],
    "Errors": ["localssl.errors"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    files.append(File.generated(config, "api.md", content=_api()))
    files.append(File.generated(config, "style.css", content=STYLE))
    config.extra_css.append("style.css")
    for name in AT_THE_TOP:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    outside: set[Path] = set()
    for file in list(files):
        if file.is_documentation_page() and file.src_uri != "api.md":
            for _, target, _ in LINK.findall(FENCE.sub("", file.content_string)):
                if (place := _place(target, file.src_uri)) is not None:
                    outside.add(place)
    for place in sorted(outside):
        files.append(File.generated(config, _page_of(place), content=_shown(place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to what is no page of docs/ to the page that shows it."""
    here = page.file.src_uri
    if here in WIDE:
        page.meta["hide"] = ["toc"]

    def turned(link: re.Match[str]) -> str:
        before, target, after = link.groups()
        if here in AT_THE_TOP and target.startswith("docs/"):
            target = target.removeprefix("docs/")
        if here.startswith("source/") and "://" not in target:  # a notebook's link to docs/
            path = Path(os.path.normpath((ROOT / here.removeprefix("source/")).parent / target))
            if path.is_relative_to(DOCS):
                return f"{before}{posixpath.relpath(path.relative_to(DOCS).as_posix(), posixpath.dirname(here))}{after}"
        if (place := _place(target, here)) is not None:
            target = posixpath.relpath(_page_of(place), posixpath.dirname(here) or ".")
            after = ")"
        elif "://" not in target and posixpath.basename(target) in AT_THE_TOP:
            target = posixpath.basename(target)
        return f"{before}{target}{after}"

    parts = FENCE.split(markdown)
    # "file=" is for the tests, which put the snippet there; the site's fences know a title
    return "".join(OF_A_FILE.sub(r'\1 title="\2"', p) if n % 2 else LINK.sub(turned, p) for n, p in enumerate(parts))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A picture leads to itself, in its own size."""
    return PICTURE.sub(r'<a href="\1">\g<0></a>', html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Without a server there is no search: its field is not shown."""
    return output.replace("</head>", f"{FROM_DISK}</head>", 1)


def _place(target: str, page: str) -> Path | None:
    """The file outside docs/, or the folder, that a link of a page means; None: a page or file of the site."""
    if "://" in target or target.startswith("mailto:"):
        return None
    if page.startswith("source/"):
        base = (ROOT / page.removeprefix("source/")).parent
    else:
        base = ROOT if page in AT_THE_TOP else (DOCS / page).parent
    path = Path(os.path.normpath(base / target))
    if path.is_dir():
        return path
    if not path.is_file() or path.is_relative_to(DOCS) or path.name in AT_THE_TOP:
        return None
    return path


def _page_of(place: Path) -> str:
    """The page that shows a file or a folder."""
    if place.is_relative_to(DOCS):
        return (place.relative_to(DOCS) / "index.md").as_posix()
    return f"source/{place.relative_to(ROOT).as_posix()}.md"


def _shown(place: Path) -> str:
    """The text of that page."""
    name = place.relative_to(ROOT).as_posix()
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.is_file())
        if place.is_relative_to(DOCS):
            return "\n".join([f"# {name}", "", *(f"- [{path.name}](<{path.name}>)" for path in files)])
        return "\n".join([f"# {name}", "", *(f"- {path.name}" for path in files)])
    if place.suffix == ".ipynb":
        cells = json.loads(place.read_text(encoding="utf-8"))["cells"]
        parts = ["".join(cell["source"]) for cell in cells]
        shown = [
            p if c["cell_type"] == "markdown" else f"```python\n{p}\n```" for p, c in zip(parts, cells, strict=True)
        ]
        return "\n\n".join([*shown, f"The notebook: `{name}`"])
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return text
    text = text.replace("````", "``` `")
    return f"# {name}\n\n````{LANGUAGES.get(place.suffix, 'text')}\n{text}\n````\n"


def _api() -> str:
    """The API, from the docstrings."""
    lines = ["# API", "", "From the docstrings; `tests/test_promises.py` lists the names that are promised.", ""]
    for title, modules in API.items():
        lines += [f"## {title}", ""]
        for module in modules:
            lines += [f"::: {module}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)
