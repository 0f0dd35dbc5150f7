"""The theory's figures, small: from the embedded digits, with few batches."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from localssl.experiments import EXPERIMENTS, Settings, fig_a1, layers, theory_decay, theory_explorer

from .browser_util import complaints, keep_screenshot, needs_chromium, opened, requests


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("LOCALSSL_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(layers, "IMAGES", 64)
    monkeypatch.setattr(layers.crops, "__defaults__", (64, 0))
    monkeypatch.setattr(fig_a1, "RANKS", (2, 8))
    monkeypatch.setattr(fig_a1, "WIDTH", 8)
    monkeypatch.setattr(fig_a1, "BATCHES", 2)
    monkeypatch.setattr(theory_decay, "SPREADS", (0.0, 0.4))
    monkeypatch.setattr(theory_decay, "LAMBDAS", (0.01,))
    axes = {"layers": (2, 3), "width ratio": (0.5,), "λ": (0.01,), "f": ("hinge",), "weights": ("orthonormal, ReLU",)}
    monkeypatch.setattr(theory_explorer, "AXES", axes)
    monkeypatch.setattr(theory_explorer, "BATCHES", 2)
    threads = torch.get_num_threads()  # the experiments set one, which is not for the tests that follow
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(path: Path) -> tuple[str, list[dict[str, str]]]:
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    return first, list(csv.DictReader(lines))


@pytest.mark.parametrize(
    ("name", "file", "exact"),
    [
        ("fig2", "fig2", "optimal B, orthonormal W"),
        ("fig3a", "fig3a", None),
        ("fig4b", "fig4b", None),
        ("figA1", "figA1", "rank 8"),
        ("theory-decay", "decay", None),
    ],
)
def test_figures(name: str, file: str, exact: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EXPERIMENTS[name](Settings(tmp_path / name))
    assert "using the embedded digits instead" in capsys.readouterr().out
    comment, rows = read(tmp_path / name / f"{file}.csv")
    assert "digits" in comment  # the figure says which
    assert all(-1 <= float(row["mean"]) <= 1 + 1e-9 for row in rows)
    assert {row["batches"] for row in rows} == {"2"}
    if exact:
        assert all(float(row["mean"]) > 1 - 1e-4 for row in rows if row["line"] == exact)
        assert name != "fig2" or any(float(row["mean"]) < 0.9 for row in rows)
    if name == "theory-decay":
        assert all(float(row["mean"]) > 1 - 1e-4 for row in rows if row["spread"] == "0.0")
        assert all(float(row["mean"]) < 0.99 for row in rows if row["spread"] == "0.4")
    with Image.open(tmp_path / name / f"{file}.png") as picture:
        assert min(picture.size) > 300


def test_the_explorer_is_one_page_that_needs_nothing(tmp_path: Path) -> None:
    EXPERIMENTS["theory-explorer"](Settings(tmp_path))
    text = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    assert not re.search(r"""src=|<link rel="stylesheet""", text.partition("<script>")[0])
    found = re.search(r"const specs = (.*);\n", text)
    assert found is not None
    (spec,) = json.loads(found[1])
    (lines,) = spec["datasets"].values()
    assert {line["at"] for line in lines} == {
        "2|0.5|0.01|hinge|orthonormal, ReLU",
        "3|0.5|0.01|hinge|orthonormal, ReLU",
    }
    assert sorted(line["of"] for line in lines) == ["direct feedback"] * 2 + ["layerwise"] * 2
    for line in lines:
        assert len(line["x"]) == len(line["y"]) == len(line["low"]) == int(line["at"][0])
        assert line["of"] != "layerwise" or line["y"][-1] == 1.0
    assert "digits" in text


@needs_chromium
def test_the_explorer_shows_what_is_chosen(tmp_path: Path) -> None:
    """In a browser: a list for every axis, with its name; another depth draws its own points and numbers."""
    EXPERIMENTS["theory-explorer"](Settings(tmp_path))
    for width, scheme in ((1280, "light"), (375, "dark")):
        with opened(tmp_path / "explorer.html", width, scheme) as browser:
            drawn = "return document.querySelectorAll('.chart svg .mark-symbol.role-mark path').length"
            assert browser.execute_script(drawn) == 2 * 2
            names = "return [...document.querySelectorAll('.controls select')].map(s => s.closest('label').innerText)"
            said = [name.split("\n")[0].strip() for name in browser.execute_script(names)]
            assert [name.split()[0] for name in said] == ["layers", "width", "λ", "f", "weights"]
            choose = (
                "const list = document.querySelector('.controls select'); list.selectedIndex = 1;"
                "list.dispatchEvent(new Event('change'));"
            )
            browser.execute_script(choose)
            assert browser.execute_script(drawn) == 2 * 3
            keep_screenshot(browser, f"explorer-{width}")
            assert not complaints(browser)
            assert not requests(browser)
