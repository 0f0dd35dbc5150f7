"""The reproduction record is made from the results that are there, and names what can be run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from localssl.experiments import EXPERIMENTS, findings, published, recorded, reproduction

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "reproduction.md").read_text(encoding="utf-8")


def test_up_to_date() -> None:
    assert reproduction.page(DOCS / "results") == PAGE, "write it anew: make docs"


def test_every_figure_and_table_has_a_verdict() -> None:
    lines = [line.strip("| ").split(" | ") for line in reproduction.overview(DOCS / "results").splitlines()]
    rows = {line[0]: " | ".join(line) for line in lines}
    for name in re.findall(r"^\| ((?:Figure|Table) \w+) \|", (DOCS / "paper.md").read_text("utf-8"), re.MULTILINE):
        if name not in ("Table 1", "Table A1", "Figure 1D", "Figure 4A"):  # forms, drawings: no numbers of theirs
            assert re.search(r"\| (reproduced|in part|not )", rows[name]), name


def test_what_was_run_has_scale_date_and_commit() -> None:
    """In both tables of what was run; other rules, whose numbers are published elsewhere, included."""
    results = DOCS / "results"
    for table in (reproduction.overview(results), recorded.peers(results)):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for row in rows:
            said = dict(zip(head, row, strict=True))
            if said["verdict"] != "not run":
                assert said["scale of ours"], row
                assert re.fullmatch(r"\d{4}-\d\d-\d\d", said["date"]), row
                assert re.fullmatch(r"[0-9a-f]{7}(, [0-9a-f]{7})*", said["commit"]), row


def test_commands_are_there() -> None:
    commands = re.findall(r"`localssl reproduce ([\w-]+)", PAGE)
    assert len(commands) > 12
    assert set(commands) <= set(EXPERIMENTS)


def test_no_number_of_the_paper_is_left_out() -> None:
    for numbers in (published.TABLE2, published.TABLE_A3):
        for row, by_data in numbers.items():
            for data, number in by_data.items():
                assert f"| {row} | {data} | {number} |" in PAGE


@pytest.mark.parametrize(
    ("file", "line", "verdict"),
    [
        ("theory/fig2.csv", "default W", "not reproduced"),
        ("theory/fig3a.csv", "direct feedback", "not reproduced"),
        ("fig3b/fig3b.csv", "local-SSL DFB", "in part: direct feedback is nearer in 0 of 5 layers; one seed"),
    ],
)
def test_another_result_is_another_verdict(file: str, line: str, verdict: str, tmp_path: Path) -> None:
    """The line's numbers replaced: the verdict follows the files."""
    shutil.copytree(DOCS / "results" / Path(file).parent, tmp_path / Path(file).parent)
    path = tmp_path / file
    value = "1.0" if "fig2" in file else "-0.9"
    changed = re.sub(rf"({line}\"?,\d),[-\d.]+", rf"\1,{value}", path.read_text(encoding="utf-8"))
    path.write_text(changed, encoding="utf-8")
    name = {"fig2": findings.fig2, "fig3a": findings.fig3a, "fig3b": findings.fig3b}[Path(file).stem]
    assert name(DOCS / "results")[1] != verdict
    assert name(tmp_path)[1] == verdict
