"""Comparisons without a process a part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from localssl.experiments import comparison
from localssl.experiments.apart import FAILED, reason_of
from localssl.experiments.cells import Part, Settings


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts of comparisons run in this process; the names of those that were asked for."""
    asked: list[str] = []

    def run(parts: Sequence[Part], settings: Settings) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for part in parts:
            file = settings.out / "cells" / f"{part.name}.json"
            if not file.is_file():
                asked.append(part.name)
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    record = part.work(settings, *part.arguments)
                except Exception as error:
                    record = {FAILED: reason_of(error), "anew": True}
                file.write_text(json.dumps({**record, "task": list(part.arguments)}))
            records.append(json.loads(file.read_text()))
        return records

    monkeypatch.setattr(comparison, "run_apart", run)
    return asked
