"""Estimate what a run would cost on this machine: seconds of an update, and memory."""

import time
from collections.abc import Callable
from statistics import median

import torch

from halfstep.data import Data
from halfstep.methods.base import Stage
from halfstep.models.hooks import unwrap
from halfstep.rng import Draw
from halfstep.training import TrainingConfig

FIRST, TIMED = 2, 3
"""Samples of the first pass, and passes whose median counts."""
PATIENCE, LONG = 2.0, 8.0
"""Seconds that timing takes after the first pass; and those of a first pass that are believed."""


def seconds_per_update(
    stage: Stage, data: Data, training: TrainingConfig, device: torch.device
) -> tuple[float, int]:
    """Seconds of an update, and of how many samples at a time they were found: forward and backward of
    as many as take a moment, at most a micro-batch, times the samples of an update."""
    size = training.micro_batch_size or training.batch_size
    student = stage.student
    for module in (student, *stage.objective.networks):
        _in_fp32(unwrap(module.to(device)), device)

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


def _in_fp32(module: torch.nn.Module, device: torch.device) -> None:
    """A CPU takes many times as long in fp16, too long to be timed with a large network."""
    if is_slow(module, device):
        module.autocast = None  # type: ignore[assignment]  # not a module


def is_slow(module: torch.nn.Module, device: torch.device) -> bool:
    return device.type == "cpu" and getattr(module, "autocast", None) is torch.float16


def probed(timed: Callable[[int], float], most: int) -> tuple[int, float]:
    """How many samples were timed at once, and the seconds that they took: more and more of them, up to
    `most`, while there is time; a first pass that is long decides by itself."""
    count = min(FIRST, most)
    took = timed(count)  # which also chooses kernels: a short one is not believed
    if took > LONG:
        return count, took
    again = [timed(count)]
    spent = again[0]
    while count < most and spent + 4 * again[0] < PATIENCE:
        count = min(2 * count, most)
        again = [timed(count)]
        spent += again[0]
    while len(again) < TIMED and spent + again[0] < PATIENCE:
        again.append(timed(count))
        spent += again[-1]
    return count, median(again)


def training_bytes(stage: Stage, training: TrainingConfig) -> int:
    """Bytes: student, gradient, two moments, the average if there is one, and the teacher."""
    size = sum(p.numel() * p.element_size() for p in stage.student.parameters())
    return size * (4 + bool(training.ema)) + sum(
        p.numel() * p.element_size()
        for teacher in stage.objective.networks
        for p in teacher.parameters()
    )
