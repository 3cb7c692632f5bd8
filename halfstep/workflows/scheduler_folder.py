"""Read the scheduler of a folder that diffusers saved: its class, its config, its pipeline, its steps."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from annotated_types import Ge, Le

from halfstep.config import JsonObject
from halfstep.config.validate import validate
from halfstep.diffusion.samplers.scheduler_levels import READABLE
from halfstep.diffusion.samplers.scheduler_setup import quiet_numpy, scheduler_class
from halfstep.errors import CheckpointError, ConfigError, unknown
from halfstep.quiet import quietly
from halfstep.storage import read_unsealed_json, reading
from halfstep.workflows.pipeline_sigmas import config_changes

CONFIG, INDEX = "scheduler_config.json", "model_index.json"
STEPS = re.compile(r"num_inference_steps\s*=\s*(\d{1,4})\b")
"""The number of steps in the code of a model card."""
CARD_BYTES = 1 << 20
Levels = Annotated[int, Ge(1), Le(1_000_000)]
"""The number of levels of a table: that of a file must not exhaust the memory."""


class _Config(TypedDict, total=False):
    """The checked keys of scheduler_config.json; diffusers checks the others."""

    _class_name: str
    num_train_timesteps: int
    trained_betas: list[float] | None
    shift: float | None
    shift_terminal: float | None
    use_dynamic_shifting: bool
    timestep_spacing: str
    solver_order: int
    _use_default_values: list[str]


class _Index(TypedDict, total=False):
    """The checked keys of model_index.json."""

    _class_name: str
    scheduler: list[str | None]
    sample_sigmas: list[float] | None


@dataclass(frozen=True, kw_only=True)
class SchedulerFolder:
    """A scheduler as saved.

    pipeline    class name of the pipeline in model_index.json; "" for a scheduler alone
    scheduler   class name of a scheduler of diffusers, one of `READABLE`
    config      scheduler_config.json
    index       model_index.json; {} for a scheduler alone
    steps       the number of steps that the folder names, or None
    steps_from  where it names them
    """

    pipeline: str
    scheduler: str
    config: JsonObject
    index: JsonObject
    steps: int | None
    steps_from: str

    def build(self) -> Any:
        """The scheduler that the pipeline samples with."""
        return scheduler_from_config(self._class, self.config, **self.changes())

    def changes(self) -> JsonObject:
        """The options that the pipeline changes as it loads the scheduler."""
        return config_changes(self.pipeline, scheduler_from_config(self._class, self.config).config)

    @property
    def _class(self) -> str:
        return "DDIMScheduler" if self.pipeline == "DDIMPipeline" else self.scheduler


def read_scheduler_folder(path: Path) -> SchedulerFolder:
    """Read a pipeline's folder, a scheduler's folder, or a scheduler_config.json.

    `ConfigError` for a path without one and for a scheduler that is not diffusers' or has no known levels;
    `CheckpointError` for damaged files.
    """
    file, index_file = _config_file(path), path / INDEX
    config = read_unsealed_json(file, _Config)
    levels = validate("num_train_timesteps", config.get("num_train_timesteps", 1000), Levels)
    if (betas := config.get("trained_betas")) and len(betas) != levels:
        raise ConfigError(
            f"'{file}' has {len(betas)} trained_betas: write num_train_timesteps {len(betas)} there"
        )
    index = read_unsealed_json(index_file, _Index) if index_file.is_file() else {}
    library, name = [*(index.get("scheduler") or []), None, None][:2]
    if library not in (None, "diffusers"):
        raise ConfigError(
            f"'{index_file}' names a scheduler of '{library}': halfstep runs diffusers' own schedulers, and "
            "no code that a file names"
        )
    name = name or config.get("_class_name")
    if name is None:
        raise CheckpointError(
            f"'{file}' names no scheduler class: save it from diffusers once more"
        )
    if name not in READABLE or scheduler_class(name) is None:
        raise unknown("diffusers scheduler with known levels", name, READABLE)
    steps, source = _steps(path, config, index)
    return SchedulerFolder(
        pipeline=index.get("_class_name", ""), scheduler=name, config=config, index=index, steps=steps,
        steps_from=source,
    )  # fmt: skip


def _config_file(path: Path) -> Path:
    if path.is_file():
        return path
    for file in (path / "scheduler" / CONFIG, path / CONFIG):
        if file.exists():
            return file
    raise ConfigError(
        f"'{path}' holds no scheduler of diffusers: give a folder that a pipeline's save_pretrained wrote, "
        f"its scheduler folder, or a {CONFIG}"
    )


def _steps(path: Path, config: JsonObject, index: JsonObject) -> tuple[int | None, str]:
    """The number of steps that the folder names, and where."""
    if sigmas := index.get("sample_sigmas"):
        return len(sigmas), f"from sample_sigmas of {INDEX}"
    card = path / "README.md"
    if path.is_dir() and card.is_file():
        with reading(card), card.open("rb") as file:
            found = STEPS.search(file.read(CARD_BYTES).decode(errors="replace"))
        if found and int(found[1]):
            return int(found[1]), "from README.md"
    end = config.get("shift_terminal")
    if (
        end
        and 1e-4 < end < 1
        and config.get("shift", 1.0) == 1
        and not config.get("use_dynamic_shifting")
    ):
        steps = round(1 / end)
        if steps > 1 and abs(steps * end - 1) < 1e-3:
            return steps, "from the scheduler's shift_terminal"
    return None, ""


def scheduler_from_config(name: str, config: JsonObject, **options: Any) -> Any:
    """diffusers' scheduler of this class from a config; keys that it does not have are left out."""
    cls: Any = scheduler_class(name)
    accepted = signature(cls.__init__).parameters
    values = {key: value for key, value in {**config, **options}.items() if key in accepted}
    unset = set(config.get("_use_default_values") or ())
    values = {key: value for key, value in values.items() if key in options or key not in unset}
    with _as_errors(f"diffusers cannot build {name} from this config"):
        return cls(**values)


def set_timesteps(scheduler: Any, *values: Any, **options: Any) -> Any:
    """The scheduler itself, after its `set_timesteps` with these values."""
    name = type(scheduler).__name__
    accepted = signature(scheduler.set_timesteps).parameters
    if odd := [key for key in options if key not in accepted]:
        raise ConfigError(
            f"the pipeline of this folder passes {' and '.join(odd)}, which diffusers' {name} does not take: "
            "give another scheduler"
        )
    with _as_errors(f"diffusers' {name} has no grid for this"):
        scheduler.set_timesteps(*values, **options)
        if hasattr(scheduler, "sigmas") and bool(scheduler.sigmas.isnan().any()):
            raise ValueError("a sigma is no number")
    return scheduler


@contextmanager
def _as_errors(what: str) -> Iterator[None]:
    """Turn what diffusers raises for values from a file into one sentence, and hide its warnings."""
    try:
        with quietly(), quiet_numpy(), np.errstate(divide="ignore", invalid="ignore"):
            yield
    except (ArithmeticError, AttributeError, ImportError, LookupError, NameError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} ({type(error).__name__}: {reason:.200})") from None
