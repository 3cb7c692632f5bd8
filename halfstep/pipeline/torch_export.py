"""Export a student as a program of torch.export: one call a step, which needs only torch.

step = torch.export.load("student.pt2").module()
x = torch.randn(n, *shape)
for k in range(steps):
    x = step(x, torch.full((n,), k), *conditions)
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Cond, NAMED
from halfstep.diffusion.samplers import start
from halfstep.diffusion.samplers.in_blocks import weights_of_steps
from halfstep.diffusion.schedules import arriving, Level
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.pipeline.any_batch import any_batch
from halfstep.pipeline.conditioning import condition
from halfstep.pipeline.pipeline import Pipeline
from halfstep.pipeline.samplers import FLOW_MAP, PARALLEL_DECODING, TOLD
from halfstep.quiet import quietly
from halfstep.rng import sample_noise
from halfstep.storage import rounded


@dataclass(frozen=True)
class Program:
    """A pipeline exported by torch.export.

    exported  the program: maps (x [B, *shape], step int64 [B], *conditions) to x after that step
    inputs    the names of its inputs, in order
    steps     the number of calls of a sample
    scale     the factor on the first unit noise: 1 for a schedule that preserves variance
    """

    exported: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    steps: int
    scale: float


class SamplingStep(nn.Module):
    """One DDIM step of a pipeline, with times and levels in tables by the number of the step.

    The network computes in the type of its weights, the rest in float32.
    """

    def __init__(self, pipeline: Pipeline, times: Times):
        super().__init__()
        denoiser = pipeline.denoiser
        self.net, self.reads, self.clip = (
            denoiser.net,
            denoiser.parameterisation,
            pipeline.clip_of("ddim"),
        )
        self.names, self.dtype = conditions_of(pipeline), dtype_of(self.net)
        grid = torch.tensor(times, dtype=torch.float64)
        start, end = denoiser.schedule.at(grid[:-1]), arriving(denoiser.schedule, grid[1:])
        self.register_buffer("time", denoiser.time(grid[:-1], denoiser.schedule).float())
        self.told_end = pipeline.sampler == FLOW_MAP
        if self.told_end:
            ends = denoiser.time.arriving(grid[1:], denoiser.schedule)
            self.register_buffer("time_end", ends.float())
        self.told_heads = pipeline.sampler == PARALLEL_DECODING
        if self.told_heads:
            weights = weights_of_steps(denoiser.schedule, times, pipeline.fine_times)
            self.register_buffer("heads", weights.float())
        for name, value in (("start", start), ("end", end)):
            self.register_buffer(f"alpha_{name}", value.alpha.float())
            self.register_buffer(f"sigma_{name}", value.sigma.float())
        # Levels that the parameterisation cannot decode are refused here: a traced program checks no values.
        zeros = torch.zeros(len(grid) - 1, 1)
        level = self._level("start", torch.arange(len(grid) - 1), zeros)
        self.reads.decode(zeros.expand(-1, self.reads.outputs), zeros, level)

    def forward(self, x: Tensor, step: Tensor, *conditions: Tensor) -> Tensor:
        fields: dict[str, Any] = dict(zip(self.names, conditions, strict=True))
        for name, value in fields.items():
            if value.is_floating_point() and name != "guidance_scale":
                fields[name] = value.to(self.dtype)
        added = {name: fields.pop(name) for name in self.names if name not in NAMED}
        if self.told_end:
            fields["t_end"] = self.get_buffer("time_end")[step]
        if self.told_heads:
            fields["heads"] = self.get_buffer("heads")[step]
        cond = Cond(**fields, added=added) if fields or added else None
        start, end = self._level("start", step, x), self._level("end", step, x)
        out = self.net(x.to(self.dtype), self.get_buffer("time")[step], cond)
        prediction = self.reads.decode(out.to(x.dtype), x, start)
        if self.clip is not None:
            prediction = self.clip(prediction, x, start)
        return end.mix(prediction.x0, prediction.eps)

    def _level(self, name: str, step: Tensor, x: Tensor) -> Level:
        rows = (-1, *[1] * (x.ndim - 1))
        alpha = self.get_buffer(f"alpha_{name}")[step]
        sigma = self.get_buffer(f"sigma_{name}")[step]
        return Level(alpha.reshape(rows), sigma.reshape(rows))


def conditions_of(pipeline: Pipeline) -> tuple[str, ...]:
    """The network's conditions: label int64 [B], encoder_hidden_states [B, tokens, D], guidance_scale [B].

    And the pipeline's named tensors, one row a sample.
    """
    conditions = {
        "label": bool(pipeline.class_names),
        "encoder_hidden_states": pipeline.empty is not None,
        "guidance_scale": pipeline.takes_scale,
    }
    return *(name for name, is_read in conditions.items() if is_read), *pipeline.added


def refuse_unexportable(pipeline: Pipeline) -> None:
    """`ConfigError` for students of other steps than DDIM's, and for int8."""
    is_ddim = pipeline.reference_sampler in ("ddim", *TOLD)
    if pipeline.direction == "invert" or not is_ddim:
        raise ConfigError(
            f"this student has sampler '{pipeline.sampler}' and direction '{pipeline.direction}', and a "
            "program is a step of DDIM that denoises: export it as a pipeline, without --format"
        )
    if getattr(pipeline.denoiser.net, "quantised", None):
        raise ConfigError(
            "this student is int8, which torch.export does not write: export the one that it was made from"
        )


def dtype_of(net: nn.Module) -> torch.dtype:
    """The type that a network computes in: that of its weights, float32 without any."""
    return next((p.dtype for p in net.parameters()), torch.float32)


def rounded_student(pipeline: Pipeline, dtype: torch.dtype) -> Pipeline:
    """A copy with weights rounded to this type, in float32; `ConfigError` if one becomes infinite."""
    denoiser = copy.deepcopy(pipeline.denoiser)
    denoiser.load_state_dict(rounded(denoiser.state_dict(), dtype))
    return replace(pipeline, denoiser=denoiser)


def in_dtype(pipeline: Pipeline, dtype: torch.dtype) -> Pipeline:
    """A copy whose network computes in this type; samples and levels stay float32."""
    student = rounded_student(pipeline, dtype)
    student.denoiser.net.to(dtype)
    empty = None if student.empty is None else student.empty.to(dtype)
    added = {k: v.to(dtype) if v.is_floating_point() else v for k, v in student.added.items()}
    return replace(student, empty=empty, added=added)


def export_program(pipeline: Pipeline, steps: int | None = None) -> Program:
    """Export the pipeline's sampling of `steps` steps, by default its own, for batches of any size.

    A model of latents returns latents, without its codec.  The network computes in the type of its weights.
    `ConfigError` for a network whose own code cannot be traced.
    """
    refuse_unexportable(pipeline)
    times = pipeline.grid(steps, pipeline.reference_sampler)
    step = SamplingStep(pipeline.to("cpu"), times).eval().requires_grad_(False)
    scale = float(start(pipeline.denoiser.schedule, torch.ones(1), times[0]))
    inputs = ("x", "step", *step.names)
    return Program(_traced(step, _example(pipeline)), inputs, len(times) - 1, scale)


@torch.no_grad()
def _traced(step: SamplingStep, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    step(*inputs)  # an error of the network itself is not one of tracing
    batch = {0: torch.export.Dim("batch", min=1)}
    conditions = [(batch,) * (len(inputs) - 2)] if len(inputs) > 2 else []
    shapes: Any = (batch, batch, *conditions)
    with quietly(), any_batch(step.net):
        try:
            exported = torch.export.export(step, inputs, dynamic_shapes=shapes, strict=False)
        except (
            RuntimeError
        ) as error:  # of many classes, one for each thing that a trace cannot hold
            reason = str(error).partition("\n")[0].partition("! For more")[0]
            raise ConfigError(
                f"torch.export cannot trace the code of this network ({reason}): make no Python number of "
                "its batch or values (x.shape[0] for len(x), torch.where for if), or leave --format out"
            ) from error
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, and most of a small file
    return exported


def _wide(condition: Tensor) -> Tensor:
    return (condition.float() if condition.is_floating_point() else condition).contiguous()


def _example(pipeline: Pipeline) -> tuple[Tensor, ...]:
    """The inputs of the first step for two samples."""
    cond = condition(pipeline, 2)
    values = {} if cond is None else {k: _wide(v) for k, v in cond.named().items()}
    if pipeline.takes_scale:
        values["guidance_scale"] = torch.tensor(pipeline.guidance_range, dtype=torch.float32)
    x = sample_noise(0, range(2), pipeline.shape)
    return (x, torch.zeros(2, dtype=torch.int64), *(values[n] for n in conditions_of(pipeline)))


@torch.no_grad()
def run_program(program: Program, noise: Tensor, conditions: Sequence[Tensor]) -> Tensor:
    """Draw samples with a program, as its user's loop does."""
    step, x = program.exported.module(), program.scale * noise
    for k in range(program.steps):
        x = step(x, torch.full((len(x),), k), *conditions)
    return x
