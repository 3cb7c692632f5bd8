"""What a run was begun with, against what is asked of it now."""

import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, TypedDict

import numpy as np
import torch

from halfstep.errors import ConfigError
from halfstep.methods.base import StagePlan, teacher_times
from halfstep.version import __version__

EXTENDABLE = ("stop", "updates")
"""What --extend may raise (or halve further)."""
ROUNDING = ("micro_batch_size",)
"""What may change at any time, because out of memory asks for it: only sums are rounded otherwise."""


class RecordedStage(TypedDict):
    """A planned stage; `steps` is None for a student of every time."""

    name: str
    steps: int | None
    updates: int


class RecordedPlan(TypedDict):
    """The plan of a run's method; both are empty for a run of another kind.

    teacher_times  the grid that the first halved student's teacher is sampled on
    """

    stages: list[RecordedStage]
    teacher_times: list[float]


class Begun(TypedDict):
    """What run.json says: who began it, with what, and what changed since.

    id  stands in the run's stages and checkpoints, and in no other run's
    """

    command: str
    options: dict[str, Any]
    id: str
    argv: list[str]
    environment: dict[str, str | int | None]
    changes: list[str]
    plan: RecordedPlan


def recorded(plan: Sequence[StagePlan]) -> RecordedPlan:
    """The plan as run.json has it."""
    return {
        "stages": [{"name": s.name, "steps": s.steps, "updates": s.updates} for s in plan],
        "teacher_times": list(teacher_times(plan)),
    }


def take_up(
    folder: Path,
    before: Begun | None,
    request: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    extend: bool,
) -> tuple[Begun, list[str]]:
    """The new content of run.json, `before` itself where nothing changed, and the changes in words.

    before   content of run.json; None for a new run
    request  command, options and plan
    here     `environment`
    """
    if before is None:
        content = {"id": uuid.uuid4().hex, "argv": sys.argv, "environment": here, "changes": []}
        return cast(Begun, {**request, **content}), []
    free, extended = compare(folder, before, request, extend=extend)
    notes = [*free, *_changed(before["environment"], here)]
    about = before
    if notes or extended:
        changes = [*before["changes"], *notes, *extended]
        content = {"id": before["id"], "argv": sys.argv, "environment": here, "changes": changes}
        about = cast(Begun, {**request, **content})
    return about, [f"{note}: from here on not the same to the bit" for note in notes]


def compare(
    folder: Path, before: Begun, request: Mapping[str, Any], *, extend: bool
) -> tuple[list[str], list[str]]:
    """Differences that are allowed, in words, and those that `extend` allows.

    `ConfigError` where the run in `folder` was begun with another command or other options.
    """
    if before["command"] != request["command"]:
        raise ConfigError(
            f"'{folder}' holds a run of '{before['command']}', not of '{request['command']}': "
            "choose another --out"
        )
    old, new = _flat(before["options"]), _flat(request["options"])
    free, extended = list[str](), list[str]()
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        last = name.rpartition(".")[-1]
        adds = last in EXTENDABLE and _adds(last, was, now)
        if name in ROUNDING:
            free.append(f"{name} was {was}, now {now}")
        elif adds and extend:
            extended.append(f"{name} was {was}, now {now}")
        else:
            hint = "add --extend, or " if adds else ""
            raise ConfigError(
                f"'{folder}' was made with {name} = {was}, now it is {now}: {hint}choose another "
                "--out, or delete the folder"
            )
    return free, extended


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """All nesting made part of the names: pipeline.schedule."""
    found = dict[str, Any]()
    for name, value in options.items():
        inner = _flat(value) if isinstance(value, dict) else {"": value}
        found.update({f"{name}.{key}" if key else name: each for key, each in inner.items()})
    return found


def _adds(name: str, was: Any, now: Any) -> bool:
    """Whether an option asks for more of the same: nothing that is done would be undone."""
    olds, news = (value if isinstance(value, list) else [value] for value in (was, now))
    if not all(isinstance(value, int) for value in (*olds, *news)):
        return False
    if name == "stop":
        return bool(news < olds)
    return all(new >= old for old, new in zip(olds, news, strict=False))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before.get(name)}, now {now[name]}"
        for name in now
        if name != "commit" and before.get(name) != now[name]
    ]


def environment(device: str, processes: int = 1) -> dict[str, Any]:
    """What the bits of a result depend on besides the options."""
    return {
        "halfstep": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str | None:
    here = Path(__file__).parents[1]
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
