"""The timesteps and sigmas at which each runtime would sample a diffusers folder, and where they differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Count, Validated
from halfstep.diffusion.samplers.scheduler_levels import Kind
from halfstep.errors import ConfigError
from halfstep.workflows.runtimes import walks_of
from halfstep.workflows.scheduler_folder import read_scheduler_folder
from halfstep.workflows.walk import differs, Walk

__all__ = ["Grid", "GridConfig", "Walk", "differs", "grid"]

DEFAULT_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class GridConfig(Validated):
    """Print the timesteps and sigmas at which diffusers and ComfyUI would sample a diffusers folder."""

    folder: Annotated[Path, POSITIONAL]
    """A folder of save_pretrained, its scheduler folder, or a scheduler_config.json."""
    steps: tuple[Annotated[int, Ge(1), Le(10_000)], ...] = ()
    """Numbers of steps; by default those of the folder's model card or scheduler, or else 4."""
    tokens: Count = 4096
    """Image tokens, for a scheduler with dynamic shifting: height / 16 times width / 16 in Flux and SD3."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The walks of a folder.

    pipeline, scheduler  class names; the pipeline's is "" for a scheduler alone
    prediction_type      of the network: epsilon, v_prediction, sample or flow_prediction
    schedule             the noise levels, in words
    steps_from           where the number of steps comes from, in words
    walks                for each number of steps, the folder's own first
    """

    pipeline: str
    scheduler: str
    prediction_type: str
    schedule: str
    steps_from: str
    walks: tuple[Walk, ...]

    def groups(self, steps: int) -> tuple[tuple[Walk, ...], ...]:
        """The walks of this number of steps; those in one group are the same."""
        groups: list[list[Walk]] = []
        for walk in self.walks:
            if walk.steps == steps:
                group = next((g for g in groups if not differs(g[0], walk)), None)
                groups.append([walk]) if group is None else group.append(walk)
        return tuple(map(tuple, groups))


def grid(config: GridConfig) -> Grid:
    """The walks that diffusers and ComfyUI take with a folder's scheduler.

    The schedulers are diffusers' own objects, and only their classes are ever named by a file.

    Args:
        config: the options of `halfstep grid`.

    Raises:
        ConfigError: a folder without a scheduler, an unknown one, or more steps than the table has.
    """
    folder = read_scheduler_folder(Path(config.folder))
    source = "as given" if config.steps else folder.steps_from or "by default"
    counts = config.steps or (folder.steps or DEFAULT_STEPS,)
    own = folder.build()
    if max(counts) > (entries := own.config.num_train_timesteps):
        raise ConfigError(
            f"{max(counts)} steps do not fit on {entries} levels: write for example --steps 4"
        )
    walks = [walk for n in dict.fromkeys(counts) for walk in walks_of(folder, n, config.tokens)]
    flow = walks[0].kind == "flow"
    return Grid(
        pipeline=folder.pipeline,
        scheduler=type(own).__name__,
        prediction_type="flow_prediction" if flow else own.config.get("prediction_type", "epsilon"),
        schedule=_schedule(own, walks[0].kind),
        steps_from=source,
        walks=tuple(walks),
    )


def _schedule(scheduler: Any, kind: Kind) -> str:
    """The noise levels of a scheduler, in words."""
    config = scheduler.config
    if kind == "ve":
        return f"sigma {config.sigma_min:g} to {config.sigma_max:g}"
    if kind == "flow":
        if config.get("use_dynamic_shifting"):
            return "dynamic shift"
        return f"shift {config.get('shift', config.get('flow_shift', 1.0)):g}"
    kind_of_betas = "trained_betas" if config.get("trained_betas") is not None else None
    words = [f"{kind_of_betas or config.beta_schedule} of {config.num_train_timesteps}"]
    if scheduler.alphas_cumprod[-1] < 1e-7:
        words.append("zero terminal SNR")
    if spacing := config.get("timestep_spacing"):
        words.append(spacing)
    return ", ".join(words)
