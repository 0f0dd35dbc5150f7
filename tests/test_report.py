"""The page of a run: what stands on it, what is left out and why, and how it behaves in a browser."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from localssl.cli import main
from localssl.report import charts, from_images, measured, page
from localssl.runs.run import open_run

from .browser_util import complaints, contrast, keep_screenshot, loaded_in, needs_chromium, opened, requests
from .train_util import folder, run_tiny, tiny

DRAWN = """
const marks = document.querySelectorAll(".chart svg .role-mark :is(path, line)");
return [...marks].flatMap(mark => {
  const style = getComputedStyle(mark);
  return [[style.fill, style.opacity * style.fillOpacity], [style.stroke, style.opacity * style.strokeOpacity]];
}).filter(([colour]) => /^rgb\\(/.test(colour));
"""  # colour and opacity of all lines and points
PAPER = 718  # pixels between the margins of a printed page of A4
SECTIONS = ["run", "losses", "accuracy", "alignment", "filters", "units", "embedding", "projections", "cost"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, probed and aligned, with its page."""
    out = run_tiny(tmp_path_factory.mktemp("runs") / "x", align_every=1).path
    for command in (f"probe {out} --labels 10 all", f"align {out} --batches 2", f"report {out} --images 60"):
        assert main([*command.split(), "--threads", "1"]) == 0
    return out


def text_of(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def specs(text: str) -> list[dict[str, Any]]:
    """The charts of a page as Vega-Lite."""
    found = re.search(r"const specs = (.*);\n", text)
    return json.loads(found[1]) if found else []


def points(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of a chart."""
    (values,) = spec["datasets"].values()
    return values


def part(text: str, section: str) -> str:
    """The markup of one section, without tags."""
    found = re.search(rf'<section aria-labelledby="{section}">(.*?)</section>', text, re.DOTALL)
    assert found is not None, section
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found[1])).split())


def test_what_stands_on_it(run: Path) -> None:
    text = text_of(run)
    assert re.findall(r'<h2 id="(\w+)"', text) == SECTIONS
    assert "http:" not in text.replace("http://www.w3.org", "").partition("<script>")[0]
    said = part(text, "run")
    assert f"localssl {'train'}" in said
    assert "--rule clapp++ --data digits" in said
    assert "--align-every 1" in said
    assert "torch" in json.loads((run / "manifest.json").read_text())["environment"]
    assert "95 % interval over draws of the labels" in part(text, "accuracy")
    assert "Fast protocol" in part(text, "accuracy")
    with (run / "probe-fast.csv").open() as file:
        next(file)
        rows = list(csv.DictReader(file))
    assert all(row["accuracy"] in part(text, "accuracy") for row in rows)
    beside = [tuple(row[k] for k in ("layer", "method", "labels")) for row in rows if row["encoder"] == "clapp++"]
    for key in beside:
        trained, untrained = (
            next(r for r in rows if r["encoder"] == encoder and (r["layer"], r["method"], r["labels"]) == key)
            for encoder in ("clapp++", "untrained")
        )
        ends = " ".join(
            f"{r['accuracy']} {r['low']} to {r['high']}" if r["low"] else r["accuracy"] for r in (trained, untrained)
        )
        above = f"{float(trained['accuracy']) - float(untrained['accuracy']):+.2f}".replace("-", "−")
        assert f"{' '.join(key)} {ends} {above}" in part(text, "accuracy")
    assert "images that excite" not in part(text, "units")  # alone in texts for those who do not see the pictures
    assert len(re.findall(r'alt="The 8 images that excite unit', text)) > 10
    assert "peak memory of the process" in part(text, "cost")
    assert "17,456" not in part(text, "cost")
    learner = open_run(run).learner()
    assert f"{sum(p.numel() for p in learner.encoder.parameters()):,}" in part(text, "cost")


def test_the_command_repeats_the_run(run: Path, tmp_path: Path) -> None:
    """The line on the page, given again with another --out, comes to the same encoder."""
    found = re.search(r"localssl (train [^<]*)", html.unescape(text_of(run)))
    assert found is not None
    words = found[1].split()
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main(words) == 0
    ours, theirs = ((out / "encoder.safetensors").read_bytes() for out in (run, tmp_path / "again"))
    assert ours == theirs


def test_a_run_that_went_on_names_every_command(tmp_path: Path) -> None:
    out = run_tiny(tmp_path / "x", epochs=1).path
    run_tiny(out, epochs=2, resume=True)
    begun = json.loads((out / "manifest.json").read_text())["begun"]
    assert [line.split("--epochs ")[1].split()[0] for line in begun["commands"]] == ["1", "2"]
    assert begun["commands"][1].endswith("--resume")
    run_tiny(out, epochs=2, resume=True)
    assert json.loads((out / "manifest.json").read_text())["begun"] == begun


def test_charts_show_what_was_measured(run: Path) -> None:
    found = specs(text_of(run))
    loss = points(found[0])
    rows = measured.curves(run)
    last = [point["y"] for point in loss if point["of"] == "3"][-1]
    assert last == pytest.approx(rows[-1]["loss_3"], rel=1e-4)
    assert {point["of"] for point in loss} == {"1", "2", "3", "4", "5"}
    titles = re.findall(r"<figure>\n<h3>([^<]*)", text_of(run))
    accuracy = found[titles.index("Linear probe, all labels (probe-fast.csv)")]
    assert [p["x"] for p in points(accuracy) if p["of"] == "untrained"] == ["1", "2", "3", "4", "5", "all"]


def test_without_data_probe_and_checkpoint(tmp_path: Path) -> None:
    """Everything that is not there is named, with what to do, and the rest is shown."""
    data = folder(tmp_path / "data")
    config = tiny(tmp_path / "x", data=f"imagefolder:{data}", limit_images=None, batch_size=8, image_size=16)
    out = run_tiny(tmp_path / "x", **{k: getattr(config, k) for k in ("data", "limit_images", "batch_size")}).path
    shutil.rmtree(data)
    shutil.rmtree(out / "checkpoint")
    (out / "manifest.json").unlink()
    (out / "cost.json").unlink()
    assert main(["report", str(out)]) == 0
    text = text_of(out)
    assert "older than the record of its command" in part(text, "run")
    assert f"probe {out}" in part(text, "accuracy")
    assert "train --align-every N" in part(text, "alignment")
    assert "Left out: " in part(text, "units")
    assert "name it with --data imagefolder:PATH" in part(text, "embedding")
    assert "no checkpoint yet" in part(text, "projections")
    assert "8 of 8" not in part(text, "filters")
    assert "bytes of the encoder" in part(text, "cost")


@pytest.mark.parametrize("rule", ["bp-infonce", "ff", "clapp++both", "bp-clapp++"])
def test_rules_of_other_kinds(rule: str, tmp_path: Path) -> None:
    out = run_tiny(tmp_path / "x", rule=rule, epochs=1).path
    assert main(["report", str(out), "--images", "30", "--units", "2"]) == 0
    said = part(text_of(out), "projections")
    assert ("Feedback B: strength" in said) == (rule == "clapp++both")
    assert ("The rule has no projection" in said) == (rule != "clapp++both")


def test_what_integers_clipped(run: Path, tmp_path: Path) -> None:
    out = run_tiny(tmp_path / "x", bits=4, lr=None, epochs=1).path
    assert main(["report", str(out), "--images", "0"]) == 0
    assert "Numbers that were clipped" in part(text_of(out), "losses")
    assert "clipped" not in part(text_of(run), "losses")


def test_untrained_run(tmp_path: Path) -> None:
    out = run_tiny(tmp_path / "x", epochs=0).path
    assert main(["report", str(out), "--images", "0"]) == 0
    assert "no metrics.csv with a finished step" in part(text_of(out), "losses")
    assert "no image was looked at" in part(text_of(out), "units")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "report needs the folder of a run"),
        ("nowhere", "no run in nowhere"),
        ("{run} nowhere", "no run in nowhere"),
        ("{run} --images -1", "--images -1: use 0 or more"),
        ("{run} --units 0", "--units 0: use 1 or more"),
        ("{run} --threads 0", "--threads 0"),
    ],
)
def test_bad_input(words: str, says: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_bytes()
    capsys.readouterr()
    assert main(["report", *words.format(run=run).split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("localssl: ")
    assert says in said
    assert said.count("\n") == 1
    assert (run / "report.html").read_bytes() == before


def test_tables_of_a_users_own_are_none_of_the_runs(run: Path, tmp_path: Path) -> None:
    from localssl.report import from_files

    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "align-mine.csv").write_text("# what I think of it\nblock,opinion\n1,good\n", encoding="utf-8")
    (copy / "probe-mine.csv").write_text("# what I think of it\nlayer,opinion\n1,good\n", encoding="utf-8")
    for section in (from_files.accuracy, from_files.alignment):
        assert repr(section(open_run(copy)).parts) == repr(section(open_run(run)).parts)


def test_names_are_no_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    chart = page.Chart(nasty, charts.lines([{"x": 0, "y": 1.0, "of": nasty}], "x", "y", "of"), f'"{nasty}')
    parts = [page.Text(nasty), page.Table(nasty, [nasty], [[nasty]]), chart]
    page.write(tmp_path / "p.html", nasty, nasty, [page.Section("a", nasty, parts)])
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert nasty not in text
    assert points(specs(text)[0])[0]["of"] == nasty


def test_curves_have_their_numbers(run: Path, long_run: Path) -> None:
    """A few of each in a table, the first and the last among them."""
    rows = measured.curves(run)
    for section, kinds in (("losses", ("loss", "rank", "dead", "active")), ("alignment", ("align",))):
        said = part(text_of(run), section)
        for kind in kinds:
            full = [row for row in rows if row.get(f"{kind}_3") is not None]
            header = " ".join(["block", *(f"epoch {row['epoch']:.4g}" for row in full)])
            assert f"{header} 1 " in said
            assert " ".join(["3", *(f"{row[f'{kind}_3']:.4g}" for row in full)]) in said
    assert '<noscript><p class="missing">The charts need JavaScript. Their numbers are in the tables' in text_of(run)
    said = part(text_of(long_run), "losses")
    assert "Loss by block: 10 of 3,000 measurements" in said
    found = re.search(r"block epoch 0.1 epoch 33.4 (.*?) epoch 300 1 ", said)
    assert found is not None
    assert found[1].count("epoch") == 7


def synthetic(out: Path, epochs: int, blocks: int) -> Path:
    """As a long run of a deep encoder leaves it, with invented curves: ten rows an epoch, everything measured."""
    widths = ",".join(["8"] * blocks)
    run_tiny(out, encoder="mlp", width=0.05, epochs=1, rule="clapp++")
    names = [f"{kind}_{b}" for kind in ("loss", "rank", "dead", "active", "align") for b in range(1, blocks + 1)]
    lines = [",".join(["step", "epoch", "seconds", "images_per_second", "lr", "loss", *names])]
    for row in range(10 * epochs):
        values = [f"{1 + math.sin(row * (i + 1)):.17g}" for i in range(len(names))]
        lines.append(",".join([str(row + 1), f"{(row + 1) / 10}", str(row), "100", "0.001", "1.5", *values]))
    (out / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    head = "encoder,layer,method,labels,accuracy,low,high,draws,features,strength"
    rows = [
        f"{encoder},{layer},{method},{labels},{50 + layer},{49 + layer},{51 + layer},5,{widths.count('8')},1"
        for encoder in ("untrained", "clapp++")
        for layer in range(1, blocks + 1)
        for method in ("linear", "knn")
        for labels in ("1", "10", "all")
    ]
    (out / "probe-fast.csv").write_text("\n".join(["# invented", head, *rows]) + "\n", encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = synthetic(tmp_path_factory.mktemp("runs") / "long", epochs=300, blocks=10)
    assert main(["report", str(out), "--threads", "1"]) == 0
    return out


def test_a_long_run_stays_small(long_run: Path) -> None:
    assert (long_run / "report.html").stat().st_size < page.LARGEST
    loss = points(specs(text_of(long_run))[0])
    assert len({point["of"] for point in loss}) == 10
    assert max(point["x"] for point in loss) > 299
    assert "every point is the mean of 8 rows" in part(text_of(long_run), "losses")


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1400, "dark"), (2560, "light")])
def test_in_a_browser(width: int, scheme: str, run: Path) -> None:
    with opened(run / "report.html", width, scheme) as driver:
        keep_screenshot(driver, f"run-{scheme}-{width}")
        assert complaints(driver) == []
        assert requests(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        too_wide = "return [...document.querySelectorAll('.chart svg')].filter(c => c.clientWidth > innerWidth).length"
        assert driver.execute_script(too_wide) == 0
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 29)")
        label = driver.execute_script(
            "return getComputedStyle(document.querySelector('.chart svg .role-axis-label text')).fill"
        )
        assert label == ("rgb(26, 26, 26)" if scheme == "light" else "rgb(230, 230, 230)")
        background = [float(c) for c in re.findall(r"[\d.]+", paper)]
        drawn = driver.execute_script(DRAWN)
        assert len({colour for colour, _ in drawn}) > 12
        for colour, opacity in drawn:
            red_green_blue = [float(c) for c in re.findall(r"[\d.]+", colour)]
            seen = [opacity * c + (1 - opacity) * b for c, b in zip(red_green_blue, background, strict=True)]
            assert contrast(seen, background) >= 3, (colour, opacity)


@needs_chromium
def test_by_keyboard_and_ear(run: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    with opened(run / "report.html") as driver:

        def press(key: str) -> Any:
            ActionChains(driver).send_keys(key).perform()
            return driver.switch_to.active_element

        assert press(Keys.TAB).text == "Skip to the content"
        seen: list[str] = []
        while (element := press(Keys.TAB)).tag_name != "body":  # once around
            seen.append(element.tag_name)
            if element.tag_name == "summary" and "settings" in element.text:
                press(Keys.ENTER)
                assert driver.execute_script("return arguments[0].parentElement.open", element)
        assert seen.count("a") == len(SECTIONS)
        assert {"summary", "pre", "div"} <= set(seen)  # details, the command, tables that scroll
        tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        named = {"image": 0, "heading": 0, "table": 0}
        for node in tree:
            role = node.get("role", {}).get("value")
            if role in named and not node.get("ignored"):
                named[role] += 1
                assert node.get("name", {}).get("value"), node
        assert named["image"] > 10
        assert named["table"] >= 2
        assert driver.execute_script("return document.documentElement.lang") == "en"


@needs_chromium
@pytest.mark.parametrize("which", ["run", "long_run"])
def test_on_paper(which: str, request: pytest.FixtureRequest) -> None:
    """Printed from a dark screen it is black on white, no chart or table wider than the page, folded tables open."""
    import base64

    with opened(request.getfixturevalue(which) / "report.html", scheme="dark") as driver:
        printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
        assert base64.b64decode(printed["data"]).startswith(b"%PDF")
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
        colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        assert driver.execute_script(colours) == ["rgb(26, 26, 26)", "rgb(255, 255, 255)"]
        assert driver.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
        page_of_a4 = {"width": PAPER, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", page_of_a4)
        wide = (
            "const page = document.querySelector('main').getBoundingClientRect().right;"
            "return [...document.querySelectorAll('.chart svg, table')].map(e => [e.getBoundingClientRect(), e])"
            ".filter(([box]) => box.right > page + 0.5 || box.height < 10).map(([box, e]) => [box.right, e.outerHTML])"
        )
        assert driver.execute_script(wide) == []
        folded = (
            "return [...document.querySelectorAll('details:not([open]) table')]"
            ".map(table => table.checkVisibility({contentVisibilityAuto: true}))"
        )
        assert set(driver.execute_script(folded)) == {True}
        assert "weight_decay" in driver.execute_script("return document.querySelector('main').innerText")  # of settings


@needs_chromium
def test_a_long_run_in_a_browser(long_run: Path) -> None:
    with opened(long_run / "report.html", 375) as driver:
        keep_screenshot(driver, "long-375")
        assert complaints(driver) == []
        assert requests(driver) == []
        assert min(loaded_in(driver) for _ in range(3)) < 2000  # the best of three: tests share their machine


def test_maps_of_floats(tmp_path: Path) -> None:
    """Pictures of an array's numbers: the smallest black, the largest white."""
    x = np.random.default_rng(0).random((64, 1, 16, 16), dtype=np.float32)
    np.savez(tmp_path / "maps.npz", x=x, y=np.arange(64) % 2)
    config = {"data": f"npz:{tmp_path / 'maps.npz'}", "limit_images": None, "encoder": "vgg5", "epochs": 1}
    out = run_tiny(tmp_path / "x", **config).path
    assert main(["report", str(out), "--units", "1"]) == 0
    assert 'alt="The 8 images that excite unit' in text_of(out)
    assert from_images.shades(torch.tensor([-3.0, 1.0, 5.0])).tolist() == [0.0, 0.5, 1.0]
    assert from_images.shades(torch.tensor([255], dtype=torch.uint8)).tolist() == [1.0]
