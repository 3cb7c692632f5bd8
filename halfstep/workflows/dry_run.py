"""Estimate what a run would cost on this machine: seconds of an update."""

import time
from collections.abc import Callable
from statistics import median

import torch

from halfstep.data import Data
from halfstep.methods.stages import Stage
from halfstep.models.hooks import unwrap
from halfstep.rng import Draw
from halfstep.training import TrainingConfig

FIRST, TIMED = 2, 3
"""Samples of the first pass, and number of passes for the median."""
PATIENCE, LONG = 2.0, 8.0
"""Seconds for timing after the first pass; a first pass that takes longer than LONG is the only one."""


def seconds_per_update(
    stage: Stage,
    data: Data,
    training: TrainingConfig,
    device: torch.device,
    *,
    offloaded: bool = False,
) -> tuple[float, int]:
    """Seconds of an update, and the number of samples that were timed together.

    The time is that of a forward and backward, scaled to the samples of an update.

    offloaded  the teacher stays in the CPU's memory, from where its layers visit the device
    """
    size = training.micro_batch_size or training.batch_size
    student = stage.student
    for module in (student, *([] if offloaded else stage.objective.networks)):
        _in_bf16(unwrap(module.to(device)), device)

    def timed(count: int) -> float:
        batch = data.batch(torch.arange(count) % len(data)).to(device)
        generator = torch.Generator(device).manual_seed(count)
        began = time.perf_counter()
        stage.objective(student, batch, Draw.all(generator, count)).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        student.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    count, seconds = probed(timed, size)
    return seconds / count * training.batch_size, count


def _in_bf16(module: torch.nn.Module, device: torch.device) -> None:
    """Use bf16 on a CPU, where fp16 takes many times as long: as many bytes, of activations too."""
    if is_slow(module, device):
        module._apply(lambda t: t.bfloat16() if t.dtype == torch.float16 else t)
        module.autocast = torch.bfloat16  # type: ignore[assignment]  # not a module


def is_slow(module: torch.nn.Module, device: torch.device) -> bool:
    return device.type == "cpu" and getattr(module, "autocast", None) is torch.float16


def probed(timed: Callable[[int], float], most: int) -> tuple[int, float]:
    """The largest number of samples, at most `most`, that is timed within PATIENCE, and its seconds."""
    count = min(FIRST, most)
    seconds = timed(count)  # includes the choice of kernels, so that a short time is not used
    if seconds > LONG:
        return count, seconds
    passes = [timed(count)]
    spent = passes[0]
    while count < most and spent + 4 * passes[0] < PATIENCE:
        count = min(2 * count, most)
        passes = [timed(count)]
        spent += passes[0]
    while len(passes) < TIMED and spent + passes[0] < PATIENCE:
        passes.append(timed(count))
        spent += passes[-1]
    return count, median(passes)
