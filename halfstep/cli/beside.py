"""Work that is done on another core while something else runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from halfstep.progress import Progress

T = TypeVar("T")


class Ended(Exception):
    """The work is no longer wanted."""


class _Wanted:
    """Progress that nobody sees: it ends the work once that is no longer wanted."""

    def __init__(self, unwanted: Event):
        self.unwanted = unwanted

    def expect(self, steps: int) -> None: ...

    def advance(self, steps: int = 1) -> None:
        if self.unwanted.is_set():
            raise Ended

    def note(self, text: str) -> None: ...


@contextmanager
def beside(work: Callable[[Progress], T]) -> Iterator[Future[T]]:
    """`work(progress)` in a thread of its own while the block runs; its result is the future's.

    Where the block fails, or is interrupted, the next step ends the work: nobody waits for it.
    """
    unwanted = Event()
    with ThreadPoolExecutor(1) as second:
        future = second.submit(work, _Wanted(unwanted))
        try:
            yield future
        except BaseException:
            unwanted.set()
            raise
