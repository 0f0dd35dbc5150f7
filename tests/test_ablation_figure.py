"""The figure of an ablation: which markers it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from localssl.report import ablation_figure


def test_numbers_on_other_data_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Axes] = []
    monkeypatch.setattr(ablation_figure, "finish", lambda _figure, axes, _caption, path: shown.append(axes) or path)
    bars = [
        ablation_figure.Bar("one", (50.0, 49.0, 51.0), (73.0, None), (75.0, None), False),
        ablation_figure.Bar("two", None, None, (78.0, 0.5), True),
    ]
    ablation_figure.draw(bars, "what", tmp_path / "x.png")
    assert shown[0].get_legend_handles_labels()[1] == ["ours", "published", "published, STL-10 (other data)"]
    found = {str(line.get_marker()): line for line in shown[0].get_lines()}
    places = {m: np.asarray(line.get_xdata()).tolist() for m, line in found.items() if m in "oDs"}
    assert places == {"o": [50.0], "D": [73.0], "s": [78.0]}
    assert [m for m in places if found[m].get_markerfacecolor() == "none"] == ["D", "s"]
