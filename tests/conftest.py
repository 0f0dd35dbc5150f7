"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest

# a suite begun with nohup, or behind a script's &, ignores Ctrl-C, and so would all that its tests start and interrupt
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``train`` writes a page when it is done, which takes seconds: here only in tests marked ``page``."""
    if "page" not in request.keywords:
        monkeypatch.setattr("localssl.cli.pages.write", lambda *_: None)
