"""A student of parallel decoding for one number of steps: its heads fused into a last layer for each step."""

from dataclasses import replace

import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.samplers.in_blocks import weights_of_steps
from halfstep.errors import ConfigError
from halfstep.models.with_heads import fused_heads
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.pipeline import Pipeline
from halfstep.pipeline.samplers import PARALLEL_DECODING


def fused(pipeline: Pipeline, steps: int | None = None) -> Pipeline:
    """The student of one number of steps alone: its last layers are exact combinations of its heads.

    Of several steps it has a last layer for each, and is sampled by "parallel-decoding"; of one step it is a
    student of DDIM with its teacher's network.

    Args:
        pipeline: a student of `ParallelDecoding`.
        steps: one of the numbers that it takes, by default its own.

    Raises:
        ConfigError: another student, or a number of steps that it does not take; heads that predict eps
            where they say almost nothing about x0 (alpha below a tenth of sigma).
    """
    if not has_heads(pipeline):
        raise ConfigError(
            f"heads are of students of parallel decoding, and this one has the sampler '{pipeline.sampler}': "
            "leave it as it is"
        )
    times, old = pipeline.grid(steps), pipeline.denoiser
    starts = old.schedule.at(torch.tensor(times[:-1], dtype=torch.float64))
    if old.parameterisation.blind_to_data and bool((starts.alpha < 0.1 * starts.sigma).any()):
        raise ConfigError(
            "these heads predict eps, which says almost nothing about the image where this grid starts: "
            "distil a teacher that predicts v (halfstep distill reparameterise)"
        )
    net = fused_heads(old.net, weights_of_steps(old.schedule, times, pipeline.fine_times))
    denoiser = Denoiser(
        net, old.schedule, old.parameterisation, time=old.time, autocast=old.autocast
    ).train(old.training)
    count = len(times) - 1
    several = count > 1
    return replace(
        pipeline,
        denoiser=denoiser,
        times=(times,),
        steps=count,
        fine_times=times if several else (),
        sampler=PARALLEL_DECODING if several else "ddim",
    )


def has_heads(pipeline: PipelineFields) -> bool:
    """Whether a pipeline is a student of parallel decoding, with a head for each of its fine steps."""
    return bool(pipeline.times) and pipeline.sampler == PARALLEL_DECODING
