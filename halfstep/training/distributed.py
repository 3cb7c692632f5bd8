"""One process or many: the only file that imports accelerate.

Under torchrun or `accelerate launch` the same command uses every process.  The batch is the whole
batch, divided; draws are for the whole batch (`halfstep.rng.Draw`), so that the numbers are those of
one process.  The first process alone decides and writes, and the others hear of it: no two can disagree.
"""

import atexit
import gc
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn, Tensor

from halfstep.errors import ConfigError, HalfstepError
from halfstep.quiet import quietly
from halfstep.training.peers import Board, board, launched, refuse_others, versions

T = TypeVar("T")


class Processes:
    """The processes of this run, and this one's place among them."""

    def __init__(self, device: str = "auto"):
        self.rank, self.world = launched()
        self._accelerator: Any = None
        self._board: Board | None = None
        if self.world > 1:
            if _parted:
                raise HalfstepError(
                    "the processes of this program have parted, one of them having failed: start all of "
                    "them again"
                )
            self._board = board()
            self._board.meet({**versions(), "device": "cpu" if _on_cpu(device) else device})
            self._accelerator = _joined(self.world, device)
            device_here = torch.device(self._accelerator.device)
            self.device = torch.device("cpu") if device_here.type == "cpu" else device_here
        else:
            self.device = pick_device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This process's rows of a whole batch."""
        each, rest = divmod(batch, self.world)
        if rest:
            raise ConfigError(
                f"a batch of {batch} cannot be divided among {self.world} processes: write for "
                f"example --batch-size {max(each, 1) * self.world}"
            )
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap(self, student: nn.Module) -> nn.Module:
        """The student as it is to be called: it averages gradients over the processes."""
        if self._accelerator is None:
            return student
        wrapped: nn.Module = self._accelerator.prepare(student)
        return wrapped

    def unwrap(self) -> None:
        """Let go of what was wrapped: accelerate would keep every stage's student to the end."""
        if self._accelerator is not None:
            self._accelerator.free_memory()

    def unsynced(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Inside it a backward leaves gradients to this process (all micro-batches but the last)."""
        if self._accelerator is None:
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(wrapped)
        return context

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.SUM)

    def largest(self, value: Tensor) -> Tensor:
        """The largest of all processes'."""
        return self._reduced(value, torch.distributed.ReduceOp.MAX)

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        if self._accelerator is None:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value, how)
        return value

    def first_says(self, act: Callable[[], T]) -> T:
        """What `act` gives the first process, which alone calls it; its failure is every process's."""
        if self._accelerator is None:
            return act()
        said: list[Any] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                said[0] = act()
            except Exception as error:  # told to the others, who would wait for ever, then raised
                failure, ours = error, isinstance(error, HalfstepError)
                said[1] = error if ours else HalfstepError(f"the first process failed: {error}")
        torch.distributed.broadcast_object_list(said, src=0)
        if failure is not None:
            raise failure
        if said[1] is not None:
            raise said[1]
        answer: T = said[0]
        return answer

    def agree(self, asked: bool, update: int, every: int) -> bool:
        """Whether to stop after this update: any process may ask, all must answer alike.

        Several processes compare notes every few updates only, since that waits for the device.
        """
        if self._accelerator is None:
            return asked
        if update % every:
            return False
        return bool(self.total(torch.tensor(float(asked), device=self.device)) > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def agreed(self, word: Mapping[str, Any]) -> None:
        """`ConfigError` on every process, unless all have the same word."""
        if self._accelerator is None:
            return
        words: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(words, json.dumps(word, default=str))
        refuse_others([json.loads(each) for each in words])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around all that the processes do together: where one of them fails, all end with a sentence.

        A process that fails alone leaves the group, or the others would wait for it; one that finds
        others gone raises `HalfstepError` with what they said.  Where all fail alike nothing is left.
        """
        try:
            yield
        except BaseException as error:
            if self._board is None:
                raise
            lost = self._lost(error)
            said = str(error) if isinstance(error, HalfstepError) else repr(error)
            alike = self._board.end(lost or said, cause=not lost, patience=0.0 if lost else None)
            if lost or not alike:
                _part(error, self._accelerator)
                if self.first:  # which may keep the board
                    self._board.all_end()
            if lost:
                raise HalfstepError(lost) from None
            raise

    def _lost(self, error: BaseException) -> str:
        """What became of the others, where a call to all of them ended in this error; else nothing."""
        text = str(error)
        of_group = (
            isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text
        )
        if not isinstance(error, RuntimeError) or not of_group or self._board is None:
            return ""
        late = "imed out" in text or "imeout" in text
        rest = "no longer answers" if late else "is gone: it was killed, or its machine failed"
        said = self._board.reason() or f"another process of this run {rest}"
        return f"{said}; what was saved is untouched, and the same command goes on from there"


_parted = list[str]()
"""Why this program's group is no more."""


def _part(error: BaseException, accelerator: Any) -> None:
    """Leave the group for good: those who wait there for this process hear that it is gone."""
    _parted.append(str(error))
    if accelerator is None or torch.distributed.get_backend() != "gloo":
        return  # NCCL would wait here for those who wait for it
    # Its connections close with the last of all that holds the group: wrapped students in frames, too.
    traceback.clear_frames(error.__traceback__)
    accelerator.free_memory()
    _leave()


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _joined(world: int, device: str) -> Any:
    """The accelerator of all launched processes."""
    # Before there is a group: its functions have the group of their import as a default, which would
    # keep it, and with it threads that abort the process as it ends.
    import torch.distributed.nn.functional  # noqa: F401

    with quietly():
        from accelerate import Accelerator

    accelerator = Accelerator(cpu=_on_cpu(device), mixed_precision="no")
    if accelerator.num_processes != world:
        raise ConfigError(
            f"{world} processes were launched but accelerate sees {accelerator.num_processes}: launch "
            "with torchrun, and name no device but cpu"
        )
    # Left when the program ends, since a second run in it needs the group, and a group cannot be
    # joined twice; accelerate's own `end_training` aborts now and then.
    atexit.unregister(_leave)
    atexit.register(_leave)
    return accelerator


def _leave() -> None:
    if torch.distributed.is_initialized():
        gc.collect()  # wrapped students that nobody uses any more hold the group, and its threads
        torch.distributed.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device of that name; 'auto' is CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # 'meta' holds no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device '{name}' cannot be used here ({reason}): write auto") from None
    return device
