"""Work that is done on another core while something else runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

T = TypeVar("T")


class Ended(Exception):
    """The work is no longer wanted."""


@contextmanager
def beside(work: Callable[[Callable[[], None]], T]) -> Iterator[Future[T]]:
    """`work(tick)` in a thread of its own while the block runs; its result is the future's.

    Where the block fails, or is interrupted, the next `tick` ends the work: nobody waits for it.
    """
    unwanted = Event()

    def tick() -> None:
        if unwanted.is_set():
            raise Ended

    with ThreadPoolExecutor(1) as second:
        future = second.submit(work, tick)
        try:
            yield future
        except BaseException:
            unwanted.set()
            raise
