"""Ctrl-C, a preempted job's SIGTERM, a closed terminal: as a question the loop asks itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Asked(threading.Event):
    """Set once a run is to stop.

    cause  the exception that says why, where there is one
    """

    cause: BaseException | None = None


@contextmanager
def stopping() -> Iterator[Asked]:
    """Ctrl-C, SIGTERM and SIGHUP ask to stop after the present update; a second Ctrl-C stops at once.

    What the process was told to ignore (a script's background job Ctrl-C, nohup SIGHUP) stays ignored.
    """
    asked = Asked()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {n: signal.getsignal(n) for n in SIGNALS}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
