"""The page of a comparison, from committed cells."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from localssl.experiments import published, side_by_side, summary
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import Compared
from localssl.experiments.rows import Row, Study
from localssl.report import charts, comparison_figure, page
from localssl.report.comparison import Line

from .browser_util import complaints, contrast, keep_screenshot, needs_chromium, opened, requests

CELLS = Path(__file__).resolve().parents[1] / "docs" / "results" / "compare-digits" / "cells"
RULES = ("clapp++", "clapp++dfb", "bp-clapp++")
STUDY = Study("digits", epochs=10, labels=("10", "all"))


def compared() -> list[Compared]:
    def row(name: str, baseline: str | None) -> Compared:
        records = [json.loads((CELLS / f"{name}-s{seed}.json").read_text()) for seed in (0, 1)]
        return Compared(Row(name, name if baseline else "clapp++"), records, baseline, "1 (default)")

    return [row("untrained", None), *(row(name, "untrained") for name in RULES)]


def write(out: Path, study: Study, rows: list[Compared]) -> str:
    settings = Settings(out)
    lines = summary.summarise(rows, study)
    path = side_by_side.write(rows, lines, study, settings, "localssl compare --rules <all>")
    return html.unescape(re.sub(r"<script>.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL))


def test_what_stands_on_it(tmp_path: Path) -> None:
    text = write(tmp_path, STUDY, compared())
    assert "localssl compare --rules <all>" in text
    assert "give no number for these rules on digits" in text
    line = summary.summarise(compared(), STUDY)[1]
    assert f"{line.accuracy['all'][0]:.2f}" in text
    assert f"{line.blocks['3'][0]:.2f}" in text
    assert f"{line.align['2'][0]:.2f}" in text


def test_beside_the_paper(tmp_path: Path) -> None:
    """As if the cells were of CIFAR-10: the paper's numbers, and why ours are not comparable."""
    text = write(tmp_path, replace(STUDY, data="cifar10"), compared())
    for rule, name in zip(RULES, ("CLAPP++", "CLAPP++DFB", "BP-CLAPP++"), strict=True):
        named = rf'<th scope="row">{re.escape(rule)}</th>((?:(?!</tr>).)*Table 2, {re.escape(name)}</td>.*?)</tr>'
        row = re.search(named, text)
        assert row is not None, rule
        assert str(published.TABLE2[name]["cifar10"]) in row[1]
        assert "not comparable: vgg5 for vgg6" in row[1]


def test_another_option_is_another_rule(tmp_path: Path) -> None:
    rows = compared()
    rows[1] = replace(rows[1], row=replace(rows[1].row, options={"margin": 2.0}))
    text = write(tmp_path, replace(STUDY, data="cifar10"), rows)
    assert "Table 2, CLAPP++<" not in text
    assert "Table 2, CLAPP++DFB<" in text


def test_a_failed_row(tmp_path: Path) -> None:
    rows = compared()
    rows[2] = replace(rows[2], records=[], failed="it raised <here>")
    text = write(tmp_path, STUDY, rows)
    assert "it raised <here>" in text
    assert "Failed" in text


@needs_chromium
@pytest.mark.parametrize("width", [375, 1400])
def test_in_a_browser(width: int, tmp_path: Path) -> None:
    write(tmp_path, replace(STUDY, data="cifar10"), compared())
    with opened(tmp_path / "report.html", width, "light" if width > 500 else "dark") as driver:
        keep_screenshot(driver, f"compare-{width}")
        assert complaints(driver) == []
        assert requests(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width


CELLS_AND_NUMBERS = """
return [...document.querySelectorAll(".chart")].map(chart => {
  const seen = mark => {
    const style = getComputedStyle(mark), box = mark.getBoundingClientRect();
    return {colour: style.fill, opacity: style.opacity * style.fillOpacity, text: mark.textContent,
      x: box.x + box.width / 2, y: box.y + box.height / 2, width: box.width, height: box.height};
  };
  const all = kind => [...chart.querySelectorAll(`.role-mark.mark-${kind} :is(path, text)`)].map(seen);
  return [all("rect"), all("text")];
});
"""  # of every chart what lies below and what stands on it: colour, opacity, middle, size


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_cells_can_be_read(scheme: str, tmp_path: Path) -> None:
    """4.5 to 1 from the cell that they stand in, whatever its value; wholly in it."""
    maps = {"cosine": (-1.0, 1.0), "accuracy": (20.0, 90.0)}
    parts = [
        page.Chart(
            value,
            charts.grid(
                [{"name": f"row {i // 6}", "block": str(i % 6), value: low + (high - low) * i / 59} for i in range(60)],
                value,
                low,
                high,
            ),
            value,
        )
        for value, (low, high) in maps.items()
    ]
    page.write(tmp_path / "p.html", "cells", "", [page.Section("cells", "Cells", parts)])
    with opened(tmp_path / "p.html", 900, scheme) as driver:
        keep_screenshot(driver, f"cells-{scheme}")
        for cells, numbers in driver.execute_script(CELLS_AND_NUMBERS):
            assert len(cells) == len(numbers) == 60
            for number in numbers:
                (cell,) = [
                    c
                    for c in cells
                    if all(abs(c[m] - number[m]) <= c[size] / 2 for m, size in (("x", "width"), ("y", "height")))
                ]
                assert number["width"] < cell["width"]
                assert cell["opacity"] == number["opacity"] == 1
                below, on = ([float(c) for c in re.findall(r"[\d.]+", mark["colour"])] for mark in (cell, number))
                assert contrast(on, below) >= 4.5, (number["text"], number["colour"], cell["colour"])


@needs_chromium
@pytest.mark.parametrize(("width", "shown"), [(375, 0), (1400, 60)])
def test_a_map_with_long_names(width: int, shown: int, tmp_path: Path) -> None:
    """Names leave the cells room, and numbers that are wider than a cell are left out: they are in the table."""
    rows = [
        {"name": f"sign-symmetric objective=ce row {i // 6}", "block": str(i % 6), "cosine": i / 60} for i in range(60)
    ]
    chart = page.Chart("cosine", charts.grid(rows, "cosine", -1.0, 1.0), "")
    page.write(tmp_path / "p.html", "cells", "", [page.Section("cells", "Cells", [chart])])
    with opened(tmp_path / "p.html", width) as driver:
        keep_screenshot(driver, f"names-{width}")
        ((cells, numbers),) = driver.execute_script(CELLS_AND_NUMBERS)
    seen = [number for number in numbers if number["opacity"]]
    assert len(seen) == shown
    assert all(number["width"] < cells[0]["width"] for number in seen)
    assert cells[0]["width"] * 6 > 0.45 * width


def test_numbers_in_the_pictures_cells_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the page, 4.5 to 1, in table.png."""
    figures: list[Figure] = []

    def kept(figure: Figure, caption: str, path: Path) -> Path:
        figures.append(figure)
        return path

    monkeypatch.setattr(comparison_figure, "write", kept)
    cosines = [i / 40 - 1 for i in range(81)]
    lines = [Line(f"{c}", 1, {"all": (50.0, 49.0, 51.0)}, align={"1": (c, c, c)}, parameters_rule=1) for c in cosines]
    comparison_figure.draw(lines, "all", "", tmp_path / "table.png")
    cells = figures[0].axes[1]
    (colours,) = cells.images
    assert len(cells.texts) == len(cosines)
    for number, cosine in zip(cells.texts, cosines, strict=True):
        on, below = (
            [255 * part for part in to_rgb(colour)] for colour in (number.get_color(), colours.to_rgba(cosine))
        )
        assert contrast(on, below) >= 4.5, (number.get_text(), number.get_color())
