"""Run work in a thread while something else runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from halfstep.progress import Progress

T = TypeVar("T")


class Cancelled(Exception):
    """The result of the work is no longer needed."""


class _Cancellable:
    """Silent progress; it ends the work at the next step once `cancelled` is set."""

    def __init__(self, cancelled: Event):
        self.cancelled = cancelled

    def expect(self, steps: int) -> None: ...

    def advance(self, steps: int = 1) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def note(self, text: str) -> None: ...


@contextmanager
def background(work: Callable[[Progress], T]) -> Iterator[Future[T]]:
    """Run `work(progress)` in a thread while the block runs; the future has its result.

    If the block fails or is interrupted, the next step of the work ends it.
    """
    cancelled = Event()
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work, _Cancellable(cancelled))
        try:
            yield future
        except BaseException:
            cancelled.set()
            raise
