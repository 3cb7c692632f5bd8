"""Turn Ctrl-C, SIGTERM and SIGHUP into a request to stop, which the training loop checks."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequest(threading.Event):
    """Set once a run is to stop.

    cause  the exception that is the reason, if any
    """

    cause: BaseException | None = None


@contextmanager
def stopping() -> Iterator[StopRequest]:
    """Ctrl-C, SIGTERM and SIGHUP ask to stop after the present update; a second Ctrl-C stops at once.

    Signals that the process ignores (Ctrl-C in a script's background job, SIGHUP under nohup) stay ignored.
    """
    request = StopRequest()

    def stop(number: int, frame: FrameType | None) -> None:
        if request.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.set()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.getsignal(n) for n in SIGNALS}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
