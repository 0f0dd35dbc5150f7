"""Rules side by side: what is run, what a failure leaves alone, what is written, what goes on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import localssl
from localssl import api, cli, own, rules
from localssl.data.sources import Images
from localssl.data.specs import spec_for
from localssl.encoders.nets import VGG6_CHANNELS
from localssl.errors import RunError, UsageError
from localssl.experiments import EXPERIMENTS, comparison, published, rows, summary, tables
from localssl.experiments.apart import FAILED, reason_of, run_apart
from localssl.experiments.cells import Part, Settings
from localssl.experiments.comparison import compare
from localssl.experiments.rows import Row, Study
from localssl.report import ablation_figure
from localssl.report import comparison as report
from localssl.runs.config import TrainConfig
from localssl.runs.metrics import read as rows_of_metrics
from localssl.stats import t_interval
from localssl.system.devices import peak_memory
from localssl.training.train import train

from .compare_util import in_this_process
from .sources_util import encoded, pictures, write_files
from .util import usage_error

BREAKS = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from localssl.rules import register
from localssl.rules.clapp_pp import ClappPP

@dataclass(frozen=True, kw_only=True)
class Breaks(ClappPP):
    name: ClassVar[str] = "breaks_100%"

    def layer_loss(self, batch, layer, projections):
        return super().layer_loss(batch, layer, projections)

    def losses(self, batch, projections):
        if Path(__file__).with_name("broken").exists():
            raise ValueError("so it is\\nbroken")
        return super().losses(batch, projections)

register("breaks_100%", Breaks)
"""
SMALL = "--data digits --epochs 1 --width 0.25 --batch-size 16 --limit-images 64 --probe-images 200"
STUDY = Study("digits", epochs=1, width=0.25, batch_size=16, limit_images=64, probe_images=200, align_batches=2)


def rows_of(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    return list(csv.DictReader(lines[1:]))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module whose rule fails as long as there is a file "broken"."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "breaks_of_compare.py").write_text(BREAKS)
    (folder / "broken").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(rules, "_RULES", dict(rules._RULES))  # pyright: ignore[reportPrivateUsage]
        sys.modules.pop("breaks_of_compare", None)
        import_module("breaks_of_compare")
        yield folder


@pytest.mark.long
def test_a_failing_rule_leaves_the_others_alone(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = broken / "study"
    command = (
        f"compare --rules clapp++ breaks_100% {SMALL} --seeds 1 --labels 10 all --align-batches 2 --jobs 2 --threads 1"
    )
    assert cli.main([*command.split(), "--out", str(out)]) == 1
    said, errors = capfd.readouterr()
    line = next(i for i, text in enumerate(BREAKS.splitlines(), start=1) if "raise" in text)
    reason = f"ValueError: so it is broken ({broken / 'breaks_of_compare.py'}:{line})"
    assert errors == f"localssl: 1 row failed; breaks_100%: {reason}; logs are in {out / 'runs'}\n"
    assert "0 of 2 parts are done; running 2, 2 at a time" in said
    assert "Traceback" in (out / "runs" / "breaks_100-s0-").with_name(log_of(out, "breaks")).read_text()

    table = {row["rule"]: row for row in rows_of(out / "table.csv")}
    assert list(table) == ["untrained", "clapp++", "breaks_100%"]
    assert [row["status"] for row in table.values()] == ["done", "done", "failed"]
    assert table["breaks_100%"]["reason"] == reason
    mine = table["clapp++"]
    record = json.loads((out / "cells" / "clapp++-s0.json").read_text())
    run = localssl.runs.run.open_run(out / "runs" / "clapp++-s0")
    assert int(mine["parameters_encoder"]) == sum(p.numel() for p in run.encoder().parameters())
    assert int(mine["parameters_rule"]) == sum(p.numel() for p in run.learner().projections.parameters())
    assert 100 < record["peak_memory_mib"] < 10_000
    assert record["images_per_second"] > 1
    assert float(mine["cosine_5"]) == pytest.approx(1)  # the last block's own loss is the reference
    assert (mine["lr"], mine["rates_tried"]) == ("0.002", "1 (default)")

    markdown, tex = (out / "table.md").read_text(), (out / "table.tex").read_text()
    assert markdown.startswith("| rule | accuracy, 10 labels/class (%) |")
    assert f"breaks_100% failed: {reason}" in markdown
    assert r"breaks\_100\% & failed & failed &" in tex
    assert "clapp{+}{+} & " in tex
    compiles(out / "table.tex")
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")

    # mended: only its cells are run, from the start; then none
    (broken / "broken").unlink()
    before = (out / "cells" / "clapp++-s0.json").stat().st_mtime_ns
    assert cli.main([*command.split(), "--out", str(out)]) == 0
    said, errors = capfd.readouterr()
    assert errors == ""
    assert "1 of 2 parts are done; running 1, 2 at a time" in said
    assert (out / "cells" / "clapp++-s0.json").stat().st_mtime_ns == before
    assert [row["status"] for row in rows_of(out / "table.csv")] == ["done"] * 3
    assert cli.main([*command.split(), "--out", str(out)]) == 0
    assert "running" not in capfd.readouterr().out

    # other settings are refused, and nothing is lost
    other = command.replace("--width 0.25", "--width 0.5")
    assert cli.main([*other.split(), "--out", str(out)]) == 2
    errors = capfd.readouterr().err
    assert "width 0.5 (there: 0.25); use those, or another --out" in errors
    assert errors.count("\n") == 1
    assert (out / "cells" / "clapp++-s0.json").stat().st_mtime_ns == before


def log_of(out: Path, start: str) -> str:
    return next(path.name for path in (out / "runs").glob(f"{start}*.log"))


def compiles(table: Path) -> None:
    latex = shutil.which("pdflatex") or shutil.which("tectonic")
    if latex is None:
        return
    document = table.with_name("document.tex")
    document.write_text("\\documentclass{article}\n\\begin{document}\n\\input{table}\n\\end{document}\n")
    subprocess.run([latex, document.name], cwd=table.parent, check=True, stdin=subprocess.DEVNULL, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--rules clapp++ clap++ --data digits", "unknown rule 'clap++': did you mean"),
        ("--rules clapp++ --data digit", "unknown data set 'digit'"),
        (["--rules", "clapp++ ff=hinge", "--data", "digits"], "unknown option of rule 'clapp++' 'ff': did you mean"),
        (["--rules", "ipc objective=lpp", "--data", "digits"], "unknown objective 'lpp'"),
        ("--data digits --rules", "--rules stands without a value: give names of rules, or all"),
        ("--rules clapp++ --data digits --seeds 0", "--seeds 0: use 1 or more"),
        ("--rules clapp++ --data digits --search-lr 1e-3 -1", "--search-lr takes positive numbers"),
    ],
)
def test_refused_before_anything_is_trained(
    arguments: str | list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = arguments.split() if isinstance(arguments, str) else arguments
    assert cli.main(["compare", *words, "--out", str(tmp_path / "x"), "--width", "0.25"]) == 2
    assert says in capfd.readouterr().err
    assert not list(tmp_path.glob("x/runs/*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no cell of this study"),
        ("{}", "is no cell of this study"),
        ('{"task": [{"data": "digits"}]}', "is no cell of a comparison"),
    ],
)
def test_cells_of_another_study(text: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cell = tmp_path / "cells" / "untrained-s0.json"
    cell.parent.mkdir()
    cell.write_text(text, encoding="utf-8")
    assert cli.main(["compare", "--rules", "clapp++", "--data", "digits", "--out", str(tmp_path), "--seeds", "1"]) == 2
    assert f"{cell} {says}" in capfd.readouterr().err
    assert cell.read_text(encoding="utf-8") == text


def test_a_runs_folder_is_no_comparisons_and_the_other_way_round(tmp_path: Path) -> None:
    """Both write a flags.yaml; a run that lost its own could not be gone on with."""
    run, study = tmp_path / "run", tmp_path / "study"
    (run / "checkpoint").mkdir(parents=True)
    (study / "cells").mkdir(parents=True)
    for folder in (run, study):
        (folder / "flags.yaml").write_text("mine: true")
    with usage_error(r"is the folder of a run \(checkpoint\); name another one"):
        api.compare(data="digits", rules=["clapp++"], out=run)
    for resume in (False, True):
        with usage_error(r"holds a comparison or an experiment \(cells\); choose another --out"):
            api.train(rule="clapp++", data="digits", out=study, resume=resume)
    assert [path.name for path in sorted(run.iterdir())] == ["checkpoint", "flags.yaml"]
    assert [path.name for path in sorted(study.iterdir())] == ["cells", "flags.yaml"]
    assert {(folder / "flags.yaml").read_text() for folder in (run, study)} == {"mine: true"}


def test_flags_are_kept_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a comparison that is stopped, too; not of one that is refused."""
    out, words = tmp_path / "study", ["compare", "--rules", "clapp++", *SMALL.split(), "--seeds", "1"]

    def stopped(parts: Sequence[Part], settings: Settings) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "run_apart", stopped)
        with pytest.raises(KeyboardInterrupt):
            api.compare(data="digits", rules=["clapp++"], width=0.25, seeds=1, out=out)
    flags = (out / "flags.yaml").read_text()
    assert "width: 0.25" in flags

    (out / "cells").mkdir()
    (out / "cells" / "clapp++-s0.json").write_text("{}")  # of a row, not of the untrained encoder
    assert cli.main([*words, "--out", str(out)]) == 2
    assert (out / "flags.yaml").read_text() == flags
    assert not (out / "runs").exists()


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts run in this process; the names of those that were asked for."""
    return in_this_process(monkeypatch)


@pytest.mark.long
def test_intervals_are_of_the_seeds(inline: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = f"compare --rules clapp++ {SMALL} --seeds 2 --labels 10 all --align-batches 0 --threads 1 --out {out}"
    assert cli.main(command.split()) == 0
    assert len(inline) == 4
    mine = next(row for row in rows_of(out / "table.csv") if row["rule"] == "clapp++")
    seeds = rows_of(out / "seeds.csv")
    for budget in ("10", "all"):
        of: dict[str, list[float]] = {}
        for row in seeds:
            if (row["layer"], row["method"], row["labels"]) == ("all", "linear", budget):
                of.setdefault(row["rule"], []).append(float(row["accuracy"]))
        gains = [a - b for a, b in zip(of["clapp++"], of["untrained"], strict=True)]
        for name, values in ((f"accuracy_{budget}", of["clapp++"]), (f"gain_{budget}", gains)):
            found = [float(mine[name + end]) for end in ("", "_low", "_high")]
            assert found == pytest.approx(t_interval(values), abs=2e-3)
    assert (out / "table.md").read_text().startswith("| rule | accuracy, 10 labels/class (%) |")


def test_the_search_never_judges_on_what_was_trained_on(
    inline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Images] = []
    own = comparison.features

    def features(encoder: Any, images: Images, **options: Any) -> list[torch.Tensor]:
        judged.append(images)
        return own(encoder, images, **options)

    monkeypatch.setattr(comparison, "features", features)
    study = replace(STUDY, limit_images=500, search_lr=(1e-3, 1e6), search_epochs=1, align_batches=0)
    found = compare(study, [Row("clapp++", "clapp++")], Settings(tmp_path, threads=1), 1)
    assert inline == ["untrained-s0", "search-clapp++-lr0.001", "search-clapp++-lr1e+06", "clapp++-s0"]
    run = localssl.runs.run.open_run(tmp_path / "runs" / "search-clapp++-lr0.001")
    assert (run.config.limit_images, run.config.epochs, run.config.lr) == (400, 1, 1e-3)
    trained = pixels(run.images("train", limit=400))
    fit, held = judged[:2]
    assert (len(fit), len(held)) == (study.probe_images, 100)
    assert pixels(fit) <= trained
    assert not pixels(held) & trained
    assert pixels(held) <= pixels(run.images("train", limit=500))  # no more than the study may see
    assert not pixels(held) & pixels(run.images("test"))
    assert found[1].records[0]["config"]["lr"] == 1e-3  # at the other rate it is worse, or has failed
    assert found[1].budget == "2 rates × 1 epoch on 400 images"
    kept = json.loads((tmp_path / "cells" / "search-clapp++-lr0.001.json").read_text())
    assert kept["seconds"] > 0
    assert found[1].edge == "smallest"
    inline.clear()
    more = replace(study, search_lr=(1e-3, 1e6, 1e7))
    found = compare(more, [Row("clapp++", "clapp++")], Settings(tmp_path, threads=1), 1)
    assert inline == ["search-clapp++-lr1e+07"]  # rates may be added
    assert found[1].budget == "3 rates × 1 epoch on 400 images"
    below = "\n".join(summary.notes(found, more, Settings(tmp_path, threads=1)))
    assert "The smallest was the best for clapp++: one beyond it may be better." in below
    assert "largest was the best" not in below
    trial = tmp_path / "cells" / "search-clapp++-lr1e+07.json"
    record = json.loads(trial.read_text()) | {"accuracy": 101.0}
    trial.write_text(json.dumps({key: value for key, value in record.items() if key != FAILED}))
    with usage_error("-s0.json was trained at a rate of 0.001, and of these rates 10000000.0 is the best; delete"):
        compare(more, [Row("clapp++", "clapp++")], Settings(tmp_path, threads=1), 1)


def pixels(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.batch(torch.arange(len(images)))}


def test_the_rate_with_the_best_accuracy_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accuracy = {"a": (50.0, 70.0, None), "b": (60.0, 40.0, 50.0), "c": (None, None, None)}

    def run(parts: Sequence[Part], settings: Settings) -> list[dict[str, Any]]:
        found = [accuracy[p.arguments[0]["row"]["label"]][(1, 2, 4).index(p.arguments[0]["lr"])] for p in parts]
        return [{FAILED: "NaN", "anew": True} if a is None else {"accuracy": a} for a in found]

    monkeypatch.setattr(comparison, "_run", run)
    study = replace(STUDY, search_lr=(1, 2, 4))
    rows = [Row(label, "clapp++") for label in accuracy]
    chosen = comparison._search(study, rows, Settings(tmp_path), 100)  # pyright: ignore[reportPrivateUsage]
    assert {label: c.lr for label, c in chosen.items()} == {"a": 2, "b": 1, "c": None}
    assert chosen["c"].failed == "at every rate of the search: NaN"
    own = comparison._rates(replace(STUDY, search_lr=(1e-3, 2e-3)), Row("s", "softhebb"))  # pyright: ignore[reportPrivateUsage]
    assert own == [0.005, 0.01]  # 0.01 where digits have 0.002


def test_one_rate_is_taken_without_a_trial(inline: list[str], tmp_path: Path) -> None:
    study = replace(STUDY, search_lr=(3e-3,), align_batches=0)
    found = compare(study, [Row("clapp++", "clapp++")], Settings(tmp_path, threads=1), 1)
    assert inline == ["untrained-s0", "clapp++-s0"]
    assert (found[1].budget, found[1].records[0]["config"]["lr"]) == ("1 (given)", 3e-3)


def test_photographs_of_ones_own(inline: list[str], tmp_path: Path) -> None:
    """A folder with a grey and a damaged image, at a size that is asked for."""
    files = {f"{i % 2}/{i}.jpg": encoded(p, "JPEG") for i, p in enumerate(pictures(60, 50, 40))}
    files["0/bad.jpg"] = files["0/0.jpg"][:99]
    write_files(tmp_path / "photos", files)
    flags = "--rules clapp++ --seeds 1 --epochs 1 --batch-size 16 --width 0.25 --align-batches 0 --threads 1"
    line = ["compare", *flags.split(), "--data", f"imagefolder:{tmp_path / 'photos'}"]
    assert cli.main([*line, "--out", str(tmp_path / "bad")]) == 2
    assert cli.main([*line, "--out", str(tmp_path / "out"), "--skip-bad", "--image-size", "64"]) == 0
    record = json.loads((tmp_path / "out" / "cells" / "clapp++-s0.json").read_text())
    assert record["config"]["image_size"] == 64
    assert "1 bad image skipped: 0/bad.jpg" in record["facts"]


def test_a_rule_with_another_encoder_has_its_own_untrained_row(inline: list[str], tmp_path: Path) -> None:
    study = replace(STUDY, align_batches=0)
    row = Row("normed", "clapp++", changes={"encoder_options": ("norm=length",)})
    settings = Settings(tmp_path, threads=1)
    found = compare(study, [row], settings, 1)
    assert [c.row.label for c in found] == ["untrained", "untrained (norm=length)", "normed"]
    plain, untrained, normed = (c.records[0] for c in found)
    assert untrained["config"]["encoder"] == normed["config"]["encoder"] != plain["config"]["encoder"]
    line = summary.summarise(found, study)[2]
    values = [summary.accuracy(r, "all", "all") for r in (normed, untrained)]
    assert line.gain["all"][0] == pytest.approx(values[0] - values[1])
    # an encoder that is left untrained is the same under every rule: its gain is zero
    same = replace(row, changes={**row.changes, "epochs": 0})
    found = compare(study, [same], replace(settings, out=tmp_path / "same"), 1)
    assert summary.summarise(found, study)[2].gain["all"][0] == 0


def test_rules_with_options_are_rows_of_their_own(inline: list[str], tmp_path: Path) -> None:
    words = [
        "clapp++",
        "clapp++ rank=2 projection=low-rank",
        "clapp++ projection=low-rank  rank=2",
        "clapp++ margin=0.5",
    ]
    found = rows.named(words, "digits")
    assert [row.label for row in found] == ["clapp++", "clapp++ projection=low-rank rank=2", "clapp++ margin=0.5"]
    assert found[1].options == {"rank": 2, "projection": "low-rank"}
    study = replace(STUDY, align_batches=0)
    settings = Settings(tmp_path, threads=1)
    done = compare(study, found, settings, 1)
    configs = [c.records[0]["config"] for c in done[1:]]
    assert [c["rule_options"] for c in configs] == [row.options for row in found]
    sizes = [line.parameters_rule for line in summary.summarise(done, study)[1:]]
    assert sizes[1] < sizes[0] == sizes[2]  # pyright: ignore[reportOptionalOperand]
    before = list(inline)
    compare(study, rows.named(["clapp++ rank=2 projection=low-rank"], "digits"), settings, 1)
    assert inline == before  # the same cell
    compare(study, rows.named(["clapp++ rank=3 projection=low-rank"], "digits"), settings, 1)
    assert len(inline) == len(before) + 1


@pytest.mark.parametrize(
    ("text", "rule", "options"),
    [
        ("ipc", "ipc", {}),
        ("dfa per_position=true", "dfa", {"per_position": True}),
        ("scff theta1=[0,5.5] halves=views", "scff", {"theta1": [0, 5.5], "halves": "views"}),
        ("my rules/a=b.py:Mine strength=2", "my rules/a=b.py:Mine", {"strength": 2}),
    ],
)
def test_a_row_is_read_as_it_is_written(text: str, rule: str, options: dict[str, Any]) -> None:
    found = rows.row(text)
    assert (found.rule, found.options) == (rule, options)
    assert rows.row(found.label) == found == rows.of_rule(rule, options)


def test_every_rule_but_yardsticks_by_default() -> None:
    assert rows.named(["all"], "digits") == rows.named([], "digits")
    assert [row.rule for row in rows.named(["all", "ff views=1"], "digits")] == [*rows.default_rules("digits"), "ff"]
    assert "optimum" not in rows.default_rules()
    assert {"clapp", "clapp++", "bp-infonce"} <= set(rows.default_rules())


def test_table2_goes_on_with_the_cells_of_compare(
    inline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "TABLE2", {n: tables.TABLE2[n] for n in ("BP-CLAPP++", "CLAPP++", "CLAPP")})
    monkeypatch.setitem(tables.TABLE2, "CLAPP", ("no-such-rule", {}))
    monkeypatch.setitem(published.TABLE2["CLAPP++"], "digits", published.Number(50.0, 60.0))
    study = replace(STUDY, align_batches=0)
    settings = Settings(tmp_path / "table2", threads=1, seeds=1, scale="kept")
    with pytest.raises(UsageError, match="table2 holds no comparison; make one"):
        tables.table2(settings)
    compare(study, [Row("clapp++", "clapp++")], settings, 1)
    before = list(inline)
    with pytest.raises(UsageError, match=r"other settings .data 'digits' for 'cifar10', epochs 1 for 2.*--scale kept"):
        tables.table2(replace(settings, scale="cpu"))
    assert inline == before
    tables.table2(settings)
    assert inline[len(before) :] == ["bp-clapp++-s0"]
    said = capsys.readouterr().out
    assert "row 'CLAPP' left out: unknown rule 'no-such-rule'" in said
    shown = {row["published as"]: row for row in rows_of(settings.out / "table2.csv")}
    assert shown["CLAPP++"]["mark"] == (
        "not comparable: vgg5 for vgg6; epochs 1 for 300; batch size 16 for 32; lr 0.002 for 0.0002; 64 images; "
        "fast probe; probe fitted on 200 of 1,297 labels"
    )
    assert shown["BP-CLAPP++"]["mark"] == "no published number on these data"
    assert (shown[""]["rule"], shown[""]["mark"]) == ("untrained", "control")


PAPERS = ("published (%)", "paper, STL-10: other data (%)", "mark")


@pytest.mark.long
def test_fig5_pairs_its_steps(inline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = {name: rules.get(name).__class__ for name in rules.names() if name.startswith(("clapp", "bp-clapp"))}
    monkeypatch.setattr(rules, "_RULES", family)
    settings = Settings(tmp_path / "fig5", threads=1, seeds=2, scale="kept")
    compare(replace(STUDY, align_batches=0), [], settings, 2)
    drawn: dict[str, ablation_figure.Bar] = {}
    draw = ablation_figure.draw

    def noted(bars: Sequence[ablation_figure.Bar], caption: str, path: Path) -> Path:
        drawn.update({bar.name: bar for bar in bars})
        return draw(bars, caption, path)

    monkeypatch.setattr(ablation_figure, "draw", noted)
    tables.fig5(settings)
    every = rows_of(settings.out / "fig5.csv")
    shown = {row["step"]: row for row in reversed(every)}  # a second contrast stands below a row
    cells = {
        rule: [json.loads((settings.out / "cells" / f"{rule}-s{seed}.json").read_text()) for seed in (0, 1)]
        for rule in ("clapp-illing", "clapp", "clapp++")
    }

    def values(rule: str, layer: str) -> list[float]:
        return [summary.accuracy(record, layer, "all") for record in cells[rule]]

    step = shown["+ spatial dependence (CLAPP++)"]
    assert step["against"] == "+ SimCLR views, all layers"
    differences = [a - b for a, b in zip(values("clapp++", "all"), values("clapp", "all"), strict=True)]
    assert step["step (points)"] == report.plus_minus(t_interval(differences), sign=True)
    square = {row["against"]: row for row in every if row["step"] == "+ SimCLR views, all layers"}  # both ways
    assert list(square) == ["+ SimCLR views, last layer", "clapp, patches, all layers", "CLAPP, all layers"]
    differences = [a - b for a, b in zip(values("clapp", "all"), values("clapp-illing", "all"), strict=True)]
    assert square["CLAPP, all layers"]["step (points)"] == report.plus_minus(t_interval(differences), sign=True)
    papers = [shown["+ spatial dependence (CLAPP++)"][key] for key in PAPERS]
    assert papers == ["", "78.66 ± 0.16", ""]  # digits have no number, and STL-10's gives no verdict
    assert shown["CLAPP, last layer"][PAPERS[1]] == "73.60"
    rates = {row["rule"]: row["learning rate"] for row in shown.values()}
    assert rates["clapp++"] == f"{cells['clapp++'][0]['config']['lr']:g}" == "0.002"
    patched = [json.loads(file.read_text()) for file in sorted(settings.out.glob("cells/clapp_patches-*-s?.json"))]
    assert [record["config"].pop("views") for record in patched] == ["patches"] * 2
    for record, whole in zip(patched, cells["clapp"], strict=True):  # the views alone are others
        assert record["config"] == {k: v for k, v in whole["config"].items() if k != "views"}
        assert record["probe"] != whole["probe"]
    for layer, block in (("last layer", "5"), ("all layers", "all")):
        one, two = ([summary.accuracy(record, block, "all") for record in found] for found in (patched, cells["clapp"]))
        assert shown[f"clapp, patches, {layer}"]["ours (%)"] == report.plus_minus(t_interval(one))
        (pair,) = (
            row
            for row in every
            if (row["step"], row["against"]) == (f"+ SimCLR views, {layer}", f"clapp, patches, {layer}")
        )
        differences = [b - a for a, b in zip(one, two, strict=True)]
        assert pair["step (points)"] == report.plus_minus(t_interval(differences), sign=True)
    assert list(dict.fromkeys(row["step"] for row in every))[:6] == [
        f"{step} {layer}"
        for step in ("CLAPP,", "clapp, patches,", "+ SimCLR views,")
        for layer in ("last layer", "all layers")
    ]
    below = (settings.out / "fig5.md").read_text()
    assert "other data than here" in below
    assert "train --views patches" in below
    untrained = [json.loads((settings.out / "cells" / f"untrained-s{seed}.json").read_text()) for seed in (0, 1)]
    control = t_interval([summary.accuracy(record, "all", "all") for record in untrained])
    assert f"left untrained, all layers: {report.plus_minus(control)} %." in below
    assert "k + 1 rows down" in below
    last = shown["+ SimCLR views, last layer"]
    assert last["ours (%)"] == report.plus_minus(t_interval(values("clapp", "5")))
    averaged = json.loads(next(settings.out.glob("cells/clapp++_last-averaged*-s0.json")).read_text())
    assert averaged["config"]["patches"][-1] == 1000
    sizes = [{r[0]: r[7] for r in c["probe"] if r[1] == "linear"} for c in (averaged, cells["clapp"][0])]
    assert sizes[0] == sizes[1]  # the probe's patches are the common ones
    assert (settings.out / "fig5.png").is_file()
    assert list(drawn) == list(dict.fromkeys(row["step"] for row in every))
    spatial = drawn["+ spatial dependence (CLAPP++)"]
    assert (spatial.published, spatial.elsewhere) == (None, (78.66, 0.16))


def test_experiments_are_listed() -> None:
    assert {"table2", "tableA3", "fig5"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(
    ("number", "ours", "differences", "says"),
    [
        (published.Number(80.5, 0.3), [80.4, 80.5, 80.7, 80.3], [], "reproduced"),
        (published.Number(80.5, 0.3), [81.0, 81.1, 81.0, 80.9], [], "off by +0.50"),
        (published.Number(80.5, 0.01), [80.4, 80.5, 80.7, 80.2], [], "off by −0.05"),
        (published.Number(80.5), [80.49, 80.52, 80.55], [], "reproduced (inside our interval; the paper gives none)"),
        (published.Number(80.5), [79.0, 83.0], [], "not comparable: 2 seeds, an interval of ± 25"),
        (published.TABLE2["Naive CLAPP DFA"]["stl10"], [52.3, 52.3], [], "not comparable: network, probe"),
        (published.Number(70.5), [80.49, 80.5, 80.51], [], "off by +10.00"),
        (published.Number(80.5, 0.3), [80.5], [], "not comparable: one seed, no interval"),
        (published.Number(80.5, 0.3), [80.5, 80.5], ["width 0.25"], "not comparable: width 0.25"),
        (published.TABLE2["SCFF"]["cifar10"], [80.6, 80.6], [], "not comparable: quoted; Chen 2025"),
    ],
)
def test_marks(number: published.Number, ours: list[float], differences: list[str], says: str) -> None:
    assert published.mark(number, ours, differences).startswith(says)


def test_published_numbers_are_the_papers() -> None:
    assert sum(len(numbers) for numbers in published.TABLE2.values()) == 27
    assert str(published.TABLE2["BP-InfoNCE"]["stl10"]) == "81.97 ± 1.23"
    assert str(published.TABLE2["CLAPP++both"]["tiny-imagenet"]) == "37.78 ± 0.67"
    assert str(published.TABLE_A3["LPL objective, PC"]["stl10"]) == "51.21"
    assert set(tables.TABLE2) == set(published.TABLE2)
    assert set(tables.TABLE_A3) == set(published.TABLE_A3)
    for name, (_, _, changes) in tables.TABLE_A3.items():  # what --scale paper trains is what the numbers came from
        config = {"encoder": {"name": "vgg6", "width": list(VGG6_CHANNELS)}, "data": "cifar10", "rule": "ipc"}
        config |= {"augmentation": asdict(spec_for("cifar10").augmentation), "limit_images": None, "rule_options": {}}
        config |= {"schedule": "constant", "precision": "32-true", **changes}
        number = published.TABLE_A3[name]["cifar10"]
        assert published.differences(number, config, "paper", []) == []
        assert published.differences(number, config, "paper", [], "10") == ["10 labels per class"]
        if changes["weight_decay"]:
            found = published.differences(number, config | {"optimizer": "adam", "weight_decay": 0}, "paper", [])
            assert found == ["optimizer adam for adam-l2", "weight decay 0 for 0.0001"]
        assert published.differences(number, config | {"views": "patches"}, "paper", []) == ["other views"]


def test_plain_text_becomes_latex_and_markdown(tmp_path: Path) -> None:
    assert report.latex(r"a_b & 5% #1 {x} \y ~^ c++ ± −1") == (
        r"a\_b \& 5\% \#1 \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{} c{+}{+} $\pm$ $-$1"
    )
    report.to_markdown(tmp_path / "t.md", ["a", "b"], [["x|y", "1"]], ["below", ""])
    assert (tmp_path / "t.md").read_text() == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n\nbelow\n"
    report.to_latex(tmp_path / "table.tex", ["c++_%", "±"], [["a_b", "−1 ± 2"]], ["one\ntwo"])
    assert (tmp_path / "table.tex").read_text().endswith("\\end{tabular}\n% one two\n")
    compiles(tmp_path / "table.tex")


def test_reasons() -> None:
    assert reason_of(RunError("one\n line")) == "one line"
    alone = RunError("NaN in step 3", "go on with --resume")  # advice for one run is no advice for a comparison
    assert (str(alone), reason_of(alone)) == ("NaN in step 3; go on with --resume", "NaN in step 3")
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2) @ torch.zeros(3)
    assert reason_of(raised.value).startswith("RuntimeError: ")
    assert reason_of(raised.value).endswith(f"({__file__}:{raised.tb.tb_lineno})")


def test_peak_memory_is_of_this_program_alone() -> None:
    before = peak_memory()
    held = bytearray(300 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory() >= before
    del held
    code = (
        "from localssl.system.devices import peak_memory\n"
        "before = peak_memory(); held = bytearray(200 * 2**20); print(before, peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert second - first == pytest.approx(200, abs=20)


SCRIPT = """
import os, pathlib, sys, time
from localssl.experiments.apart import run_apart
from localssl.experiments.cells import Part, Settings

def slow(settings):
    pathlib.Path("began").touch()
    time.sleep(60)
    return {}

def fine(settings):
    return {"fine": 1}

def killed(settings):
    os._exit(9)

if __name__ == "__main__":
    settings = Settings(pathlib.Path("study"), jobs=2, threads=1)
    try:
        print(run_apart([Part(name, globals()[name]) for name in sys.argv[1:]], settings)[:])
    except KeyboardInterrupt:
        sys.exit(130)
"""


def script(folder: Path, *names: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "script.py", *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(localssl.__file__).parents[1])},
        start_new_session=True,
    )


@pytest.mark.long
@pytest.mark.parametrize("everyone", [True, False])
def test_ctrl_c(tmp_path: Path, everyone: bool) -> None:
    process = script(tmp_path, "slow")
    while process.poll() is None and not (tmp_path / "began").exists():
        time.sleep(0.01)
    if everyone:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (130, "")
    assert said.splitlines()[-1] == "stopped; the same command goes on from here"
    assert not (tmp_path / "study" / "cells" / "slow.json").exists()


@pytest.mark.long
def test_a_killed_process_fails_alone(tmp_path: Path) -> None:
    process = script(tmp_path, "killed", "fine")
    said, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert (
        "killed: failed: its process ended without a word (status 9; out of memory?), see study/runs/killed.log" in said
    )
    assert not (tmp_path / "study" / "cells" / "killed.json").exists()  # gone on with by the same command
    assert json.loads((tmp_path / "study" / "cells" / "fine.json").read_text())["fine"] == 1


UNGUARDED = """
import pathlib
from localssl.errors import UsageError
from localssl.experiments.apart import run_apart
from localssl.experiments.cells import Part, Settings, run_cells

print("again")
part = Part("a", print)
for run, jobs in ((run_apart, 1), (run_cells, 2)):
    try:
        run([part], Settings(pathlib.Path("study"), jobs=jobs, threads=1))
    except UsageError as error:
        print(error)
"""


@pytest.mark.long
def test_a_program_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(Path(localssl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    says = "a process ended before it began (a program that calls compare or reproduce needs a guard, if __name__ =="
    assert [line[: len(says)] for line in done.stdout.splitlines()].count(says) == 2
    assert not list(tmp_path.glob("study/cells/*"))


def test_rows_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        compare(STUDY, [Row("a", "clapp"), Row("a", "clapp++")], Settings(tmp_path), 1)
    assert run_apart([], Settings(tmp_path)) == []


def test_on_somebody_elses_network(inline: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A rule whose encoder a network cannot be fails alone, with the reason; going on needs the same encoder."""
    net = "--encoder torchvision:mobilenet_v3_small --encoder-options inner_norm=group blocks=3"
    line = "compare --data digits --epochs 1 --batch-size 16 --limit-images 32 --probe-images 100 --seeds 1 --threads 1"
    command = [*line.split(), "--align-batches", "2", "--out", str(tmp_path / "x")]
    rule = "clapp++dfb"
    assert cli.main([*command, "--rules", rule, "softhebb", *net.split()]) == 1
    reason = capfd.readouterr().err
    assert "softhebb: the rule asks for an encoder with activation=triangle init=" in reason
    assert ": unknown option of encoder 'torchvision:mobilenet_v3_small' 'activation'" in reason
    table = {row["rule"]: row["status"] for row in rows_of(tmp_path / "x" / "table.csv")}
    assert table == {"untrained": "done", rule: "done", "softhebb": "failed"}
    cells = [json.loads((tmp_path / "x" / "cells" / f"{n}-s0.json").read_text()) for n in ("untrained", rule)]
    wanted = {"name": "torchvision:mobilenet_v3_small", "blocks": 3, "in_channels": 1, "inner_norm": "group"}
    assert [cell["config"]["encoder"] for cell in cells] == [wanted] * 2
    assert "mobilenet_v3_small (blocks=3, inner_norm=group), 1 epoch," in (tmp_path / "x" / "table.md").read_text()
    before = list(inline)

    sizes = {"epochs": 1, "batch_size": 16, "limit_images": 32, "probe_images": 100, "seeds": 1, "align_batches": 2}
    options = {"blocks": 3, "inner_norm": "group"}
    from_python = {"encoder": "torchvision:mobilenet_v3_small", "encoder_options": options, "out": tmp_path / "x"}
    lines = api.compare(rules=[rule], data="digits", **sizes, **from_python)
    assert [line.label for line in lines] == ["untrained", rule]
    assert inline == before
    for other, says in (
        ("--encoder torchvision:mobilenet_v3_small --encoder-options blocks=3", "options ['blocks=3'] (there: ["),
        ("--width 0.25", "encoder None (there: 'torchvision:mobilenet_v3_small')"),
    ):
        assert cli.main([*command, "--rules", rule, *other.split()]) == 2
        assert says in capfd.readouterr().err


NET = """
from torch import nn

def net(shape, channels=4):
    return [nn.Sequential(nn.Conv2d(shape[0], channels, 3, 2), nn.ReLU()), nn.Conv2d(channels, 6, 3)]
"""


def test_on_an_encoder_of_ones_own(inline: list[str], tmp_path: Path) -> None:
    """What a rule asks for and the encoder does not take is left out; other code in the file is another encoder."""
    file = tmp_path / "own_net_of_compare.py"
    file.write_text(NET)
    settings = Settings(tmp_path, threads=1)
    study = replace(STUDY, width=1.0, encoder=f"{file}:net", encoder_options=("channels=5",))
    normed = Row("ff", "ff")
    assert "norm" in rules.get("ff").encoder_options
    found = compare(study, [normed], settings, 1)
    assert [(c.row.label, c.failed) for c in found] == [("untrained", None), ("ff", None)]
    assert found[1].baseline == "untrained"
    assert {c.records[0]["config"]["encoder"]["channels"] for c in found} == {5}
    file.write_text(NET.replace("nn.ReLU", "nn.Tanh"))
    with pytest.raises(UsageError, match=r"own_net_of_compare\.py:net has changed since .*untrained-s0\.json"):
        compare(study, [normed], settings, 1)
    own._LOADED.pop(file)  # pyright: ignore[reportPrivateUsage]
    with own.only_named([]), pytest.raises(UsageError, match="so it was not run"):
        compare(study, [], settings, 1)


VIEW = """
def half(x):
    return 0.5 * x
"""


def test_views_of_ones_own(
    inline: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for all rules; a file that changed, or that the command does not name, is refused."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own_view_of_compare.py"
    file.write_text(VIEW)
    line = f"compare {SMALL} --rules clapp++ bp-clapp++ --seeds 1 --threads 1 --align-batches 2 --out x".split()
    assert cli.main([*line, "--views", f"{file.name}:half"]) == 0
    capfd.readouterr()
    assert inline == ["untrained-s0", "clapp++-s0", "bp-clapp++-s0"]
    cells = [json.loads((tmp_path / "x" / "cells" / f"{name}.json").read_text()) for name in inline]
    assert [cell["config"]["views"] for cell in cells] == [f"{file}:half"] * 3
    losses = [row["loss"] for row in rows_of_metrics(tmp_path / "x" / "runs" / "clapp++-s0")]
    run = {"rule": "clapp++", "epochs": 1, "width": 0.25, "batch_size": 16, "limit_images": 64, "probe_every": 0}
    alone = train(TrainConfig(**run, data="digits", threads=1, views=f"{file}:half", out=tmp_path / "a"), print)
    assert losses == [row["loss"] for row in rows_of_metrics(alone.path)]
    assert f", views: {file.name}:half, " in (tmp_path / "x" / "table.md").read_text()

    again = ["compare", "--config", "x", "--out", "x", "--threads", "1"]
    assert cli.main([*again, "--own", file.name]) == 0
    assert len(inline) == 3
    for words, says in (
        (line, f"views None (there: '{file}:half')"),
        ([*line, "--views", f"{file.name}:hal"], "did you mean 'half'"),
        ([*line, "--views", "simclr"], "--views takes patches, or views of your own, PATH.py:NAME, not 'simclr'"),
    ):
        capfd.readouterr()
        assert cli.main(words) == 2
        assert says in capfd.readouterr().err
    own._LOADED.pop(file)  # pyright: ignore[reportPrivateUsage]
    assert cli.main(again) == 2
    assert f"add --own {file} to trust it" in capfd.readouterr().err
    file.write_text(VIEW.replace("0.5", "0.25"))
    assert cli.main([*again, "--own", file.name]) == 2
    assert f"{file}:half has changed since x/cells/untrained-s0.json was made" in capfd.readouterr().err
    own._LOADED.pop(file)  # pyright: ignore[reportPrivateUsage]


def test_without_views_a_cell_is_what_it_was_before_there_were_any(inline: list[str], tmp_path: Path) -> None:
    compare(replace(STUDY, align_batches=0), [], Settings(tmp_path, threads=1), 1)
    (record,) = [json.loads(file.read_text()) for file in (tmp_path / "cells").iterdir()]
    assert record["task"][0]["study"].keys() == asdict(STUDY).keys() - {"views"}
    assert "views_source" not in record["task"][0]


def test_an_encoder_of_ones_own_is_found_again_by_the_comparisons_flags(
    inline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have its whole path, the command had a part of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net_again.py").write_text(NET)
    line = f"compare {SMALL} --width 1 --rules clapp++ --seeds 1 --threads 1 --align-batches 0 --out x".split()
    assert cli.main([*line, "--encoder", "own_net_again.py:net"]) == 0
    before = list(inline)
    assert cli.main(["compare", "--config", "x", "--out", "x", "--threads", "1", "--own", "own_net_again.py"]) == 0
    assert inline == before


def test_cells_from_before_there_were_encoders(inline: list[str], tmp_path: Path) -> None:
    study, settings = replace(STUDY, align_batches=0), Settings(tmp_path, threads=1)
    compare(study, [Row("clapp++", "clapp++")], settings, 1)
    for file in (tmp_path / "cells").iterdir():
        record = json.loads(file.read_text())
        for name in ("encoder", "encoder_options"):
            del record["task"][0]["study"][name]
        file.write_text(json.dumps(record))
    before = list(inline)
    compare(study, [Row("clapp++", "clapp++")], settings, 1)
    assert inline == before
    with pytest.raises(UsageError, match=r"encoder 'mlp' .there: None.; use those"):
        compare(replace(study, encoder="mlp"), [], settings, 1)
    with pytest.raises(UsageError, match="unknown encoder 'vgg7'"):
        compare(replace(study, encoder="vgg7"), [], settings, 1)
