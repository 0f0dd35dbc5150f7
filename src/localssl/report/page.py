"""One HTML page from sections of text, tables, charts and pictures: a single file, no network, light and dark."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import vl_convert
from PIL import Image

import localssl
from localssl.report import charts
from localssl.system.files import write_text

LARGEST = 5_000_000  # bytes of a page; a test holds a long run against it
LONG = 24  # letters of a cell that make its column one of sentences


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Note:
    """How the numbers above it were made."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Missing:
    """What is not on the page, and what to do about it."""

    kind: ClassVar[str] = "missing"
    text: str


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table; ``folded`` ones open on request. The first column holds the names of the rows."""

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    folded: bool = True

    @property
    def long(self) -> list[bool]:
        """Which columns hold sentences: they wrap, and stand on the left."""
        rest = range(1, len(self.header))
        return [False, *(any(len(str(row[i])) > LONG for row in self.rows) for i in rest)]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Args:
        title: stands above it.
        spec: Vega-Lite, see ``charts``.
        says: what it shows, in a sentence with numbers, for those who do not see it.
        caption: how the numbers were made; stands below it.
    """

    kind: ClassVar[str] = "chart"
    title: str
    spec: Mapping[str, Any]
    says: str
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures in a grid; ``title`` may be empty."""

    kind: ClassVar[str] = "pictures"
    title: str
    pictures: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """One picture: its title, a data URI, what it shows for those who do not see it, and a caption."""

    title: str
    uri: str
    says: str
    caption: str = ""


Part = Text | Note | Missing | Code | Table | Chart | Pictures


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. ``name`` is the anchor, lower case without spaces."""

    name: str
    title: str
    parts: Sequence[Part]


def png(image: Image.Image) -> str:
    """The picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to ``path``.

    Raises:
        OSError: no room, no permission.
    """
    shown = [part for section in sections for part in section.parts if isinstance(part, Chart)]
    numbers = {id(part): number for number, part in enumerate(shown)}
    text = template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        number=lambda part: numbers[id(part)],
        light=charts.colours(dark=False),
        dark=charts.colours(dark=True),
        specs=_script([part.spec for part in shown]),
        vega=_vega() if shown else "",
        version=localssl.__version__,
    )
    write_text(path, text)


def _script(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    script = vl_convert.javascript_bundle(vl_version=charts.VERSION)  # pyright: ignore[reportCallIssue]
    return script.replace("</script", "<\\/script")


@functools.cache
def template(name: str) -> jinja2.Template:
    """A file of ``templates/``; what it is given is text, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("localssl.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
