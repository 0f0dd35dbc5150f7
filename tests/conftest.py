"""What holds for all tests."""

from __future__ import annotations

import signal

# a suite begun with nohup, or behind a script's &, ignores Ctrl-C, and so would all that its tests start and interrupt
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
