"""A student as a program of torch.export: one call a step, needs torch and nothing of halfstep.

step = torch.export.load("student.pt2").module()
x = torch.randn(n, *shape)
for k in range(steps):
    x = step(x, torch.full((n,), k), *conditions)
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.diffusion.samplers import start
from halfstep.diffusion.schedules import arriving, Level
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.pipeline.pipeline import Pipeline
from halfstep.rng import sample_noise

FEW = 63
"""diffusers' U-Nets take another way from 64 samples on, so a program of one is for fewer."""


@dataclass(frozen=True)
class Program:
    """What torch.export made of a pipeline.

    exported  the program: (x [B, *shape], step int64 [B], *conditions) to x after that step
    inputs    the names of its inputs, in order
    steps     how many calls make a sample
    scale     what unit noise is multiplied by before the first: 1 where the noise preserves variance
    batch     the least and the most samples at once; None where there is no most
    """

    exported: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    steps: int
    scale: float
    batch: tuple[int, int | None]


class SamplingStep(nn.Module):
    """One DDIM step of a pipeline, times and levels read from tables by the number of the step."""

    def __init__(self, pipeline: Pipeline, times: Times):
        super().__init__()
        denoiser = pipeline.denoiser
        self.net, self.reads, self.clip = denoiser.net, denoiser.parameterisation, pipeline.clip
        self.names = conditions_of(pipeline)
        grid = torch.tensor(times, dtype=torch.float64)
        here, there = denoiser.schedule.at(grid[:-1]), arriving(denoiser.schedule, grid[1:])
        self.register_buffer("time", denoiser.time(grid[:-1], denoiser.schedule).float())
        for name, value in (("here", here), ("there", there)):
            self.register_buffer(f"alpha_{name}", value.alpha.float())
            self.register_buffer(f"sigma_{name}", value.sigma.float())
        # What cannot be read is refused here: a traced program looks at no values.
        nothing = torch.zeros(len(grid) - 1, 1)
        level = self._level("here", torch.arange(len(grid) - 1), nothing)
        self.reads.decode(nothing.expand(-1, self.reads.outputs), nothing, level)

    def forward(self, x: Tensor, step: Tensor, *conditions: Tensor) -> Tensor:
        said = dict(zip(self.names, conditions, strict=True))
        here, there = self._level("here", step, x), self._level("there", step, x)
        out = self.net(x, self.get_buffer("time")[step], Cond(**said) if said else None)
        found = self.reads.decode(out, x, here)
        if self.clip is not None:
            found = found.clipped(x, here, self.clip)
        return there.mix(found.x0, found.eps)

    def _level(self, name: str, step: Tensor, x: Tensor) -> Level:
        rows = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (
            self.get_buffer(f"alpha_{name}")[step],
            self.get_buffer(f"sigma_{name}")[step],
        )
        return Level(alpha.reshape(rows), sigma.reshape(rows))


def conditions_of(pipeline: Pipeline) -> tuple[str, ...]:
    """What the network is told besides: label int64 [B], encoder_hidden_states
    [B, tokens, D], guidance_scale [B].
    """
    there = {
        "label": bool(pipeline.class_names),
        "encoder_hidden_states": pipeline.empty is not None,
        "guidance_scale": pipeline.guidance_range is not None,
    }
    return tuple(name for name, told in there.items() if told)


def refuse_unexportable(pipeline: Pipeline) -> None:
    """`ConfigError` for what DDIM does not walk, and for int8."""
    if pipeline.direction == "invert" or pipeline.reference_sampler != "ddim":
        raise ConfigError(
            f"this student has sampler '{pipeline.sampler}' and direction '{pipeline.direction}', and a "
            "program is a step of DDIM that denoises: export it as a pipeline, without --format"
        )
    if getattr(pipeline.denoiser.net, "quantised", None):
        raise ConfigError(
            "this student is int8, which torch.export does not write: export the one that it was made from"
        )


def export_program(pipeline: Pipeline, steps: int | None = None) -> Program:
    """The pipeline's walk of so many steps, by default its own, on the CPU.

    Latents come out of a model of latents: its codec is not part of it.  For a batch of any size where
    the network can be traced so, else up to 63, else of 2.
    """
    from torch._dynamo.exc import UserError, UserErrorType  # slow to import

    refuse_unexportable(pipeline)
    times = pipeline.grid(steps, "ddim")
    step = SamplingStep(pipeline.to("cpu"), times).eval().requires_grad_(False)
    given = _example(pipeline)
    first = start(pipeline.denoiser.schedule, torch.ones(1), times[0])
    about = ("x", "step", *step.names), len(times) - 1, float(first)
    for most in (None, FEW):
        try:
            return Program(_traced(step, given, (1, most)), *about, (1, most))
        except UserError as error:
            if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION:
                raise
    return Program(_traced(step, given, None), *about, (2, 2))


def _traced(
    step: SamplingStep, given: tuple[Tensor, ...], sizes: tuple[int, int | None] | None
) -> torch.export.ExportedProgram:
    shapes: Any = None
    if sizes is not None:
        batch = {0: torch.export.Dim("batch", min=sizes[0], max=sizes[1])}
        told = [(batch,) * (len(given) - 2)] if len(given) > 2 else []
        shapes = (batch, batch, *told)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        return torch.export.export(step, given, dynamic_shapes=shapes, strict=False)


def _example(pipeline: Pipeline) -> tuple[Tensor, ...]:
    """Two samples' inputs of the first step."""
    labels = torch.arange(2) % max(len(pipeline.class_names), 1)
    told = {"label": labels}
    if pipeline.empty is not None:
        told["encoder_hidden_states"] = pipeline.empty.expand(2, *pipeline.empty.shape).contiguous()
    if pipeline.guidance_range is not None:
        told["guidance_scale"] = torch.tensor(pipeline.guidance_range, dtype=torch.float32)
    x = sample_noise(0, range(2), pipeline.shape)
    return (x, torch.zeros(2, dtype=torch.int64), *(told[n] for n in conditions_of(pipeline)))


@torch.no_grad()
def run_program(program: Program, noise: Tensor, conditions: Sequence[Tensor]) -> Tensor:
    """Samples of a program, as its user's loop draws them."""
    step, x = program.exported.module(), program.scale * noise
    for k in range(program.steps):
        x = step(x, torch.full((len(x),), k), *conditions)
    return x
