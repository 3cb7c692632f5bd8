"""Work that is divided among the processes of a run: the first leads, the others serve.

The items of a `map` are dealt out one to each process, round by round, and the results collected by the
first.  No process but the first holds all of them, and while the first does something alone, such as to time
a network, the others sleep.
"""

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from halfstep.errors import HalfstepError
from halfstep.progress import Progress, SILENT
from halfstep.training.distributed import Processes

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


class Divided:
    """A `Division` of work among these processes."""

    def __init__(self, processes: Processes):
        self.processes = processes
        self._shared: Sequence[object] = ()

    def lead(self, act: Callable[[], T], *shared: object) -> T:
        """Call `act` on the first process while the others serve; all end as it does."""
        processes = self.processes
        if processes.world == 1:
            return act()

        def leading() -> T:
            try:
                return act()
            finally:
                processes.deal([b""] * processes.world)

        self._shared = shared
        try:
            while not processes.first and self._serve():
                pass
            return processes.run_on_first(leading)
        finally:
            self._shared = ()

    def map(
        self, act: Callable[[P, Progress], R], items: Iterable[P], progress: Progress = SILENT
    ) -> Iterator[R]:
        """`act(item, progress)` of each item, in the order of the items."""
        processes = self.processes
        if processes.world == 1:
            yield from (act(item, progress) for item in items)
            return
        remaining = iter(items)
        while dealt := list(islice(remaining, processes.world)):
            works = [self._packed((act, item)) for item in dealt]
            idle = [self._packed(None)] * (processes.world - len(works))
            processes.deal([*works, *idle])
            results: list[Any] = processes.collect(_done(act, dealt[0], progress))
            for result, error, steps in results[: len(dealt)]:
                if error is not None:
                    raise error
                progress.advance(steps)
                yield result

    def _serve(self) -> bool:
        """Do this process's share of a round; an error goes to the first, which raises it.

        False when there are no more rounds.
        """
        work: bytes = self.processes.deal(None)
        if not work:
            return False
        unpacked = self._unpacked(work)
        if unpacked is None:
            self.processes.collect((None, None, 0))
            return True
        counted = _Counted()
        act, item = unpacked
        result, error, _ = _done(act, item, counted)
        if error is not None and not isinstance(error, HalfstepError):
            reason = f"{type(error).__name__}: {error}"
            error = HalfstepError(f"process {self.processes.rank} of this run failed: {reason}")
        self.processes.collect((result, error, counted.steps))
        return True

    def _packed(self, work: object) -> bytes:
        buffer = io.BytesIO()
        _Packer(buffer, self._shared).dump(work)
        return buffer.getvalue()

    def _unpacked(self, work: bytes) -> Any:
        return _Unpacker(io.BytesIO(work), self._shared).load()


def _done(
    act: Callable[[P, Progress], R], item: P, progress: Progress
) -> tuple[R | None, Exception | None, int]:
    """The result or the error; all processes collect before any of them raises."""
    try:
        return act(item, progress), None, 0
    except Exception as error:
        return None, error, 0


class _Counted:
    """Counts the steps of another process, which the first one shows."""

    def __init__(self) -> None:
        self.steps = 0

    def expect(self, steps: int) -> None: ...

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def note(self, text: str) -> None: ...


class _Packer(pickle.Pickler):
    """Packs work for another process: shared objects by their number, of a view no more than it shows."""

    def __init__(self, buffer: io.BytesIO, shared: Sequence[object]):
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._numbers = {id(each): k for k, each in enumerate(shared)}

    def persistent_id(self, obj: object) -> int | None:
        return self._numbers.get(id(obj))

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, Tensor) and obj.nbytes < obj.untyped_storage().nbytes():
            return obj.clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    """Unpacks what the first process of the same run has packed."""

    def __init__(self, buffer: io.BytesIO, shared: Sequence[object]):
        super().__init__(buffer)
        self._shared = shared

    def persistent_load(self, pid: int) -> object:
        return self._shared[pid]
