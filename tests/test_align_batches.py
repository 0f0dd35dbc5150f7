"""Batches on which a run's alignment is measured."""

from __future__ import annotations

from pathlib import Path

from localssl.evaluate import AlignOptions, align_run

from .train_util import run_tiny


def test_batches_are_smaller_where_two_would_not_fit(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", batch_size=300, limit_images=320, epochs=1)  # digits have 500 test images
    found = align_run(run, AlignOptions(batches=3))
    assert "on 3 batches of 50 (not 300 as in training: two would not fit) test images" in found.protocol
    assert {row.batches for row in found.rows} == {3}
    assert "on 1 batch " in align_run(run, AlignOptions(batches=1)).protocol
    assert "1 batch (so no interval" in align_run(run, AlignOptions(batch_size=300)).protocol
