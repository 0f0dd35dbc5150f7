"""What stands below a comparison's table of its rows: checks that a rule fails, cosines that say nothing."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from localssl import cli
from localssl.experiments import precision, published, summary
from localssl.experiments.cells import Settings
from localssl.experiments.comparison import compare
from localssl.experiments.rows import Study, descends, row

from .compare_util import in_this_process

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
MINE = """
from dataclasses import dataclass
from localssl.rules import Rule

@dataclass(frozen=True, kw_only=True)
class Mine(Rule):
    def layer_loss(self, batch, layer, projections):
        return batch.z[layer].square().mean(1).sum()
"""


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts run in this process; the names of those that were asked for."""
    return in_this_process(monkeypatch)


def test_a_check_that_a_rule_fails_stands_below_the_table(
    inline: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where its run was done before its cell; a cell from before it was noted is read as it is."""
    (tmp_path / "mine.py").write_text(MINE)
    rule, out = f"{tmp_path}/mine.py:Mine", tmp_path / "study"
    small = "--data digits --epochs 1 --width 0.25 --batch-size 16 --limit-images 64 --probe-images 100 --seeds 1"
    command = ["compare", "--rules", "clapp++", rule, *small.split(), "--align-batches", "0", "--threads", "1"]
    command += ["--out", str(out)]
    assert cli.main(command) == 0
    (cell,) = (out / "cells").glob("*Mine*-s0.json")
    record = json.loads(cell.read_text())
    assert record["failed_check"].startswith("rule 'Mine' fails check 'mean': ")
    note = f"{record['row']}: {record['failed_check']}"
    assert note in (out / "table.md").read_text()
    assert "fails check 'mean'" in " ".join(capfd.readouterr().out.replace("\n", " ").split())
    assert "clapp++: " not in (out / "table.md").read_text()

    cell.unlink()
    assert cli.main(command) == 0
    assert inline[-1] == cell.stem
    assert json.loads(cell.read_text())["failed_check"] == record["failed_check"]

    text = cell.read_text()
    older = json.loads(text)
    del older["failed_check"]
    cell.write_text(json.dumps(older))
    before = list(inline)
    assert cli.main(command) == 0
    assert inline == before
    assert json.loads(cell.read_text()) == older
    assert "fails check" not in (out / "table.md").read_text()


def test_no_cosine_where_no_loss_is_descended(inline: list[str], tmp_path: Path) -> None:
    """Of the committed cells, which have one; nothing is trained anew."""
    for study in ("compare-cifar10", "bits"):
        shutil.copytree(RESULTS / study / "cells", tmp_path / study / "cells")
    first = next((tmp_path / "compare-cifar10" / "cells").glob("softhebb-s0.json"))
    record = json.loads(first.read_text(encoding="utf-8"))
    assert record["align"]
    study = Study.of(record["task"][0]["study"])
    settings = Settings(tmp_path / "compare-cifar10", threads=1)
    found = compare(study, [row("softhebb"), row("clapp++")], settings, 2)
    assert inline == []
    lines = {line.label: line for line in summary.summarise(found, study)}
    assert (len(lines["clapp++"].align), len(lines["softhebb"].align)) == (6, 0)
    said = [note for note in summary.notes(found, study, settings) if "descend no loss" in note]
    assert [note.partition(":")[0] for note in said] == ["No cosine for softhebb"]
    assert [rule for rule in ("softhebb", "clapp++", "ipc", "bp") if not descends(row(rule))] == ["softhebb"]

    study = Study.of(json.loads((RESULTS / "bits" / "cells" / "untrained-s0.json").read_text())["task"][0]["study"])
    settings = Settings(tmp_path / "bits", threads=1)
    found = compare(study, precision.rows([row("softhebb"), row("clapp++")], [8]), settings, 3)
    assert inline == []
    precision.write(found, study, settings)
    lines = (tmp_path / "bits" / "bits.csv").read_text(encoding="utf-8").splitlines()[1:]
    quantities = {
        rule: {r["quantity"] for r in csv.DictReader(lines) if r["rule"] == rule} for rule in ("softhebb", "clapp++")
    }
    assert quantities["clapp++"] - quantities["softhebb"] == {"cosine"}


def test_a_quoted_number_stands_beside_what_ours_is() -> None:
    """Of a committed cell: its network, training, images, and how many labels its probe saw."""
    cell = json.loads((RESULTS / "compare-cifar10" / "cells" / "lpl-s0.json").read_text(encoding="utf-8"))
    number = published.TABLE2["LPL"]["cifar10"]
    ours = published.differences(number, cell["config"], "fast", cell["facts"])
    said = published.mark(number, [45.0, 46.0], ours)
    assert said.startswith("not comparable: quoted; Halvagal & Zenke 2023: VGG-11, 800 epochs; ")
    assert said.endswith(
        "; ours: vgg6, width 0.125, epochs 4, 10,000 images, fast probe, CIFAR-10 (JPEG), probe fitted on 5,000 of "
        "50,000 labels"
    )
    whole = {**cell["config"], "limit_images": None, "encoder": {"name": "vgg11", "width": [64]}}
    assert published.differences(number, whole, "paper", []) == ["ours: vgg11, epochs 4, all images, paper probe"]
    few = published.differences(number, whole, "fast", [], "1")
    assert few == ["ours: vgg11, epochs 4, all images, fast probe, 1 label per class"]


def test_the_page_has_every_mark() -> None:
    """docs/compare.md lists what ``published.mark`` says, numbers left out."""
    page = " ".join((RESULTS.parent / "compare.md").read_text(encoding="utf-8").split())
    number = published.Number(80.5, 0.3)
    for ours, differences in (([80.4, 80.5, 80.6], []), ([80.5], []), ([79.0, 83.0], []), ([80.5], ["width 0.25"])):
        said = published.mark(number, ours, differences).partition(": width")[0]
        said = re.sub(r"\d+ seeds", "N seeds", re.sub(r"\d+\.\d+", "…", said))
        assert f"- **{said}**: " in page
    assert published.mark(number, [90.0, 90.01, 90.02], []).startswith("off by ")
    assert "- **off by** so many points: " in page


def test_what_the_comparisons_took() -> None:
    """A sentence in docs/compare.md on core-hours against the cells."""
    text = " ".join((RESULTS.parent / "compare.md").read_text(encoding="utf-8").split())
    took: list[float] = []
    longest = 0.0
    for data in ("mnist", "cifar10", "tiny-imagenet"):
        cells = [json.loads(path.read_text("utf-8")) for path in (RESULTS / f"compare-{data}" / "cells").glob("*.json")]
        seconds = [cell.get("seconds") or 0.0 for cell in cells]
        took.append(sum(seconds) / 3600)
        longest = max(longest, *seconds)
    assert (
        f"took {took[0]:.2f} core-hours on MNIST, {took[1]:.2f} on CIFAR-10 and {took[2]:.2f} on Tiny ImageNet, the "
        f"longest {longest / 60:.1f} " in text
    )


def test_what_figure_5_says() -> None:
    """The list in docs/compare.md against the table: every number of it stands there, and all steps are counted."""
    page = (RESULTS.parent / "compare.md").read_text(encoding="utf-8")
    said = re.sub(r"\s+", " ", page.partition("What its four\nseeds say")[2].partition("\n\nWithout more flags")[0])
    text = (RESULTS / "fig5" / "fig5.md").read_text(encoding="utf-8")
    numbers = re.findall(r"[+−]?\d+\.\d+ ± \d+\.\d+", said)
    assert len(numbers) == 13
    assert [number for number in numbers if number not in text] == []
    lines = (RESULTS / "fig5" / "fig5.csv").read_text(encoding="utf-8").splitlines()[1:]
    steps = [row for row in csv.DictReader(lines) if row["step (points)"]]
    assert f"These are {len(steps)} intervals" in said
