"""One process or many: the only file that imports accelerate.

Under torchrun or `accelerate launch` the same command uses every process.  The batch is the whole
batch, divided; draws are for the whole batch (`halfstep.noise.Draw`), so that the numbers are those of
one process.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.errors import ConfigError


class Processes:
    """The processes of this run, and this one's place among them."""

    def __init__(self, device: str = "auto"):
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self._accelerator: Any = None
        if self.world > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
            if self._accelerator.num_processes != self.world:
                raise ConfigError(
                    f"{self.world} processes were launched but accelerate sees "
                    f"{self._accelerator.num_processes}: launch with torchrun instead"
                )
            self.rank = int(self._accelerator.process_index)
            self.device = torch.device(self._accelerator.device)
        else:
            self.rank, self.device = 0, pick_device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
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

    def unsynced(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Inside it a backward leaves gradients to this process (all micro-batches but the last)."""
        if self._accelerator is None:
            return nullcontext()
        context: AbstractContextManager[None] = self._accelerator.no_sync(wrapped)
        return context

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self._accelerator is None:
            return value
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

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

    def close(self) -> None:
        """Leave the group: accelerate's own `end_training` aborts now and then."""
        if self._accelerator is not None and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device of that name; 'auto' is CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device '{name}' cannot be used here ({reason}): write auto") from None
    return device
