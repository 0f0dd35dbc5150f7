"""The reproduction record is made from the results that are there, and names what can be run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from localssl.experiments import EXPERIMENTS, findings, published, recorded, reproduction, summary
from localssl.report.comparison import plus_minus
from localssl.stats import t_interval

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
                assert re.fullmatch(r"[0-9a-f]{7}(-dirty)?(, [0-9a-f]{7}(-dirty)?)*", said["commit"]), row


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


FIG5 = (
    "# Ours\nstep,rule,learning rate,published (%),ours (%),step (points),against,mark\n"
    '"CLAPP, last layer",clapp-illing,0.001,,40.00 ± 1.00,,,\n'
    '"CLAPP, all layers",clapp-illing,0.001,,45.00 ± 1.00,+5.00 ± 1.20,"CLAPP, last layer",\n'
    '+ spatial dependence (CLAPP++),clapp++,0.001,80.51,46.00 ± 9.00,−1.00 ± 7.00,"CLAPP, all layers",'
    "not comparable: w\n"
)
A3 = (
    "# Ours\npublished as,rule,data,published (%),ours (%),mark\n"
    '"cross-entropy, BP",bp,cifar10,72.41,55.13 ± 3.37,not comparable: scale\n,untrained,cifar10,,53.60,control\n'
)


def some_results(folder: Path) -> Path:
    """What the record cannot do without, and cells of CIFAR-10's comparison under the names of other studies."""
    for name in ("theory", "fig3b", "fig4c", "figA2", "ff-mnist", "scff-mnist", "compare-cifar10"):
        shutil.copytree(DOCS / "results" / name, folder / name)
    for name, text in (("fig5", FIG5), ("tableA3", A3)):
        cells = folder / name / "cells"
        cells.mkdir(parents=True)
        (cells.parent / f"{name}.csv").write_text(text, encoding="utf-8")
        for cell in ("clapp++-s0", "clapp++-s1", "search-clapp++-lr0.001"):
            shutil.copy(folder / "compare-cifar10" / "cells" / f"{cell}.json", cells)
    return folder


def rows(table: str) -> dict[str, dict[str, str]]:
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def test_what_has_been_run_since_stands_there(tmp_path: Path) -> None:
    results = some_results(tmp_path)
    before = rows(reproduction.overview(DOCS / "results"))
    found = rows(reproduction.overview(results))
    for name, day in (("Figure 1E", 30), ("Figure 5", 30), ("Table A3", 30)):
        assert found[name]["verdict"] == "not comparable at this scale"
        assert found[name]["scale of ours"] == "cifar10, width 0.125, 4 epochs of 10,000 images, two seeds"
        assert re.fullmatch(r"[0-9a-f]{7}(-dirty)?(, [0-9a-f]{7}(-dirty)?)*", found[name]["commit"])
        assert found[name]["date"] == f"2026-11-{day}"
    assert found["Figure 2"] == before["Figure 2"]
    assert found["Table A4"]["verdict"] == "not run"
    assert found["Table A4"]["scale of ours"] == found["Table A4"]["commit"] == ""
    assert found["Figure 5"]["ours"].startswith(
        "of 2 steps, paired by seed, 1 with an interval clear of zero: CLAPP, all layers +5.00 ± 1.20 (against CLAPP, "
    )
    assert found["Figure 1E"]["ours"].startswith("the 3 rows of Figure 5, no others: means from 40.00 to 46.00 %; [")
    assert "| Table A3 | cross-entropy, BP | cifar10 | 72.41 | 55.13 ± 3.37 | not comparable: scale |" in (
        recorded.accuracies(results)
    )
    text = (results / "fig5" / "fig5.csv").read_text(encoding="utf-8")
    (results / "fig5" / "fig5.csv").write_text(text.replace("not comparable: w", "reproduced"), encoding="utf-8")
    assert rows(reproduction.overview(results))["Figure 5"]["verdict"] == "reproduced"


def test_table_a4_names_the_best_of_its_grid(tmp_path: Path) -> None:
    lines = [f"{o},{t},{e},10,{a}" for o in ("ce", "clapp", "lpl") for t, e, a in ((1, "any", 30), (9, 0.1, 35))]
    (tmp_path / "tableA4").mkdir()
    head = "# x\nobjective,T,eta_h,weight_steps,accuracy"
    (tmp_path / "tableA4" / "grid.csv").write_text("\n".join([head, "untrained,,,0,20", *lines, ""]), encoding="utf-8")
    said, verdict = findings.table_a4_grid(tmp_path)
    assert said.startswith("best of the grid: ce T = 9, η_h = 0.1; clapp T = 9")
    assert verdict == "not comparable at this scale"


def test_the_page_from_paper_to_code_says_what_was_run(tmp_path: Path) -> None:
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert reproduction.in_paper(text, DOCS / "results") == text, "write it anew: make docs"
    unrun = re.sub(
        r"^(\| (?:Figure 1E|Figure 5|Table A\d) \| `[^|]+ \| )[^|]+\|$", r"\1command only |", text, flags=re.M
    )
    run = reproduction.in_paper(unrun, some_results(tmp_path / "some"))
    assert run.count("[the record](reproduction.md#figures-and-tables)") == 3
    assert re.findall(r"^\| ([^|]+) \| [^|]+ \| command only", run, re.MULTILINE) == ["Table A4"]
    shutil.rmtree(tmp_path / "some" / "fig5")
    shutil.rmtree(tmp_path / "some" / "tableA3")
    assert reproduction.in_paper(run, tmp_path / "some") == unrun


def test_the_longest_runs_have_an_interval(tmp_path: Path) -> None:
    """The t interval over seeds, as all others; of one seed none."""
    folder = DOCS / "results" / "cifar10" / "cells"
    cells = [json.loads((folder / f"clapp++-s{seed}-e04.json").read_text(encoding="utf-8")) for seed in (0, 1)]
    values = [cell["linear"]["all"] for cell in cells]
    assert values == [65.37, 63.79]
    line = "| Table 2 | CLAPP++ | cifar10 | 80.51 ± 0.27 | {} | not comparable: width 0.25; epochs 4 for 300; "
    assert line.format(plus_minus(t_interval(values))) in recorded.accuracies(DOCS / "results")
    (tmp_path / "cifar10" / "cells").mkdir(parents=True)
    shutil.copy(folder / "clapp++-s0-e04.json", tmp_path / "cifar10" / "cells")
    assert line.format("65.37") in recorded.accuracies(tmp_path)
    assert f"| `reproduce cifar10`, {cells[0]['environment']['git'][:7]} |" in recorded.accuracies(tmp_path)


def test_tiny_imagenet_stands_beside_table_2_where_a_rule_was_run(tmp_path: Path) -> None:
    cells = tmp_path / "compare-tiny-imagenet" / "cells"
    cells.mkdir(parents=True)
    values: list[float] = []
    for seed in (0, 1):
        name = f"clapp++-s{seed}.json"
        cell = json.loads((DOCS / "results" / "compare-cifar10" / "cells" / name).read_text(encoding="utf-8"))
        cell["task"][0]["study"]["data"] = cell["config"]["data"] = "tiny-imagenet"
        values.append(summary.accuracy(cell, "all", "all"))
        (cells / name).write_text(json.dumps(cell), encoding="utf-8")
    shutil.copy(DOCS / "results" / "compare-cifar10" / "cells" / "untrained-s0.json", cells)
    failed = {"failed": "NaN", "anew": True, "task": [], "environment": {"git": "0" * 40}}
    (cells / "bp-infonce-s0.json").write_text(json.dumps(failed), encoding="utf-8")
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in recorded.accuracies(tmp_path).splitlines()
    ]
    tiny = {row[1]: row[3:] for row in table if row[2] == "tiny-imagenet"}
    assert tiny["CLAPP++"][:2] == ["36.63 ± 0.32", plus_minus(t_interval(values))]
    assert tiny["CLAPP++"][2].startswith("not comparable: width 0.125; epochs 4 for 300; batch size 64 for 32; ")
    others = [row[2] for name, row in tiny.items() if name != "CLAPP++"]
    assert len(others) == 6
    assert all(other.startswith("not run") for other in others)
    made = {str(json.loads(file.read_text())["environment"]["git"])[:7] for file in cells.glob("*.json")}
    assert tiny["CLAPP++"][3] == f"[`compare`](compare.md#run-it-again), {', '.join(sorted(made))}"
    assert {row[3] for name, row in tiny.items() if name != "CLAPP++"} == {""}


def test_others_in_their_own_settings(tmp_path: Path) -> None:
    """The number of seeds, and on which side of the line, from the files; a recipe's own verdict where it was run."""
    results = some_results(tmp_path)
    assert [line.split(" | ")[-1] for line in recorded.peers(results).splitlines()[2:]] == [
        "−0.06 points, one seed: within 0.3 points |",
        "−0.30 points, one seed: exactly on the line of 0.3 points |",
    ]
    assert "`localssl reproduce scff-cifar10`" in recorded.not_run(results)
    with (results / "ff-mnist" / "ff-mnist.csv").open("a", encoding="utf-8") as file:
        file.write("1,100,2.51,1.6,1\n")
    header = {"scff-cifar10": "net,seed,accuracy,best_tested", "lpl-cifar10": "encoder,seed,accuracy,features"}
    for name, trained, cell in (("scff-cifar10", "trained", "cpu-probe-s0"), ("lpl-cifar10", "lpl", "cpu-lpl-s0")):
        (results / name / "cells").mkdir(parents=True)
        lines = ["# x", header[name], "untrained,0,30.5,", f"{trained},0,31.25,", f"{trained},1,32.25,", ""]
        (results / name / f"{name}-cpu.csv").write_text("\n".join(lines), encoding="utf-8")
        noted = {"facts": ["CIFAR-10 (JPEG)"], "environment": {"git": "0123456789ab"}}
        (results / name / "cells" / f"{cell}.json").write_text(json.dumps(noted), encoding="utf-8")
    ff, _, lpl, scff = [line.strip("| ").split(" | ") for line in recorded.peers(results).splitlines()[2:]]
    assert (ff[3], ff[-1]) == ("97.99 ± 6.35", "−0.56 points, two seeds: not within 0.3 points")
    for row, number in ((lpl, "59.40"), (scff, "80.80")):
        assert row[2:4] == [number, "31.75 ± 6.35 (untrained 30.50)"]
        assert row[4] == "a CPU's, two seeds"
        assert row[-2] == "0123456"
        assert row[-1].startswith("not comparable: scale (width 0.25")
    assert "scff-cifar10" not in recorded.not_run(results)
    assert "scff-stl10" in recorded.not_run(results)
