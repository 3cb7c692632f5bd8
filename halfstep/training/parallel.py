"""One process or many: the only file that imports accelerate.

Under torchrun or `accelerate launch` the same command uses every process.  The batch is the whole
batch, divided; draws are for the whole batch (`halfstep.noise.Draw`), so that the numbers are those of
one process.  The first process alone decides and writes, and the others hear of it: no two can disagree.
"""

import atexit
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn, Tensor

from halfstep.errors import ConfigError, HalfstepError

T = TypeVar("T")


class Processes:
    """The processes of this run, and this one's place among them."""

    def __init__(self, device: str = "auto"):
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self._accelerator: Any = None
        if self.world > 1:
            self._accelerator = _joined(self.world, device)
            self.rank = int(self._accelerator.process_index)
            device_here = torch.device(self._accelerator.device)
            self.device = torch.device("cpu") if device_here.type == "cpu" else device_here
        else:
            self.rank, self.device = 0, pick_device(device)

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
                f"example --batch {max(each, 1) * self.world}"
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


def _joined(world: int, device: str) -> Any:
    """The accelerator of all launched processes."""
    # Before there is a group: its functions have the group of their import as a default, which would
    # keep it, and with it threads that abort the process as it ends.
    import torch.distributed.nn.functional
    from accelerate import Accelerator

    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
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
