"""Cost of sampling: network calls, seconds, memory, parameters and multiply-adds."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from sys import float_info
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from halfstep.config.validate import Count
from halfstep.diffusion.samplers import calls, PREFIX
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.models.compression.int8 import apart
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition
from halfstep.pipeline.samplers import check_sampling, HAVE_GRIDS, told
from halfstep.progress import Progress, SILENT

GROUP = 4
"""Steps of a single-step solver that include a group of three and its tail."""
SamplingSetup = tuple[Pipeline, str, int]
"""A pipeline, the name of a sampler, and how many steps."""


@dataclass(frozen=True)
class Cost:
    """The cost of one sampling setup."""

    calls: Count
    """Network calls per sample: 2N - 1 for Heun."""
    seconds_per_sample: dict[int, Annotated[float, Ge(float_info.min)]]
    """Median over all rounds at each batch size, with the noise and the copy to the CPU."""
    peak_bytes: int | None
    """Peak memory at the largest batch, weights included; None if it cannot be measured."""
    parameters: Count
    multiply_adds: Annotated[int, Ge(0)]
    """Per sample, of matrix products, convolutions and attention, without elementwise operations."""


def cost(
    setups: Sequence[SamplingSetup],
    *,
    batches: Sequence[int] = (1, 64),
    rounds: int = 5,
    guidance_scale: float = 1.0,
    progress: Progress = SILENT,
) -> list[Cost]:
    """Measure the cost of each sampling setup in one run.

    setups          (pipeline, sampler, steps) of each, such as the teacher's and the students'
    batches         batch sizes of the timings
    rounds          each round times every setup once, so that a temporary slowdown affects all of them, and
                    the median ignores it
    guidance_scale  guidance scale of all setups
    progress        advanced for every timing

    Multiply-adds are those of one call for one sample, counted by torch, times the calls.
    """
    if not setups or not batches or min(batches) < 1 or rounds < 1:
        raise ConfigError(
            f"cost needs a setup, batches of at least 1 and a round, got {len(setups)} setups, batches "
            f"{tuple(batches)} and {rounds} rounds: write for example batches=(1, 64), rounds=5"
        )
    for pipeline, sampler, steps in setups:
        pipeline.grid(steps, sampler)  # refuses before the first timing
    progress.expect(len(batches) * rounds * len(setups))
    seconds = [_seconds(setups, batch, rounds, guidance_scale, progress) for batch in batches]
    return [
        Cost(
            calls_of(pipeline, sampler, steps, guidance_scale),
            {batch: per_sample[k] for batch, per_sample in zip(batches, seconds, strict=True)},
            peak_bytes(pipeline, sampler, steps, batch=max(batches), guidance_scale=guidance_scale),
            sum(p.numel() for p in pipeline.denoiser.parameters()),
            multiply_adds(pipeline) * calls_of(pipeline, sampler, steps, guidance_scale),
        )
        for k, (pipeline, sampler, steps) in enumerate(setups)
    ]


def calls_of(pipeline: Pipeline, sampler: str, steps: int, guidance_scale: float = 1.0) -> int:
    """Network calls per sample; guidance outside the network costs two calls instead of one."""
    both = pipeline.guidance_range is None and guidance_scale != 1
    return calls(sampler, steps) * (2 if both else 1)


def _seconds(
    setups: Sequence[SamplingSetup],
    batch: int,
    rounds: int,
    guidance_scale: float,
    progress: Progress,
) -> list[float]:
    """Seconds per sample of each setup: the median over rounds that time all setups in turn."""
    taken: list[list[float]] = [[] for _ in setups]
    for pipeline, _, _ in setups:
        _call(pipeline, batch)  # the first call of a shape chooses kernels and compiles
    for _ in range(rounds):
        for (pipeline, sampler, steps), times in zip(setups, taken, strict=True):
            began = time.perf_counter()
            # The samples come back to the CPU, so a GPU has finished when this returns.
            pipeline.sample(
                batch, steps=steps, sampler=sampler, guidance_scale=guidance_scale, batch=batch
            )
            times.append((time.perf_counter() - began) / batch)
            progress.advance()
    return [median(times) for times in taken]


@torch.no_grad()
def _call(pipeline: Pipeline, batch: int) -> None:
    """One network call, as the first of a sampler."""
    device = pipeline.device
    x = torch.zeros(batch, *pipeline.shape, device=device)
    times = pipeline.times[0] if pipeline.times else pipeline.grid()
    t = torch.full((batch,), times[0], device=device)
    pipeline.denoiser.eval()
    scale = (pipeline.guidance_range or (None,))[0] if pipeline.takes_scale else None
    cond = condition(pipeline, batch, guidance_scale=scale)
    model = told(pipeline.denoiser, pipeline.sampler, times, pipeline.fine_times)
    model(x, t, None if cond is None else cond.to(device))


def multiply_adds(pipeline: Pipeline) -> int:
    """Multiply-adds of one network call for one sample: half of torch's count of operations."""
    from torch.nn.attention import sdpa_kernel, SDPBackend
    from torch.utils.flop_counter import FlopCounterMode

    # The counter sees neither into compiled networks nor into the CPU's fused attention.
    with (
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        _call(pipeline, 1)
    return int(counter.get_total_flops()) // 2


def peak_bytes(
    pipeline: Pipeline, sampler: str, steps: int, *, batch: int, guidance_scale: float = 1.0
) -> int | None:
    """Peak memory of sampling a batch, weights included; None if it cannot be measured.

    CUDA: torch's peak, less the memory allocated before (other models).  CPU: the allocations and releases
    that torch's profiler lists.  Measured over a few steps, which reach the peak: a sampler keeps at most
    two outputs of the network.
    """
    short = _shortened(pipeline, sampler, steps)

    def sample() -> Tensor:
        return short.sample(
            batch, steps=short.steps, sampler=sampler, guidance_scale=guidance_scale, batch=batch
        )

    device = pipeline.device
    peak = None
    if device.type == "cuda":
        peak = _on_cuda(sample, device)
    elif device.type == "cpu":
        peak = _on_cpu(sample)
    if peak is None:
        return None
    tensors = [*pipeline.denoiser.parameters(), *pipeline.denoiser.buffers()]
    tensors = list(apart({str(k): tensor for k, tensor in enumerate(tensors)}).values())
    weights = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return peak + sum(weights.values())


def _shortened(pipeline: Pipeline, sampler: str, steps: int) -> Pipeline:
    """The pipeline with only the first steps and the last, or few steps if the sampler makes the grid.

    With more steps where the sampler refuses fewer.
    """
    times = pipeline.grid(steps, sampler)
    if sampler in HAVE_GRIDS:
        few = min(steps, GROUP)
        while few < steps and _refused(pipeline, sampler, pipeline.grid(few, sampler)):
            few = min(steps, 2 * few)
        return replace(pipeline, steps=few)
    short = (*times[:-1][:3], times[-1])
    if sampler.startswith(PREFIX) and _refused(pipeline, sampler, short):
        short = times
    return replace(pipeline.on_grids(short), steps=len(short) - 1)


def _refused(pipeline: Pipeline, sampler: str, times: Times) -> bool:
    try:
        check_sampling(sampler, times, pipeline.denoiser.schedule)
    except ConfigError:
        return True
    return False


def _on_cuda(sample: Callable[[], Tensor], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    sample()
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(sample: Callable[[], Tensor]) -> int | None:
    from torch.profiler import profile, ProfilerActivity

    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        sample()
    try:
        # The public list leaves out the allocations that belong to an operation.
        kineto: Any = profiler.profiler.kineto_results
        events = [
            (event.start_ns(), event.nbytes())
            for event in kineto.events()
            if event.name() == "[memory]"
        ]
    except AttributeError:  # a private interface, which may change
        return None
    now = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        peak = max(peak, now)
    return peak if events else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the profiler's library, which logs to the terminal; 6 is above all its levels."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "6"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
