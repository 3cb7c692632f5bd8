"""The walks of one noise table: by the folder's own pipeline, by other schedulers, and by ComfyUI."""

from collections.abc import Iterator
from math import exp
from typing import Any

from halfstep.diffusion.samplers.comfyui import COMFYUI, discrete_table, FlowTable, NoiseTable
from halfstep.diffusion.samplers.published_scheduler import uniform_sigmas
from halfstep.diffusion.samplers.scheduler_levels import Kind, scheduler_levels, SchedulerLevels
from halfstep.workflows.pipeline_sigmas import dynamic_mu, passed_sigmas, UNKNOWN
from halfstep.workflows.scheduler_folder import (
    scheduler_from_config,
    SchedulerFolder,
    set_timesteps,
)
from halfstep.workflows.walk import Walk, walk_of

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
"""ComfyUI's table of 1000 betas."""
TABLE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
FLOW_KEYS = (
    "num_train_timesteps",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
)
TRAILING = {"timestep_spacing": "trailing"}
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIMScheduler, trailing, set_alpha_to_one": (
        "DDIMScheduler",
        {**TRAILING, "set_alpha_to_one": True, "clip_sample": False},
    ),
    "DPMSolverMultistepScheduler of order 1, trailing, final_sigmas_type zero": (
        "DPMSolverMultistepScheduler",
        {**TRAILING, "solver_order": 1, "final_sigmas_type": "zero"},
    ),
    "EulerDiscreteScheduler, trailing": ("EulerDiscreteScheduler", TRAILING),
}
"""Schedulers of diffusers to compare with on a table of betas: by name, class and options."""


def walks_of(folder: SchedulerFolder, steps: int, tokens: int) -> Iterator[Walk]:
    """The walk of the folder itself, and those to compare it with.

    tokens  image tokens, for dynamic shifting
    """
    own = folder.build()
    mu = dynamic_mu(folder.pipeline, steps, tokens, own, folder.index)
    walk = _own_walk(folder, own, steps, mu, tokens)
    yield walk
    if walk.kind == "flow":
        yield from _flow_walks(own, steps, mu)
    elif walk.kind == "vp":
        table = {key: own.config[key] for key in TABLE_KEYS if key in own.config}
        for name, (scheduler, options) in EXACT.items():
            built = set_timesteps(scheduler_from_config(scheduler, table, **options), steps)
            yield walk_of(f"diffusers: {name}", steps, scheduler_levels(built), built)
        yield from _comfyui_walks(
            "vp", discrete_table(own.alphas_cumprod), steps, _comfyui_note(own)
        )


def _comfyui_note(own: Any) -> tuple[str, ...]:
    """What ComfyUI needs for a table of betas."""
    config = own.config
    if config.get("trained_betas") or any(config[k] != v for k, v in STABLE_DIFFUSION.items()):
        return ("ComfyUI has no such table: its own is Stable Diffusion's",)
    if config.get("rescale_betas_zero_snr"):
        return ("set by the node ModelSamplingDiscrete, zsnr",)
    return ()


def _own_walk(folder: SchedulerFolder, own: Any, steps: int, mu: float | None, tokens: int) -> Walk:
    pipeline, name = folder.pipeline, type(own).__name__
    sigmas = passed_sigmas(pipeline, steps, own, folder.index)
    notes = []
    if pipeline.removesuffix("Pipeline") in UNKNOWN:
        notes.append(f"{pipeline} sets a grid of its own; shown is set_timesteps({steps})")
    if name != folder.scheduler:
        notes.append(f"{pipeline} turns the folder's {folder.scheduler} into a {name}")
    if own.config.get("timestep_spacing") == "leading":
        notes += [f"{pipeline} sets {key} to {value}" for key, value in folder.changes().items()]
    if mu is not None:
        notes.append(f"mu = {mu:.4g} at {tokens} image tokens (--tokens)")
    shift = {} if mu is None else {"mu": mu}
    if sigmas is None:
        set_timesteps(own, steps, **shift)
    else:
        set_timesteps(own, sigmas=sigmas, **shift)
        uniform = sigmas == uniform_sigmas(steps)
        words = "linspace(1, 1/N, N)" if uniform else f"the {len(sigmas)} of model_index.json"
        notes.append(f"{pipeline} passes sigmas: {words}")
    runtime = f"diffusers: {pipeline} with its {name}" if pipeline else f"diffusers: {name}"
    return walk_of(runtime, steps, scheduler_levels(own), own, tuple(notes))


def _flow_walks(own: Any, steps: int, mu: float | None) -> Iterator[Walk]:
    name = "FlowMatchEulerDiscreteScheduler"
    config = {key: own.config[key] for key in FLOW_KEYS if key in own.config}
    static = own.config.get("shift", own.config.get("flow_shift", 1.0))
    shift = {} if mu is None else {"mu": mu}
    alone = set_timesteps(scheduler_from_config(name, config, shift=static), steps, **shift)
    yield walk_of(
        f"diffusers: {name}, set_timesteps({steps})", steps, scheduler_levels(alone), alone
    )
    passed = scheduler_from_config(name, config, shift=static)
    set_timesteps(passed, sigmas=uniform_sigmas(steps), **shift)
    yield walk_of(
        f"diffusers: {name}, sigmas=linspace(1, 1/N, N)", steps, scheduler_levels(passed), passed
    )
    end = None if steps == 1 else 1 / steps
    exact = scheduler_from_config(
        name,
        {"num_train_timesteps": own.config.num_train_timesteps},
        shift=1.0,
        shift_terminal=end,
    )
    set_timesteps(exact, steps)
    words = f"diffusers: {name}, shift=1.0, shift_terminal={'None' if end is None else '1/N'}"
    yield walk_of(words, steps, scheduler_levels(exact), exact)
    table, node = _comfyui_flow(own, static, mu)
    yield from _comfyui_walks("flow", table, steps, (node,))


def _comfyui_flow(own: Any, shift: float, mu: float | None) -> tuple[FlowTable, str]:
    """ComfyUI's table of a flow, and the node that sets its shift."""
    if mu is None:
        return FlowTable(shift), f"set by the node ModelSamplingSD3, shift {shift:g}"
    if own.config.get("time_shift_type", "exponential") == "linear":
        return FlowTable(mu), f"set by the node ModelSamplingSD3, shift {mu:g}"
    return FlowTable(exp(mu), levels=10_000), f"set by the node ModelSamplingFlux, mu = {mu:.4g}"


def _comfyui_walks(
    kind: Kind, table: NoiseTable, steps: int, notes: tuple[str, ...]
) -> Iterator[Walk]:
    for name, schedule in COMFYUI.items():
        sigmas = schedule(table, steps)
        values = tuple(sigmas.tolist())
        labels = tuple(table.place_of(sigmas[:-1]).tolist())
        levels = SchedulerLevels(kind, labels, values, values[1:])
        yield walk_of(f"ComfyUI: euler, {name}", steps, levels, None, notes)
