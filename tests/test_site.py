"""The documentation as a site: built strictly, whole, and nothing of it is fetched from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from localssl import citation

ROOT = Path(__file__).resolve().parents[1]
BANNER = "NO_MKDOCS_2_WARNING"  # without it Material prints a warning about MkDocs 2, which is none of this site's
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(map(_installed, NEEDED)):
        pytest.skip("no MkDocs Material here: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(out),
    ]  # --quiet hides warnings from --strict, too
    environment = {**os.environ, BANNER: "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} == pages | {
        "404",
        "api",
        "ARCHITECTURE",
        "CHANGELOG",
        "CONTRIBUTING",
    }


def test_every_heading_is_there(site: Path) -> None:
    """A fence that the site cannot read would swallow those below it."""
    for page in (ROOT / "docs").glob("*.md"):
        plain = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        html = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert len(re.findall(r"^##+ ", plain, re.MULTILINE)) == len(re.findall(r"<h[2-6] id=", html)), page.name


def test_what_lies_outside_docs_has_a_page(site: Path) -> None:
    assert 'href="source/examples/my_rule.py.html"' in (site / "your-own-rule.html").read_text(encoding="utf-8")
    assert "class MyRule" in re.sub(
        "<[^>]*>", "", (site / "source/examples/my_rule.py.html").read_text(encoding="utf-8")
    )
    notebook = (site / "source/examples/notebooks/own_rule.ipynb.html").read_text(encoding="utf-8")
    assert 'href="../../../your-own-rule.html"' in notebook
    promises = (site / "source/benchmarks/reliability.md.html").read_text(encoding="utf-8")
    assert "<table>" in promises
    assert 'href="../../many-machines.html#what-is-supported-and-what-was-seen"' in promises
    assert 'href="results/demo/cells/index.html"' in (site / "results.html").read_text(encoding="utf-8")


def test_what_is_no_emphasis(site: Path) -> None:
    """Stars of B* and underscores of names: a formula that is set in italics has lost them."""
    for page in site.rglob("*.html"):
        for _, text in re.findall(r"<(em|strong)>(.*?)</\1>", page.read_text(encoding="utf-8"), re.DOTALL):
            shown = re.sub("<[^>]*>", "", text)
            assert not re.search(r"[\^∂∥‖ᵀ=]|^(name|main)$", shown), (page.name, text)
    theory = re.sub("<[^>]*>", "", (site / "theory.html").read_text(encoding="utf-8"))
    assert "∂L*^l/∂W^l is the gradient of the layer's own loss" in theory
    assert "g = cB*ᵀ\nwithout B*, its" in theory or "cB*ᵀ without B*" in theory


def test_pictures_lead_to_themselves(site: Path) -> None:
    text = (site / "alignment.html").read_text(encoding="utf-8")
    assert re.search(r'<a href="([^"]+figA2\.png)"><img [^>]*src="\1"', text)


def test_api_from_docstrings(site: Path) -> None:
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("localssl.api.train", "localssl.learner.Learner", "localssl.alignment.measure", "localssl.rules.get"):
        assert f'id="{name}"' in api, name


def test_nothing_is_fetched(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(https?:[^"]*)"', text)
        assert not [url for url in fetched if "canonical" not in url], page


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"(\S+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(named) == pages | {"api.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"}


def test_how_to_cite() -> None:
    assert citation.bibtex() in (ROOT / "docs" / "cite.md").read_text(encoding="utf-8")


def test_continuous_integration_builds_it() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8"))["jobs"]
    assert any("make site" in step.get("run", "") for step in jobs["site"]["steps"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\t{BANNER}=1 .venv/bin/python -m mkdocs build --strict\n" in makefile
