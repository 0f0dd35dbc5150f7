"""Tables in a pipe are whole: no cell is cut to fit a window that is not there."""

from __future__ import annotations

import pytest

from localssl.report.tables import show


def test_nothing_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    header = ["encoder", "layer", "method", "labels", "accuracy", "95 % interval", "draws"]
    show("title", header, [["clapp++both", "all", "linear", "all", 63.701, "62.123 to 65.279", 5]], "protocol")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(cell in printed for cell in ("clapp++both", "linear", "62.123 to 65.279", "protocol"))
