"""One process or many: the only file that imports accelerate.

Under torchrun or `accelerate launch` the same command uses every process.  The batch is divided among the
processes; random draws are for the whole batch (`halfstep.rng.Draw`), so that the numbers are those of one
process.  Only the first process decides and writes, and sends its decisions to the others.
"""

import atexit
import copy
import gc
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn, Tensor

from halfstep.config import JsonObject
from halfstep.errors import ConfigError, HalfstepError
from halfstep.methods.stages import Stage
from halfstep.models.hooks import unwrap
from halfstep.quiet import quietly
from halfstep.training.peers import Board, board, launched, refuse_different, versions
from halfstep.training.sharding import gathered, has_shards, mesh_of, release, shard_stage

T = TypeVar("T")


class Processes:
    """The processes of this run, and the rank of this one."""

    def __init__(self, device: str = "auto", *, shard: bool = False):
        """With `shard` networks are sharded over the processes; `ConfigError` if there is one."""
        self.rank, self.world = launched()
        self.sharded, self._mesh = shard, None
        if shard and self.world == 1:
            raise ConfigError(
                "networks are sharded over several processes, and this is one: start several (torchrun "
                "--nproc-per-node 2 -m -- halfstep ...), or leave --shard out"
            )
        self._accelerator: Any = None
        self._board: Board | None = None
        if self.world > 1:
            if _failures:
                raise HalfstepError(
                    "the processes of this program have parted, one of them having failed: start all of "
                    "them again"
                )
            self._board = board()
            self._board.meet({**versions(), "device": "cpu" if _on_cpu(device) else device})
            self._accelerator = _join_group(self.world, device)
            chosen = torch.device(self._accelerator.device)
            self.device = torch.device("cpu") if chosen.type == "cpu" else chosen
            if shard:
                self._mesh = mesh_of(self.device, self.world)
        else:
            self.device = pick_device(device)

    @property
    def staging(self) -> torch.device:
        """The device of whole networks, before their stage: the CPU if a device may be too small for one."""
        return torch.device("cpu") if self.sharded else self.device

    def place(self, stage: Stage) -> None:
        """Move the networks of a stage to their devices."""
        if self.sharded:
            shard_stage(stage, self._mesh, self.device)
        else:
            stage.student.to(self.device)

    def gathered(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors whole, for the first process to write; others may have none of them."""
        return gathered(tensors, keep=self.first) if self.sharded else tensors

    def whole(self, stage: Stage) -> Stage:
        """The stage with its student whole, to be written."""
        if not has_shards(stage.student):
            return stage
        return replace(stage, student=copy.deepcopy(unwrap(stage.student)))

    def forward_on_first(self, act: Callable[[], T]) -> T:
        """`run_on_first` for what calls networks, which all processes do together if they are sharded."""
        return act() if self.sharded else self.run_on_first(act)

    @property
    def first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This process's rows of a whole batch."""
        each, remainder = divmod(batch, self.world)
        if remainder:
            raise ConfigError(
                f"a batch of {batch} cannot be divided among {self.world} processes: write for "
                f"example --batch-size {max(each, 1) * self.world}"
            )
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap(self, student: nn.Module) -> nn.Module:
        """Wrap the student so that its gradients are averaged over the processes; sharded ones are."""
        if self._accelerator is None or has_shards(student):
            return student
        wrapped: nn.Module = self._accelerator.prepare(student)
        return wrapped

    def unwrap(self) -> None:
        """Free wrapped students, which accelerate would keep to the end."""
        if self._accelerator is not None:
            self._accelerator.free_memory()

    def unsynced(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Inside it a backward does not average gradients (all micro-batches but the last).

        Of a sharded student it always does: until then each process would hold the gradient whole.
        """
        if self._accelerator is None or has_shards(wrapped):
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(wrapped)
        return context

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.SUM)

    def largest(self, value: Tensor) -> Tensor:
        """The maximum over all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.MAX)

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        if self._accelerator is None:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value, how)
        return value

    def run_on_first(self, act: Callable[[], T]) -> T:
        """Call `act` on the first process only; all processes return its result or raise its error."""
        if self._accelerator is None:
            return act()
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                outcome[0] = act()
            except Exception as error:  # sent to the others, which would wait for ever, then raised
                failure, ours = error, isinstance(error, HalfstepError)
                outcome[1] = error if ours else HalfstepError(f"the first process failed: {error}")
        torch.distributed.broadcast_object_list(outcome, src=0, group=_messages())
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def deal(self, values: Sequence[T] | None) -> T:
        """This process's own of the first process's values, one a process; the others give None."""
        own: list[Any] = [None]
        given = None if values is None else list(values)
        torch.distributed.scatter_object_list(own, given, src=0, group=_messages())
        value: T = own[0]
        return value

    def collect(self, value: T) -> list[T]:
        """The values of all processes on the first one; empty on the others."""
        values: list[Any] = [None] * self.world if self.first else []
        torch.distributed.gather_object(value, values or None, dst=0, group=_messages())
        return values

    def any_stops(self, stop: bool, update: int, every: int) -> bool:
        """Whether any process asks to stop after this update; the same on all of them.

        Several processes compare every few updates only, since that waits for the device.
        """
        if self._accelerator is None:
            return stop
        if update % every:
            return False
        return bool(self.total(torch.tensor(float(stop), device=self.device)) > 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def compare(self, values: JsonObject) -> None:
        """`ConfigError` on every process, unless all have the same values."""
        if self._accelerator is None:
            return
        texts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(texts, json.dumps(values, default=str))
        refuse_different([json.loads(text) for text in texts])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around the common work of the processes: if one of them fails, all end with a sentence.

        A process that fails alone leaves the group, or the others would wait for it; a process that loses
        the others raises `HalfstepError` with their reason.  If all fail, each raises its own error.
        """
        try:
            yield
        except BaseException as error:
            if self._board is None:
                raise
            lost = self._lost(error)
            reason = str(error) if isinstance(error, HalfstepError) else repr(error)
            all_end = self._board.end(
                lost or reason, cause=not lost, patience=0.0 if lost else None
            )
            if lost or not all_end:
                _leave_group(error, self._accelerator)
                if self.first:  # which may keep the board
                    self._board.all_end()
            if lost:
                raise HalfstepError(lost) from None
            raise

    def _lost(self, error: BaseException) -> str:
        """Why the others are gone, if this error comes from a call to all of them; else empty."""
        text = str(error)
        of_group = (
            isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text
        )
        if not isinstance(error, RuntimeError) or not of_group or self._board is None:
            return ""
        late = "imed out" in text or "imeout" in text
        loss = "no longer answers" if late else "is gone: it was killed, or its machine failed"
        reason = self._board.reason() or f"another process of this run {loss}"
        return f"{reason}; what was saved is kept, and the same command goes on from there"


PATIENCE = timedelta(days=1)
"""Time that the others wait while the first process works alone."""
_failures = list[str]()
"""Errors that ended the process group of this program."""
_groups = list[Any]()
"""The group for objects, once it is made."""


def _leave_group(error: BaseException, accelerator: Any) -> None:
    """Leave the group for good, so that the processes that wait for this one get an error."""
    _failures.append(str(error))
    if accelerator is None or torch.distributed.get_backend() != "gloo":
        return  # NCCL would wait here for the processes that wait for this one
    # Connections close with the last reference to the group: also those of wrapped students in frames.
    traceback.clear_frames(error.__traceback__)
    accelerator.free_memory()
    _destroy_group()


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _join_group(world: int, device: str) -> Any:
    """The accelerator of all launched processes."""
    # Imported before there is a group: these functions keep the group of their import as a default, and
    # with it threads that abort the process as it ends.
    import torch.distributed.nn.functional  # noqa: F401

    with quietly():
        from accelerate import Accelerator

    accelerator = Accelerator(cpu=_on_cpu(device), mixed_precision="no")
    if accelerator.num_processes != world:
        raise ConfigError(
            f"{world} processes were launched but accelerate sees {accelerator.num_processes}: launch "
            "with torchrun, and name no device but cpu"
        )
    # Destroyed when the program ends, since a second run in it needs the group, and a group cannot be
    # joined twice; accelerate's own `end_training` aborts now and then.
    atexit.unregister(_destroy_group)
    atexit.register(_destroy_group)
    return accelerator


def start_tracker(kind: str, project: str, /, **options: Any) -> Any:
    """Start accelerate's tracker of this kind; only the process that writes calls it."""
    with quietly():
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it which process they are in
    tracker = LOGGER_TYPE_TO_CLASS[kind](project, **options)
    tracker.start()
    return tracker


def _messages() -> Any:
    """The group of all processes for objects, which may wait a day for what the first one does alone.

    It is gloo's on GPUs too, whose own groups give up after minutes, and keep the device busy as they wait.
    """
    if not _groups:
        _groups.append(torch.distributed.new_group(backend="gloo", timeout=PATIENCE))
    return _groups[0]


def _destroy_group() -> None:
    _groups.clear()
    if torch.distributed.is_initialized():
        release()
        gc.collect()  # unused wrapped students hold the group, and its threads
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
