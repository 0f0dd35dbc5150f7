"""The page that ``localssl train`` writes when a run is done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import localssl
from localssl.cli import main
from localssl.errors import UsageError


@pytest.mark.page
def test_train_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the run is done; it is no setting of the run, which is repeated without it."""
    out = tmp_path / "x"
    command = f"train --rule clapp++ --data digits --epochs 1 --limit-images 64 --width 0.25 --threads 1 --out {out}"
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert said.index("done: ") < said.index(f"written: {out / 'report.html'}")
    assert len(re.findall(r'<h2 id="(\w+)"', (out / "report.html").read_text(encoding="utf-8"))) == 9
    assert all("report" not in (out / name).read_text(encoding="utf-8") for name in ("config.yaml", "flags.yaml"))
    assert "--report" not in (out / "manifest.json").read_text(encoding="utf-8")
    assert main([*command.replace("--epochs 1", "--epochs 2").split(), "--resume"]) == 0
    assert localssl.dry_run(config=out).rule
    with pytest.raises(UsageError, match="for the page call report"):
        localssl.train(rule="clapp++", data="digits", out=tmp_path / "y", report=True)
    assert main([*command.replace(str(out), f"{tmp_path / 'z'} --no-report").split()]) == 0
    assert not (tmp_path / "z" / "report.html").exists()

    def fails(*_: object) -> None:
        raise UsageError("no data for it")

    monkeypatch.setattr("localssl.report.run_page.write", fails)
    assert main([*command.replace(str(out), str(tmp_path / "w")).split()]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report.html is not written: no data for it"
