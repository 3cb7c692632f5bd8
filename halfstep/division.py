"""Division of work among the processes of a run; one process does all of it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from halfstep.progress import Progress, SILENT

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


class Division(Protocol):
    """Divides work among processes: the first leads, and the others do their share of each `map`.

    `halfstep.training.divided.Divided` has several processes, `ALONE` one.
    """

    def lead(self, act: Callable[[], T], *shared: object) -> T:
        """Call `act` on the first process; all return its result or raise its error.

        Inside it `map` divides work.  The first process alone may call `map`.

        shared  objects that every process has itself, such as networks: they are not sent to it
        """

    def map(
        self, act: Callable[[P, Progress], R], items: Iterable[P], progress: Progress = SILENT
    ) -> Iterator[R]:
        """`act(item, progress)` of each item, in the order of the items, from all processes in turn.

        act  a function of a module or a method of a shared object, or `functools.partial` of one: it is sent
             to the other processes with its item, which is whole batches where results are to be the same to
             the bit
        """


class _Alone:
    """One process."""

    def lead(self, act: Callable[[], T], *shared: object) -> T:
        return act()

    def map(
        self, act: Callable[[P, Progress], R], items: Iterable[P], progress: Progress = SILENT
    ) -> Iterator[R]:
        return (act(item, progress) for item in items)


ALONE: Division = _Alone()
